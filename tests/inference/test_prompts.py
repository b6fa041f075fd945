"""Prompts of a corpus."""

from pathlib import Path

import pytest
from tiny import write_part

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.inference.config import PromptsConfig
from lisan.inference.prompts import check_prompts, make_prompt, read_prompts
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Preference, Turn

CORPUS = "corpus/tiny@v1"
CHAT = (Turn("system", "s"), Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2"))


@pytest.fixture
def corpus(tiny_store: Store) -> Artifact:
    return tiny_store.open(Ref.parse(CORPUS))


def test_a_prompt_ends_before_the_last_reply_of_a_conversation() -> None:
    prompt = make_prompt(Conversation("1", CHAT, "chats", "en"))
    assert (prompt.turns, prompt.reply) == (CHAT[:4], "a2")


def test_a_conversation_that_ends_with_the_user_has_no_good_reply() -> None:
    prompt = make_prompt(Conversation("1", CHAT[:2], "chats", "en"))
    assert (prompt.turns, prompt.reply) == (CHAT[:2], "")


def test_the_good_reply_of_a_preference_is_the_chosen_one() -> None:
    prompt = make_prompt(Preference("1", CHAT[:2], "good", "bad", "pairs", "ary"))
    assert (prompt.turns, prompt.reply, prompt.language) == (CHAT[:2], "good", "ary")


def test_the_limit_holds_per_source_and_selects_the_same_prompts_every_time(corpus: Artifact) -> None:
    config = PromptsConfig(corpus=CORPUS, limit=5)
    prompts, _ = read_prompts(config, corpus)
    assert [prompt.source for prompt in prompts] == ["ar_chats"] * 5 + ["en_chats"] * 5
    assert read_prompts(config, corpus)[0] == prompts
    every, _ = read_prompts(PromptsConfig(corpus=CORPUS, sources=("en_chats",)), corpus)
    assert {prompt.id for prompt in prompts if prompt.source == "en_chats"} == set(sorted(one.id for one in every)[:5])


def test_a_repeated_prompt_is_read_once(tmp_path: Path) -> None:
    draft = Store(str(tmp_path)).begin(Ref.parse("corpus/twice@v1"), {"of": "tests"}, ())
    pairs = [Preference(str(n), (Turn("user", f"q{n % 3}"),), "a", "b", "s", "en") for n in range(8)]
    write_part(draft.location, RecordKind.preferences, "s", "train", pairs)
    corpus = draft.commit({"sources": {"s": {"language": "en"}}})
    prompts, num_repeated = read_prompts(PromptsConfig(corpus=str(corpus.ref), kind=RecordKind.preferences), corpus)
    assert ([prompt.id for prompt in prompts], num_repeated) == (["0", "1", "2"], 5)


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"sources": ("en_chatz",)}, ConfigError, "prompts.sources names en_chatz, .*; did you mean en_chats?"),
        ({"sources": ("x",)}, ConfigError, "there are ar_chats, en_chats"),
        ({"split": "test"}, ConfigError, "prompts.split=test is no split of ar_chats; there are train, validation"),
    ],
)
def test_missing_sources_and_splits_are_refused(
    values: dict[str, object], error: type[Exception], said: str, corpus: Artifact
) -> None:
    with pytest.raises(error, match=said):
        check_prompts(PromptsConfig(corpus=CORPUS, **values), corpus)  # type: ignore[arg-type]


def test_a_corpus_without_the_kind_is_refused(tmp_path: Path) -> None:
    draft = Store(str(tmp_path)).begin(Ref.parse("corpus/none@v1"), {"of": "tests"}, ())
    with pytest.raises(DataError, match="holds no conversations to take prompts from"):
        check_prompts(PromptsConfig(corpus="corpus/none@v1"), draft.commit({"sources": {}}))


@pytest.mark.parametrize("kind", [RecordKind.documents, RecordKind.questions])
def test_prompts_come_from_conversations_and_preferences_only(kind: RecordKind) -> None:
    with pytest.raises(ConfigError, match=rf"prompts\.kind must be conversations or preferences, got {kind}"):
        PromptsConfig(corpus=CORPUS, kind=kind)
    with pytest.raises(ConfigError, match=r"prompts\.limit must be >= 1"):
        PromptsConfig(corpus=CORPUS, limit=0)
