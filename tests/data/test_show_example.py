"""What show_example prints: decoded examples with what is trained marked, nothing left out."""

import io
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from rich.console import Console
from tiny import conversation, encode, preference

from lisan.core.artifact import Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import StorageConfig
from lisan.data.config import ShowConfig
from lisan.data.rows import RowReader
from lisan.data.show_example import find_runs, make_visible, paint, show
from lisan.records.kinds import RecordKind
from lisan.tokenizer.chat.chat_template import encode_conversation, encode_reply
from lisan.tokenizer.labels import IGNORE_INDEX, Example

CORPUS = {"corpus": "corpus/tiny@v1", "tokenizer": "tokenizer/tiny@v1"}


def printed(store: Store, is_terminal: bool = False, **changes: Any) -> str:
    out = io.StringIO()
    colours = "standard" if is_terminal else None
    console = Console(file=out, force_terminal=is_terminal, highlight=False, soft_wrap=True, color_system=colours)
    show(ShowConfig(storage=StorageConfig(root=store.root.root), **changes), console)
    return out.getvalue()


def test_a_record_is_shown_as_it_is_trained(tiny_store: Store) -> None:
    said = conversation("ar_chats", 1)
    text = printed(tiny_store, **CORPUS, sources=("ar_chats",), num_examples=1, first=1)
    assert f"record 1 of ar_chats, id {said.id}" in text
    question, answer = said.turns[:2]
    assert f"<|im_start|>user↵\n{question.content}<|im_end|>↵\n<|im_start|>assistant↵\n" in text
    assert f"[[{answer.content}<|im_end|>]]↵\n" in text
    assert text.count("[[") == text.count("]]") == 2


def test_a_preference_is_shown_with_both_replies(tiny_store: Store, tokenizer: Any) -> None:
    pair = preference("en_pairs", 0)
    text = printed(tiny_store, **CORPUS, kind=RecordKind.preferences, sources=("en_pairs",), num_examples=1)
    chosen, rejected = text.split("--- chosen: ")[1].split("--- rejected: ")
    for part, reply in ((chosen, pair.chosen), (rejected, pair.rejected)):
        example = encode_reply(tokenizer, pair.prompt, reply)
        trained = int((example.labels != IGNORE_INDEX).sum())
        assert part.startswith(f"{len(example)} tokens, {trained} trained ({trained / len(example):.1%})")
        assert f"[[{reply}<|im_end|>]]" in part


@pytest.mark.parametrize("kind", ["documents", "conversations", "preferences"])
def test_rows_are_shown_whole_with_their_borders(tiny_store: Store, tokenizer: Any, kind: str) -> None:
    reader = RowReader(tiny_store.open(Ref.parse(f"tokens/{kind}@v1")))
    source = reader.sources[-1]
    text = printed(tiny_store, tokens=f"tokens/{kind}@v1", sources=(source,), num_examples=1, first=2)
    rows = reader.read([reader.first_row(source) + 2])
    filled = sum(rows.doc_lens[0])
    trained = int((rows.labels != IGNORE_INDEX).sum())
    assert f"=== row 2 of {source}: {filled} tokens, {trained} trained ({trained / filled:.1%})" in text
    assert text.count("--- document ") == len(rows.doc_lens[0])
    assert (f"--- {rows.input_ids.shape[1] - filled} tokens of padding" in text) == (filled < rows.input_ids.shape[1])
    shown = re.sub(r"(?m)^(?:---|===|in all:).*\n", "", text).replace("[[", "").replace("]]", "").replace("↵\n", "\n")
    assert shown.replace("\n", "") == tokenizer.decode(rows.input_ids[0, :filled]).replace("\n", "")


def test_sources_take_turns_and_the_end_counts_all(tiny_store: Store, tokenizer: Any) -> None:
    text = printed(tiny_store, **CORPUS, num_examples=3)
    assert re.findall(r"=== record (\d) of (\w+)", text) == [("0", "ar_chats"), ("0", "en_chats"), ("1", "ar_chats")]
    said = [conversation(*which) for which in (("ar_chats", 0), ("en_chats", 0), ("ar_chats", 1))]
    examples = [encode_conversation(tokenizer, one.turns) for one in said]
    tokens, trained = sum(map(len, examples)), sum(int((one.labels != IGNORE_INDEX).sum()) for one in examples)
    assert text.splitlines()[-1] == f"in all: {tokens} tokens, {trained} trained ({trained / tokens:.1%})"


def test_a_terminal_has_colours_and_no_brackets(tiny_store: Store) -> None:
    text = printed(tiny_store, is_terminal=True, **CORPUS, sources=("en_chats",), num_examples=1)
    answer = conversation("en_chats", 0).turns[1].content
    assert f"\x1b[32m{answer}\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in text
    assert "\x1b[2;35m<|im_start|>\x1b[0m\x1b[2muser↵" in text
    assert "[[" not in text


def test_a_character_is_never_cut_in_two(tokenizer: Any) -> None:
    """The first token of a part of a document may be half a letter, and it alone is not trained."""
    ids = tokenizer.encode("𓂀 لا", add_special_tokens=False)
    assert "\ufffd" in tokenizer.decode(ids[:1])
    labels = [IGNORE_INDEX, *ids[1:]]
    runs = find_runs(tokenizer, Example(*map(tokenizer_array, (ids, labels))))
    assert [(run.text, run.is_trained) for run in runs] == [("", False), ("𓂀 لا", True)]


def tokenizer_array(ids: list[int]) -> Any:
    import numpy as np

    return np.array(ids, np.int32)


def test_control_characters_cannot_reach_the_terminal(tokenizer: Any) -> None:
    assert make_visible("a\x1b[31m\r\n\tب\x7f\x9b\u200c") == "a␛[31m␍↵\n\tب\\x7f\\x9b\u200c"
    ids = tokenizer.encode("\x1b]0;title\x07", add_special_tokens=False)
    example = Example(*map(tokenizer_array, (ids, ids)))
    assert paint(find_runs(tokenizer, example), in_colour=False).plain == "[[␛]0;title␇]]"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"tokens must be set: add tokens=\.\.\. for rows .* or instead corpus="),
        ({"tokens": "tokens/t@v1", "corpus": "corpus/t@v1"}, "tokens must be set"),
        ({"corpus": "corpus/t@v1"}, "tokenizer must be set to encode a corpus with"),
        ({"tokens": "tokens/t@v1", "tokenizer": "x"}, "tokenizer=x has no effect: tokens are encoded already"),
        ({"tokens": "tokens/t@v1", "kind": RecordKind.documents}, "kind=documents has no effect"),
        ({**CORPUS, "kind": RecordKind.questions}, "kind=questions is for evaluation"),
        ({"tokens": "tokens/t@v1", "num_examples": 0}, "num_examples must be >= 1 and first >= 0, got 0 and 0"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ShowConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": "tokens/documents@v1", "sources": ("x",)}, "tokens/documents@v1 has no source x; sources: ar_text"),
        ({"tokens": "tokens/documents@v1", "first": 10_000}, "first=10000 skips every example of tokens/documents@v1"),
        (
            {**CORPUS, "sources": ("en_text",)},
            "conversations of corpus/tiny@v1 has no source en_text; sources: ar_chats",
        ),
        ({**CORPUS, "split": "test"}, "no split test"),
    ],
)
def test_what_is_not_there_is_one_sentence(tiny_store: Store, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        printed(tiny_store, **changes)


def test_rows_of_a_tokenizer_that_has_changed_are_refused(tiny_store: Store, tmp_path: Any) -> None:
    from shutil import copytree

    copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    draft = store.begin(Ref.parse("tokenizer/tiny@v1"), {"made": "again"}, ())
    for file in Path(tiny_store.root.root, "tokenizer/tiny/v1").glob("*token*.json"):
        (draft.location / file.name).write_bytes(file.read_bytes() + b"\n")
    draft.commit({})
    with pytest.raises(DataError, match="was encoded with another tokenizer/tiny@v1; encode it again"):
        printed(store, tokens="tokens/documents@v1")


def test_rows_that_lie_nowhere_are_not_shown(tiny_store: Store, tmp_path: Path) -> None:
    for name in ("corpus", "tokenizer"):
        copytree(Path(tiny_store.root.root) / name, tmp_path / name)
    store = Store(str(tmp_path))
    encode(store, RecordKind.documents, store_rows=False)
    with pytest.raises(ConfigError, match=r"stores no rows, .* corpus=corpus/tiny@v1 tokenizer=tokenizer/tiny@v1"):
        printed(store, tokens="tokens/documents@v1")
