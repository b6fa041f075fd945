"""The `sample_preferences` stage against a server in this process: layout, counts, resuming, refusals."""

import threading
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from endpoint_server import FakeEndpoint, Reply, completion, failure, serve
from tiny import encode, no_run, silent

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError, ServingError
from lisan.core.stage import StorageConfig, run_stage
from lisan.corpus.reader import list_sources, read_records
from lisan.inference import generate
from lisan.inference.answers import read_answers
from lisan.inference.config import (
    EndpointConfig,
    EngineConfig,
    JudgeConfig,
    JudgeKind,
    PromptsConfig,
    SamplingConfig,
    TrafficConfig,
)
from lisan.records.kinds import RecordKind
from lisan.synth import sample_preferences
from lisan.synth.config import SampleConfig
from lisan.synth.sample_preferences import SAMPLE

CORPUS = "corpus/tiny@v1"
LIMIT = 6


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    copytree(tiny_store.root.root, tmp_path / "root")
    return Store(str(tmp_path / "root"))


def say_words(body: dict[str, Any]) -> Reply:
    """Answer with longer and longer beginnings of the question, so that every answer has another score."""
    words = body["messages"][-1]["content"].split()
    return completion(*(" ".join(words[: n + 1]) + f" ({n})" for n in range(body["n"])))


def config_of(store: Store, served: FakeEndpoint, **changes: Any) -> SampleConfig:
    values: dict[str, Any] = {
        "name": "sampled",
        "prompts": PromptsConfig(corpus=CORPUS, limit=LIMIT),
        "endpoint": EndpointConfig(url=served.url),
        "sampling": SamplingConfig(num_answers=4),
        "traffic": TrafficConfig(num_retries=0, concurrency=4),
        "storage": StorageConfig(root=store.root.root),
    }
    return SampleConfig(**{**values, **changes})


def make(config: SampleConfig) -> Artifact:
    return run_stage(SAMPLE, config, no_run, silent)


def test_the_corpus_can_be_encoded(store: Store) -> None:
    with serve(say_words) as served:
        made = make(config_of(store, served))
    assert list_sources(made, RecordKind.preferences) == {"ar_chats": "ar", "en_chats": "en"}
    pairs = list(read_records(made, RecordKind.preferences))
    assert {pair.source for pair in pairs} == {"ar_chats", "en_chats"}
    assert all(float(pair.meta["chosen_score"]) > float(pair.meta["rejected_score"]) for pair in pairs)
    assert made.facts["records"] == len(pairs) == len({pair.id for pair in pairs})
    tokens = encode(store, RecordKind.preferences, name="sampled", corpus=str(made.ref), context_length=128)
    assert tokens.facts["rows"] > 0


def test_every_prompt_and_every_answer_is_counted(store: Store) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        if len(text) % 3 == 0:
            return failure(400, "too long")
        return completion(text, f"{text} {text}", text, "", "سلام" if text.isascii() else "hello")

    with serve(answer) as served:
        made = make(config_of(store, served, sampling=SamplingConfig(num_answers=5), same_language=True))
    asked = [one for file in (made.location / "answers").list() for one in read_answers(file)]
    facts, refused = made.facts, sum(bool(one.refusal) for one in asked)
    assert len(asked) == facts["prompts"] == 2 * LIMIT
    assert facts["repeated_prompts"] == 0
    assert refused > 0
    assert facts["answers"] == {
        **dict.fromkeys(("repeated", "empty", "wrong_language"), 2 * LIMIT - refused),
        "judged": 2 * (2 * LIMIT - refused),
    }


def test_reasons_and_means_are_in_the_manifest(store: Store) -> None:
    with serve(say_words) as served:
        facts = make(config_of(store, served, min_gap=5.0)).facts
    for counts in facts["sources"].values():
        assert counts["read"] == LIMIT == counts["kept"] + sum(counts["dropped"].values())
        assert counts["splits"]["train"]["records"] == counts["kept"]
    assert facts["mean_chosen_score"] > facts["mean_all_score"] > facts["mean_rejected_score"]
    assert facts["policy"] == {"name": "m", "url": served.url, "sha256": ""}
    assert facts["judge"]["kind"] == "reference"


def test_a_failure_at_the_end_keeps_the_samples(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ServingError("the judge is away")

    with serve(say_words) as served:
        with monkeypatch.context() as patched:
            patched.setattr(sample_preferences, "_describe_judge", fail)
            with pytest.raises(ServingError, match="is away"):
                make(config_of(store, served))
        num_asked = len(served.requests)
        assert num_asked
        make(config_of(store, served))
        assert len(served.requests) == num_asked


def test_a_killed_job_resumes(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "PART_PROMPTS", 4)
    lock = threading.Lock()
    asked: list[str] = []

    def die_at_tenth(body: dict[str, Any]) -> Reply:
        with lock:
            asked.append(body["messages"][-1]["content"])
            dead = len(asked) == 10
        return failure(401, "key") if dead else say_words(body)

    with serve(die_at_tenth) as served:
        config = config_of(store, served, traffic=TrafficConfig(num_retries=0, concurrency=1))
        with pytest.raises(ServingError, match="refused the key"):
            make(config)
        assert not (store.location(Ref.parse("corpus/sampled@v1")) / "manifest.json").exists()
        again = make(config_of(store, served, traffic=TrafficConfig(concurrency=2)))
        with serve(say_words) as other:
            whole = make(config_of(store, other, name="whole"))
    said = capsys.readouterr().out
    assert "of 3 parts are sampled already" in said
    assert f"judged {2 * LIMIT}/{2 * LIMIT} prompts" in said
    assert len(asked) < 10 + 2 * LIMIT, "what was sampled before is not sampled again"
    assert list(read_records(again, RecordKind.preferences)) == list(read_records(whole, RecordKind.preferences))
    assert not list((store.root / "parts").walk())


def test_twice_is_once(store: Store) -> None:
    with serve(say_words) as served:
        config = config_of(store, served)
        make(config)
        num = len(served.requests)
        make(config)
        assert len(served.requests) == num
        with pytest.raises(ArtifactError, match=r"min_gap: 0\.0 -> 1\.0"):
            make(config_of(store, served, min_gap=1.0))


def test_a_job_without_pairs_names_the_reasons(store: Store) -> None:
    said = rf"no prompt gave a pair \({2 * LIMIT} too_few; .*raise sampling\.temperature"
    with serve(lambda body: completion(*["the same"] * body["n"])) as served, pytest.raises(DataError, match=said):
        make(config_of(store, served))


def test_an_endpoint_that_refuses_every_prompt_ends_the_job_at_once(store: Store) -> None:
    said = r"every request was refused; the last time: .*unknown field top_k"
    with serve(lambda _: failure(400, "unknown field top_k")) as served:
        for _ in range(2):
            with pytest.raises(DataError, match=said):
                make(config_of(store, served))
        assert len(served.requests) == 2 * 2 * LIMIT, "what was refused is asked again"


def judged_by(store: Store, policy: FakeEndpoint, judge: FakeEndpoint) -> SampleConfig:
    config = JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=judge.url))
    return config_of(store, policy, judge=config)


def score_by_length(body: dict[str, Any]) -> Reply:
    return completion(f"Score: {1 + len(body['messages'][-1]['content']) % 10}")


def test_a_judge_that_refuses_every_answer_ends_the_job_and_leaves_no_judged_part(store: Store) -> None:
    said = r"every request was refused; the last time: .*temperature must be 1"
    is_strict = [True]

    def judge_all(body: dict[str, Any]) -> Reply:
        return failure(400, "temperature must be 1") if is_strict else score_by_length(body)

    with serve(say_words) as policy, serve(judge_all) as judge:
        with pytest.raises(DataError, match=said):
            make(judged_by(store, policy, judge))
        assert not [file for file, _ in (store.root / "parts").walk() if "/judged/" in str(file)]
        num_sampled = len(policy.requests)
        is_strict.clear()
        assert make(judged_by(store, policy, judge)).facts["records"] > 0
        assert len(policy.requests) == num_sampled


def test_answers_that_a_judge_refuses_among_others_are_unjudged(store: Store) -> None:
    def judge_short(body: dict[str, Any]) -> Reply:
        return failure(400, "too long") if "(3)" in body["messages"][-1]["content"] else score_by_length(body)

    with serve(say_words) as policy, serve(judge_short) as judge:
        facts = make(judged_by(store, policy, judge)).facts
    assert facts["answers"] == {"judged": 3 * 2 * LIMIT, "unjudged": 2 * LIMIT}


def test_nothing_is_sampled_without_the_judge(store: Store) -> None:
    with serve(say_words) as served:
        judge = JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=served.url, model="absent"))
        with pytest.raises(ServingError, match="absent is not served"):
            make(config_of(store, served, judge=judge))
        assert not served.requests


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"policy": "model/a@v1"}, ConfigError, "exactly one of policy .*got model/a@v1 and http"),
        ({"endpoint": EndpointConfig()}, ConfigError, "exactly one of policy .*got null and null"),
        ({"engine": EngineConfig(threads=1)}, ConfigError, "engine has no effect on a model that is served already"),
        ({"min_gap": -1.0}, ConfigError, "min_gap must be >= 0"),
        ({"endpoint": EndpointConfig(), "policy": "/no/folder"}, ServingError, "/no/folder is not a model folder"),
        ({"endpoint": EndpointConfig(), "policy": "model/no@v1"}, ArtifactError, "model/no@v1 does not exist"),
    ],
)
def test_an_impossible_config_is_refused(
    changes: dict[str, Any], error: type[Exception], said: str, store: Store
) -> None:
    with serve(say_words) as served, pytest.raises(error, match=said):
        make(config_of(store, served, **changes))
