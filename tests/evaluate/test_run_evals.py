"""The evaluation stage, from a model to a report."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import Recorder, document, no_run, question

from lisan.cluster.config import Precision
from lisan.core.artifact import Artifact, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.evaluate.config import EvalConfig, PromptStyle, TaskConfig, TaskKind
from lisan.evaluate.run_evals import EVALS, score_items
from lisan.evaluate.tasks import make_items
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
        model=base_model,
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
        run(replace(config, name="short", model=str(tmp_path / "short")))


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
        assert sum(row["credit"] for row in rows) / len(rows) == pytest.approx(metrics[f"{task}/accuracy"])
        assert all(row["credit"] == (row["answer"] in row["chosen"]) / len(row["chosen"]) for row in rows)


def test_the_report_names_its_model_and_corpus(report: Artifact, base_model: str) -> None:
    assert (report.facts["model"], report.facts["corpus"]) == (base_model, "corpus/tiny@v1")
    assert set(report.manifest["parents"]) == {"corpus/tiny@v1"}


def test_counts_stand_beside_the_metrics(report: Artifact) -> None:
    counts = report.facts["counts"]
    assert counts["arabic"] == {"items": 20, "matched": 20, "left_out": 0, "spelt_controls": 0}
    assert counts["questions"] == {
        **counts["arabic"],
        "items": 40,
        "matched": 40,
        "truncated": 0,
        "ties": 0,
        "chance": 0.25,
    }
    assert counts["pairs"]["chance"] == 0.5


def test_the_report_has_a_page_of_its_own(report: Artifact) -> None:
    page = (report.location / "report.html").read_bytes().decode()
    for said in ("questions", "bits per byte", "chance", "report/r@v1", question("ar_questions", 81).question):
        assert said in page
    assert "<script" not in page
    assert "http" not in page


def test_left_out_and_cut_records_are_reported(
    config: EvalConfig, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(replace(config, name="short", context_length=9))
    counts, said = made.facts["counts"]["pairs"], capsys.readouterr().out
    assert counts["truncated"] + counts["left_out"] == 20
    assert f"    {counts['truncated']} prompts lost their beginning to fit context_length 9; raise it" in said
    assert (
        f"{counts['left_out']} records were left out: {counts['left_out']} with an answer longer than context_length"
        in said
    )
    page = (made.location / "report.html").read_bytes().decode()
    assert f"pairs: {counts['truncated']} prompts lost their beginning to fit 9 tokens" in page
    assert f"  page: {made.location / 'report.html'}" in said


def test_a_model_with_damaged_weights_is_refused(config: EvalConfig, base_model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copytree(base_model, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"damaged: 1 of \d+ weights hold NaN .*the first is .*down_proj"):
        run(replace(config, name="damaged", model=str(folder), tasks={"questions": TASKS["questions"]}))


def test_a_folder_without_a_model_is_refused(config: EvalConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json; name a model folder, model/name@version or a hub id"):
        run(replace(config, name="folder", model=str(tmp_path)))


def test_a_chat_task_needs_a_chat_template(config: EvalConfig, base_model: str, tmp_path: Path) -> None:
    folder = Path(copytree(base_model, tmp_path / "plain"))
    (folder / "chat_template.jinja").unlink()
    chat = {"questions": replace(TASKS["questions"], prompt=PromptStyle.chat)}
    with pytest.raises(
        ConfigError, match=r"tasks\.questions\.prompt is chat and the tokenizer of .*plain has no chat template"
    ):
        run(replace(config, name="chat", model=str(folder), tasks=chat))


def test_the_prompt_of_the_job_is_for_tasks_that_set_none(config: EvalConfig) -> None:
    tasks = {**TASKS, "plain": replace(TASKS["pairs"], prompt=PromptStyle.plain)}
    chat = replace(config, tasks=tasks, prompt=PromptStyle.chat)
    assert {name: chat.task(name).prompt for name in tasks} == {
        "arabic": None,
        "questions": PromptStyle.chat,
        "pairs": PromptStyle.chat,
        "plain": PromptStyle.plain,
    }
    for without in ("arabic", "plain"):
        with pytest.raises(ConfigError, match="prompt=chat has no effect"):
            replace(chat, tasks={without: tasks[without]})


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
        ({"model": "model/none@v1"}, ArtifactError, "model/none@v1 does not exist"),
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
            "has no split test of preferences/en_pairs",
        ),
        ({"tasks": {}}, ConfigError, "run_evals needs tasks"),
        ({"model": "/nowhere"}, ConfigError, "model=/nowhere is no folder; name a model folder"),
        ({"context_length": 500}, ConfigError, "context_length is 500 and .* has positions for 128 tokens"),
        ({"context_length": 1}, ConfigError, "context_length >= 2"),
    ],
)
def test_an_impossible_evaluation_is_one_sentence(
    changes: dict[str, Any], error: type[Exception], said: str, config: EvalConfig
) -> None:
    with pytest.raises(error, match=said) as caught:
        run(replace(config, name="refused", **changes))
    assert "\n" not in str(caught.value)
    assert not (Path(config.storage.root) / "report" / "refused" / "v1" / "manifest.json").exists()


def test_a_text_longer_than_a_row_is_scored_in_spans(config: EvalConfig, tokenizer: Any, scorer: Scorer) -> None:
    long = replace(document("en_text", 0), text=" ".join(document("en_text", index).text for index in range(12)))
    [item] = make_items(TASKS["arabic"], [long], tokenizer)
    assert len(item.candidates[0]) > 128
    [whole] = score_items(scorer, [item], replace(config, context_length=128 * 4))
    [parts] = score_items(scorer, [item], replace(config, context_length=64))
    assert parts.logps[0] != whole.logps[0]
    # Every span but the first begins with a token that has no context and is not scored.
    num_parts = -(-len(item.candidates[0]) // 64)
    assert parts.num_tokens == whole.num_tokens == (len(item.candidates[0]) - 1,)
    assert abs(parts.logps[0] / (whole.num_tokens[0] - num_parts + 1) - whole.logps[0] / whole.num_tokens[0]) < 3


def test_bits_per_byte_cover_every_counted_token_of_a_document(
    config: EvalConfig, tokenizer: Any, scorer: Scorer
) -> None:
    """Bits per byte may miss the first token of each span, and no other."""
    [item] = make_items(TASKS["arabic"], [document("ar_text", 2)], tokenizer)
    assert len(item.candidates[0]) <= config.context_length
    [found] = score_items(scorer, [item], config)
    assert found.num_tokens == (len(item.candidates[0]) - 1,)
