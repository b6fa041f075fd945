"""The evaluation stage, from a model to a report."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import Recorder, document, no_run

from lisan.core.artifact import Artifact, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.evaluate.config import EvalConfig
from lisan.evaluate.run import EVALS, score_items
from lisan.evaluate.tasks import TaskConfig, TaskKind, make_items
from lisan.model.config import Precision
from lisan.model.score import Scorer

TASKS = {
    "arabic": TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_text",)),
    "questions": TaskConfig(kind=TaskKind.multiple_choice, sources=("en_questions", "ar_questions")),
    "pairs": TaskConfig(kind=TaskKind.preference, sources=("en_pairs",)),
}


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("evaluate") / "root"
    copytree(tiny_store.root.root, place)
    return str(place)


@pytest.fixture(scope="module")
def config(root: str, base_model: str) -> EvalConfig:
    return EvalConfig(
        name="r",
        candidate=base_model,
        corpus="corpus/tiny@v1",
        tasks=TASKS,
        context_length=96,
        precision=Precision.float32,
        storage=StorageConfig(root=root),
    )


def run(config: EvalConfig) -> Artifact:
    return run_stage(EVALS, config, no_run, lambda _: None)


@pytest.fixture(scope="module")
def report(config: EvalConfig) -> Artifact:
    return run(config)


def test_an_id_that_the_model_has_no_row_for_is_refused(config: EvalConfig, base_model: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    copytree(base_model, tmp_path / "short")
    model = AutoModelForCausalLM.from_pretrained(base_model)
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "short")
    with pytest.raises(DataError, match=r"tasks\.arabic may hold the id \d+ .* and the model has 300 embedding rows"):
        run(replace(config, name="short", candidate=str(tmp_path / "short")))


def test_every_task_reports_its_metrics(report: Artifact) -> None:
    assert set(report.facts["metrics"]) == {
        "arabic/bits_per_byte",
        "arabic/tokens_per_word",
        "arabic/bytes_per_token",
        "questions/accuracy",
        "questions/accuracy_stderr",
        "pairs/accuracy",
        "pairs/accuracy_stderr",
    }
    assert 0 < report.facts["metrics"]["arabic/bits_per_byte"] < 20


def test_metrics_can_be_computed_again_from_the_stored_items(report: Artifact) -> None:
    metrics = report.facts["metrics"]
    for task in ("questions", "pairs"):
        rows = pq.read_table(f"{report.location}/results/{task}.parquet").to_pylist()
        assert len(rows) == {"questions": 40, "pairs": 20}[task]
        assert sum(row["choice"] == row["answer"] for row in rows) / len(rows) == pytest.approx(
            metrics[f"{task}/accuracy"]
        )


def test_the_report_names_its_model_and_corpus(report: Artifact, base_model: str) -> None:
    assert (report.facts["candidate"], report.facts["corpus"]) == (base_model, "corpus/tiny@v1")
    assert set(report.manifest["parents"]) == {"corpus/tiny@v1"}


def test_evaluating_again_gives_the_same_numbers(report: Artifact, config: EvalConfig) -> None:
    assert run(replace(config, version="v2")).facts["metrics"] == report.facts["metrics"]


def test_metrics_go_to_the_tracker_task_by_task(config: EvalConfig) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    recorder = Recorder()

    @contextmanager
    def opened(*_: object) -> Iterator[Recorder]:
        yield recorder

    made = run_stage(EVALS, replace(config, version="v3"), opened, lambda _: None)
    assert recorder.steps[0].items() >= made.facts["metrics"].items()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"corpus": "corpus/none@v1"}, ArtifactError, "corpus/none@v1 does not exist"),
        ({"candidate": "model/none@v1"}, ArtifactError, "model/none@v1 does not exist"),
        (
            {"tasks": {"t": TaskConfig(kind=TaskKind.preference, sources=("en_text",))}},
            ConfigError,
            r"tasks\.t\.sources names en_text, corpus/tiny@v1 has ar_pairs, en_pairs of preferences",
        ),
        (
            {"tasks": {"t": TaskConfig(kind=TaskKind.preference, sources=("en_pairs",), where={"told_in": "ar"})}},
            DataError,
            r"tasks\.t finds no records in corpus/tiny@v1: sources en_pairs, split validation, where \{'told_in': 'ar'\}",
        ),
        (
            {"tasks": {"t": TaskConfig(kind=TaskKind.preference, sources=("en_pairs",), split="test")}},
            DataError,
            "split",
        ),
        ({"tasks": {}}, ConfigError, "run_evals needs tasks"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    changes: dict[str, Any], error: type[Exception], said: str, config: EvalConfig
) -> None:
    with pytest.raises(error, match=said) as caught:
        run(replace(config, name="refused", **changes))
    assert "\n" not in str(caught.value)
    assert not (Path(config.storage.root) / "report" / "refused" / "v1" / "manifest.json").exists()


def test_a_text_longer_than_a_row_is_scored_part_by_part(config: EvalConfig, tokenizer: Any, scorer: Scorer) -> None:
    long = replace(document("en_text", 0), text=" ".join(document("en_text", index).text for index in range(12)))
    [item] = make_items(TASKS["arabic"], [long], tokenizer)
    assert len(item.candidates[0]) > 128
    [whole] = score_items(scorer, [item], replace(config, context_length=128 * 4))
    [parts] = score_items(scorer, [item], replace(config, context_length=64))
    assert parts.logps[0] != whole.logps[0]
    # Every part but the first begins with a token that has no context and is not scored.
    num_parts = -(-len(item.candidates[0]) // 64)
    assert parts.num_tokens == whole.num_tokens == len(item.candidates[0]) - 1
    assert abs(parts.logps[0] / (whole.num_tokens - num_parts + 1) - whole.logps[0] / whole.num_tokens) < 3


def test_a_document_is_charged_for_every_token_that_it_counts(
    config: EvalConfig, tokenizer: Any, scorer: Scorer
) -> None:
    """What is not scored must not make bits per byte look smaller by more than the few tokens that begin a part."""
    [item] = make_items(TASKS["arabic"], [document("ar_text", 2)], tokenizer)
    assert len(item.candidates[0]) <= config.context_length
    [found] = score_items(scorer, [item], config)
    assert found.num_tokens == len(item.candidates[0]) - 1
