"""The three judges."""

import asyncio
import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from endpoint_server import Reply, completion, failure, serve

from lisan.cluster.precision import find_precision
from lisan.core.errors import ConfigError, DataError, ServingError
from lisan.inference.answers import Answer, AnsweredPrompt
from lisan.inference.config import RUBRIC, EndpointConfig, JudgeConfig, JudgeKind, TrafficConfig
from lisan.inference.judge import check_judge, chrf, judge_answers, make_judge, read_score
from lisan.inference.prompts import Prompt
from lisan.inference.reward_model import RewardModel
from lisan.records.records import Turn

TRAFFIC = TrafficConfig(num_retries=0)
PROMPT = Prompt("p", (Turn("user", "Capital of Morocco?"),), "Rabat is the capital.", "s", "en")
ANSWERED = AnsweredPrompt(PROMPT, (Answer("Rabat is it."), Answer("cut off", "cut"), Answer("Fez, I think.")))


def judge(config: JudgeConfig, answered: AnsweredPrompt = ANSWERED) -> list[float | None]:
    async def run() -> AnsweredPrompt:
        return await judge_answers(make_judge(config, TRAFFIC, use_gpu=False), answered)

    return [answer.score for answer in asyncio.run(run()).answers]


def test_chrf_with_the_good_reply_ranks_answers() -> None:
    good, cut, bad = judge(JudgeConfig())
    assert good is not None
    assert bad is not None
    assert good > bad
    assert cut is None


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The capital of Morocco is Rabat.", "Rabat is the capital of Morocco.", 75.34221910671187),
        ("الرباط", "الرباط هي عاصمة المغرب.", 22.929544103272274),
        ("hello", "hello world, this is long", 18.441861598832656),
        ("a", "ab", 55.55555555555556),
        ("same text", "same text", 100.0),
        ("xyz", "abc", 0.0),
        ("", "abc", 0.0),
    ],
)
def test_chrf_is_sacrebleus(text: str, reference: str, expected: float) -> None:
    """The expected numbers are those of sacrebleu 2.6.0, sentence_chrf with its defaults."""
    assert chrf(text, reference) == pytest.approx(expected)


def test_without_a_good_reply_nothing_is_judged() -> None:
    bare = AnsweredPrompt(Prompt("p", PROMPT.turns, "", "s", "en"), ANSWERED.answers)
    assert judge(JudgeConfig(), bare) == [None, None, None]


def test_a_language_model_reads_rubric_conversation_and_answer() -> None:
    def answer(body: dict[str, Any]) -> Reply:
        return completion(
            "Right.\nScore: 9" if "Rabat is it." in body["messages"][1]["content"] else "Wrong.\n**Score: 2**"
        )

    with serve(answer) as served:
        assert judge(JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=served.url))) == [9, None, 2]
    assert len(served.requests) == 2
    assert served.requests[0]["messages"][0]["content"] == RUBRIC
    assert "user: Capital of Morocco?" in served.requests[0]["messages"][1]["content"]
    assert served.requests[0]["temperature"] == 0


def test_a_judgement_without_a_score_leaves_the_answer_without_one() -> None:
    replies = iter([completion("I like both."), failure(400, "too long")])
    with serve(lambda _: next(replies)) as served:
        config = JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=served.url))
        assert judge(config) == [None, None, None]


def test_a_single_answer_is_not_judged() -> None:
    with serve(lambda _: completion("Score: 5")) as served:
        config = JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=served.url))
        judge(config, AnsweredPrompt(PROMPT, (Answer("only"), Answer("x", "cut"))))
    assert not served.requests


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("Score: 7", 7),
        ("good\n\nscore: 10 \n", 10),
        ("**Score:** 8/10.", 8),
        ("Score: 7\nOr maybe 6.", None),
        ("Score: 7-8", None),
        ("Score: 0", None),
        ("Score: 11", None),
        ("Score: 7.5", None),
        ("A score of 8 would be fair", None),
        ("8", None),
        ("", None),
    ],
)
def test_only_a_last_line_that_is_a_score_counts(judgement: str, score: float | None) -> None:
    assert read_score(judgement) == score


@pytest.fixture(scope="module")
def reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reward model, saved as transformers saves one."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_reward_model_scores_the_rendered_conversation(reward_folder: Path, batch_size: int) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dtype = find_precision("cpu").precision.dtype
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    expected = []
    for text in ("Rabat is it.", "Fez, I think."):
        turns = [{"role": "user", "content": "Capital of Morocco?"}, {"role": "assistant", "content": text}]
        ids = tokenizer(
            tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False, return_tensors="pt"
        )
        expected.append(model(input_ids=ids["input_ids"]).logits.item())
    found = judge(JudgeConfig(kind=JudgeKind.reward, path=str(reward_folder), batch_size=batch_size))
    assert [found[0], found[2]] == pytest.approx(expected, abs=1e-5 if dtype is torch.float32 else 1e-2)
    assert expected[0] != expected[1]
    assert found[1] is None


def test_a_folder_that_is_no_reward_model_is_refused(base_model: str) -> None:
    config = JudgeConfig(kind=JudgeKind.reward, path=base_model)
    with pytest.raises(DataError, match="is LlamaForCausalLM, not a sequence classifier"):
        check_judge(config, TRAFFIC, use_gpu=False)


def test_the_path_of_a_reward_model_may_begin_with_a_tilde(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(reward_folder.parent))
    config = JudgeConfig(kind=JudgeKind.reward, path=f"~/{reward_folder.name}")
    check_judge(config, TRAFFIC, use_gpu=False)
    assert judge(config)[0] is not None


def test_a_conversation_that_is_too_long_loses_its_beginning(reward_folder: Path, tmp_path: Path) -> None:
    folder = copytree(reward_folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    model = RewardModel(str(folder), batch_size=8, use_gpu=False)
    question, longer = (Turn("user", text) for text in ("Capital of Morocco?", "So then: Capital of Morocco?"))
    replies = ["Rabat is it, of that I am sure.", "Fez, I think, but ask somebody else."]
    found = model.score([question], replies)
    assert found == model.score([longer], replies)
    assert found[0] != found[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_missing_gpu_is_an_error(reward_folder: Path) -> None:
    config = JudgeConfig(kind=JudgeKind.reward, path=str(reward_folder))
    with pytest.raises(ConfigError, match=r"cluster\.use_gpu is true but this process, .* sees no GPU"):
        check_judge(config, TRAFFIC, use_gpu=True)


def test_a_judge_that_is_not_served_is_refused() -> None:
    with serve(lambda _: completion("x")) as served:
        config = JudgeConfig(kind=JudgeKind.endpoint, endpoint=EndpointConfig(url=served.url, model="big"))
        with pytest.raises(ServingError, match="which serves m"):
            check_judge(config, TRAFFIC, use_gpu=False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": JudgeKind.endpoint}, r"judge\.kind=endpoint needs judge\.endpoint\.url"),
        ({"kind": JudgeKind.reward}, r"judge\.kind=reward needs judge\.path"),
        ({"path": "/m"}, r"judge\.path has no effect on judge\.kind=reference"),
        ({"rubric": "be kind"}, r"judge\.rubric has no effect"),
        (
            {"kind": JudgeKind.reward, "path": "/m", "max_tokens": 9},
            r"judge\.max_tokens has no effect on judge\.kind=reward",
        ),
    ],
)
def test_missing_and_unused_fields_of_a_judge_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JudgeConfig(**values)
