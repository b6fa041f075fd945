"""The comparison page of a recipe, without a server: rows from reports, files, the tracker; and questions to a fake endpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import Recorder

from lisan.core.artifact import Artifact, Kind, Ref
from lisan.core.errors import ServingError
from lisan.core.stage import ClusterConfig, StorageConfig, TrackingConfig
from lisan.core.storage import Location
from lisan.recipes import comparison
from lisan.recipes.comparison import ComparisonConfig, ComparisonJob, QuestionConfig, RowConfig, compare


def artifact(root: Path, kind: Kind, name: str, **facts: Any) -> Artifact:
    return Artifact(Ref(kind, name, "v1"), Location(str(root)) / kind / name, {"facts": facts, "fingerprint": name})


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Artifact]:
    metrics = [
        {"ar/bits_per_byte": 4.0, "q/accuracy": 0.25, "q/accuracy_stderr": 0.02},
        {"ar/bits_per_byte": 1.5, "q/accuracy": 0.8},
    ]
    made: dict[str, Artifact] = {}
    for name, found in zip(("base", "cpt"), metrics, strict=True):
        made[name] = artifact(tmp_path, Kind.model, name, seconds=12.0, mix={"en": 100, "ar": 300})
        made[f"{name}_report"] = artifact(tmp_path, Kind.report, name, metrics=found)
    return made


class FilesRun(Recorder):
    """Keeps the files that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}

    def log_file(self, name: str, content: bytes) -> None:
        self.files[name] = content


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FilesRun:
    """Put a run in the place of MLflow."""
    found = FilesRun()

    @contextmanager
    def open_job(*_: object) -> Iterator[FilesRun]:
        yield found

    monkeypatch.setattr(comparison, "open_job", open_job)
    monkeypatch.setattr(comparison, "metric_history", lambda *_: [(10, 5.0), (20, 3.0)])
    return found


def place(root: Path, **changes: Any) -> ComparisonJob:
    rows = {"base": RowConfig(train="base", report="base_report"), "cpt": RowConfig(train="cpt", report="cpt_report")}
    config = ComparisonConfig(**{"rows": rows, **changes})
    return ComparisonJob(
        name="x",
        comparison=config,
        storage=StorageConfig(root=str(root)),
        tracking=TrackingConfig(),
        cluster=ClusterConfig(),
    )


def test_the_summary_holds_every_row_as_measured(results: dict[str, Artifact], run: FilesRun, tmp_path: Path) -> None:
    summary = compare(place(tmp_path), results).read_json()
    assert summary["rows"] == {
        "base": {"ref": "model/base@v1", "seconds": 12.0, **results["base_report"].facts["metrics"]},
        "cpt": {"ref": "model/cpt@v1", "seconds": 12.0, **results["cpt_report"].facts["metrics"]},
    }
    assert summary["replies"] == {}
    assert summary["command"] == "run_pipeline recipe=x"


def test_page_table_and_summary_lie_together_and_go_to_the_tracker(
    results: dict[str, Artifact], run: FilesRun, tmp_path: Path
) -> None:
    where = compare(place(tmp_path), results)
    assert str(where) == str(tmp_path / "comparisons" / "x" / "x.json")
    assert set(run.files) == {"x.json", "x.html", "x.md"}
    for name, content in run.files.items():
        assert (tmp_path / "comparisons" / "x" / name).read_bytes() == content
    assert b"<html" in run.files["x.html"].lower()
    assert "seconds" in run.steps[0]


def test_columns_are_those_that_were_chosen_under_their_labels(
    results: dict[str, Artifact], run: FilesRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(place(tmp_path, columns={"bits ar": "ar/bits_per_byte", "unknown": "never/measured"}), results)
    table = run.files["x.md"].decode()
    assert "bits ar" in table
    assert "accuracy" not in table
    assert "1.5" in table
    assert "bits ar" in capsys.readouterr().out


def test_without_columns_every_metric_is_shown(results: dict[str, Artifact], run: FilesRun, tmp_path: Path) -> None:
    compare(place(tmp_path), results)
    assert "accuracy" in run.files["x.md"].decode()


class Endpoint:
    """Answers like a served model, and remembers that it was stopped."""

    url, seconds = "http://nowhere/v1", 3.0

    def __init__(self) -> None:
        self.is_stopped = False
        self.port = 0

    def stop(self) -> None:
        self.is_stopped = True


def serve(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Endpoint:
    endpoint = Endpoint()

    def start(config: Any, _: Any) -> Endpoint:
        endpoint.port = config.port
        return endpoint

    def create(**request: Any) -> Any:
        text = answer(request)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    monkeypatch.setattr("openai.OpenAI", lambda **_: client)
    monkeypatch.setattr("lisan.inference.endpoint.start", start)
    return endpoint


QUESTIONS = {
    "en": QuestionConfig(text="Capital of Morocco?", expect="Rabat"),
    "ar": QuestionConfig(text="عاصمة المغرب؟", expect="الرباط"),
}


def test_the_served_model_is_asked_every_question(
    results: dict[str, Artifact],
    run: FilesRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = serve(
        monkeypatch, lambda request: "It is Rabat." if "Capital" in request["messages"][0]["content"] else "لا أعرف"
    )
    summary = compare(place(tmp_path, serve="m", port=8123, questions=QUESTIONS), results).read_json()
    assert endpoint.port == 8123
    assert summary["replies"] == {
        "en": {"question": "Capital of Morocco?", "answer": "It is Rabat.", "expect": "Rabat"},
        "ar": {"question": "عاصمة المغرب؟", "answer": "لا أعرف", "expect": "الرباط"},
    }
    said = capsys.readouterr().out
    assert "(as expected: Rabat)" in said
    assert "(not as expected: الرباط)" in said
    assert endpoint.is_stopped
    assert "لا أعرف" in run.files["x.html"].decode()


def test_an_endpoint_that_fails_is_stopped_and_one_sentence(
    results: dict[str, Artifact], run: FilesRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> str:
        raise ConnectionError("refused")

    endpoint = serve(monkeypatch, fails)
    with pytest.raises(ServingError, match="m at http://nowhere/v1 did not answer: refused"):
        compare(place(tmp_path, serve="m", questions=QUESTIONS), results)
    assert endpoint.is_stopped
    assert run.files == {}
