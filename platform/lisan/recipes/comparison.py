"""Compares the models of a recipe and asks the promoted one questions.

Writes a table, a JSON file and an HTML page under `<root>/comparisons/<name>/` and records them in MLflow. Every number comes
from a report or is measured here.
"""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lisan.core.artifact import Artifact
from lisan.core.errors import ServingError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.stage import ClusterConfig, StorageConfig, TrackingConfig
from lisan.core.storage import Location
from lisan.core.versions import code_commit
from lisan.inference.config import EngineConfig, ServeConfig
from lisan.inference.endpoint import serving
from lisan.recipes.comparison_page import Curve, Mix, Page, Reply, render_page
from lisan.reporting.tables import Column, ModelRow, format_table, guess_columns, markdown_table
from lisan.tracking.runs import metric_history, open_job


@dataclass(frozen=True, kw_only=True, slots=True)
class RowConfig:
    train: str
    "Step that made the model."
    report: str
    "Step that evaluated it."


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionConfig:
    text: str
    expect: str | None = None
    "Text that a right answer contains; the comparison reports whether it does."


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonConfig:
    rows: dict[str, RowConfig] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    "Label to metric of the reports; empty shows every metric."
    serve: str | None = None
    "Registered model to serve and ask; null serves nothing."
    alias: str = "champion"
    port: int = 8000
    engine: EngineConfig = field(default_factory=EngineConfig)
    questions: dict[str, QuestionConfig] = field(default_factory=dict)
    "By language."


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonJob:
    """A comparison, and where it is written and tracked."""

    name: str
    comparison: ComparisonConfig
    storage: StorageConfig = field(metadata=NOT_IDENTITY)
    tracking: TrackingConfig = field(metadata=NOT_IDENTITY)
    cluster: ClusterConfig = field(metadata=NOT_IDENTITY)


def compare(job: ComparisonJob, results: Mapping[str, Any]) -> Location:
    """Serve and ask the model, write page, table and JSON, and record them in a run; return the location of the JSON."""
    start = time.monotonic()
    rows = [_row(name, results[row.train], results[row.report]) for name, row in job.comparison.rows.items()]
    trained = {name: results[row.train] for name, row in job.comparison.rows.items()}
    replies, served_s = _ask(job) if job.comparison.serve else ([], None)
    page = Page(
        title=f"Lisan: {job.name}",
        rows=rows,
        columns=_columns(job.comparison, rows),
        replies=replies,
        facts=_describe(job, served_s),
        curves=[_curve(name, artifact, job) for name, artifact in trained.items()],
        mixes=[Mix(name=name, parts=artifact.facts["mix"]) for name, artifact in trained.items()],
    )
    print(format_table(rows, page.columns))
    folder = Location(job.storage.root) / "comparisons" / job.name
    (folder / f"{job.name}.html").write_bytes(render_page(page).encode())
    (folder / f"{job.name}.md").write_bytes(markdown_table(rows, page.columns).encode())
    (folder / f"{job.name}.json").write_json(_summarise(page, job.comparison.questions))
    with open_job("comparison", job.name, job, tuple(trained.values())) as run:
        run.log_metrics({"seconds": time.monotonic() - start})
        for suffix in ("json", "html", "md"):
            run.log_file(f"{job.name}.{suffix}", (folder / f"{job.name}.{suffix}").read_bytes())
    return folder / f"{job.name}.json"


def _describe(job: ComparisonJob, served_s: float | None) -> dict[str, str]:
    return {
        "command": f"run_pipeline recipe={job.name}",
        "commit": code_commit(),
        "machine": platform.platform(),
        **({"seconds to serve": f"{served_s:.0f}"} if served_s else {}),
    }


def _summarise(page: Page, questions: Mapping[str, QuestionConfig]) -> dict[str, Any]:
    replies = {
        reply.language: {
            "question": reply.question,
            "answer": reply.answer,
            "expect": questions[reply.language].expect,
        }
        for reply in page.replies
    }
    return {
        "rows": {row.name: {"ref": row.ref, "seconds": row.seconds, **row.metrics} for row in page.rows},
        "replies": replies,
        **page.facts,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _row(name: str, model: Artifact, report: Artifact) -> ModelRow:
    return ModelRow(name=name, ref=str(model.ref), metrics=report.facts["metrics"], seconds=model.facts["seconds"])


def _columns(config: ComparisonConfig, rows: list[ModelRow]) -> list[Column]:
    guessed = {column.key: column for column in guess_columns(rows)}
    if not config.columns:
        return list(guessed.values())
    return [
        replace(guessed.get(key, Column(key=key, label=label)), label=label) for label, key in config.columns.items()
    ]


def _curve(name: str, artifact: Artifact, job: ComparisonJob) -> Curve:
    points = metric_history(job.tracking, job.storage.root, artifact, "train/loss")
    return Curve(name=name, steps=[step for step, _ in points], values=[value for _, value in points])


def _ask(job: ComparisonJob) -> tuple[list[Reply], float]:
    """Serve the model of the alias and ask every question; return the replies and the seconds until it was served."""
    config = job.comparison
    assert config.serve is not None
    served = ServeConfig(
        model=config.serve,
        alias=config.alias,
        port=config.port,
        engine=config.engine,
        storage=job.storage,
        tracking=job.tracking,
    )
    with serving(served) as endpoint:
        try:
            return _ask_questions(endpoint.url, config.serve, config.questions), endpoint.seconds
        except Exception as error:
            raise ServingError(f"{config.serve} at {endpoint.url} did not answer: {error}") from error


def _ask_questions(url: str, model: str, questions: Mapping[str, QuestionConfig]) -> list[Reply]:
    from openai import OpenAI

    client, replies = OpenAI(base_url=url, api_key="none", max_retries=0), []
    for language, question in questions.items():
        answer = client.chat.completions.create(
            model=model, max_tokens=64, temperature=0, messages=[{"role": "user", "content": question.text}]
        )
        text = answer.choices[0].message.content or ""
        replies.append(Reply(language=language, question=question.text, answer=text))
        expected = ""
        if question.expect is not None:
            expected = f"  ({'as' if question.expect in text else 'not as'} expected: {question.expect})"
        print(f"  {language}: {question.text}\n      {text}{expected}", flush=True)
    return replies
