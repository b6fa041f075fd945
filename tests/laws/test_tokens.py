"""Laws of tokens: ids that stay, text that comes back, rows that mean what their documents mean."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bilingual import ALL_BASES, DIVERSE, build, write_base, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONTEXT, conversation, document

from lisan.core.artifact import Store
from lisan.data.config import MixConfig, MixStageConfig, PackingConfig, Strategy
from lisan.data.examples import encode_records
from lisan.data.mix import make_plan
from lisan.data.packing import PackingCounts, lay_out, pack
from lisan.model.score import Scorer, collate
from lisan.records.records import Turn
from lisan.tokenizer.chat.chat_template import encode_conversation, encode_prompt, encode_reply
from lisan.tokenizer.expand.config import Gates
from lisan.tokenizer.expand.gates import try_round_trips
from lisan.tokenizer.labels import IGNORE_INDEX, Example
from lisan.tokenizer.tokenizer import load_tokenizer

SCRIPTS = [
    "english",
    "العربية",
    "הבריאה",
    "русский",
    "हिन्दी",
    "日本語",
    "한국어",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ",
    "ไทย",
    "🌍👨‍👩‍👧",
    "a\r\n\tb",
    "\u200f\u064b",
]


ROLES = {
    "llama": {"eos_token": "<|end_of_text|>"},
    **{
        name: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        for name in ("llama2", "mistral", "t5", "xlmr")
    },
}


@pytest.fixture(scope="module", params=sorted(ALL_BASES))
def expansion(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A base tokenizer and its expansion by Arabic pieces."""
    root = tmp_path_factory.mktemp(request.param)
    write_corpus(root)
    base = write_base(root / "base", ALL_BASES[request.param](), ROLES.get(request.param))
    return load_tokenizer(base), load_tokenizer(build(root, base=base, gates=Gates(min_factor=0)))


def test_every_old_id_keeps_its_piece(expansion: tuple[Any, Any]) -> None:
    base, expanded = expansion
    old = base.get_vocab()
    assert len(expanded) > len(base)
    assert {piece: expanded.get_vocab()[piece] for piece in old} == old


def test_text_without_the_target_script_keeps_its_ids(expansion: tuple[Any, Any]) -> None:
    base, expanded = expansion
    plain = [text for text in (*DIVERSE, *SCRIPTS) if not any("\u0600" <= letter <= "\u06ff" for letter in text)]
    assert len(plain) > 10
    assert [expanded.encode(text) for text in plain] == [base.encode(text) for text in plain]


@pytest.mark.parametrize("text", [*DIVERSE, *SCRIPTS])
def test_decoding_gives_the_text_back_in_every_script(text: str, expansion: tuple[Any, Any], tokenizer: Any) -> None:
    base, expanded, new = (one.decode(one.encode(text, add_special_tokens=False)) for one in (*expansion, tokenizer))
    assert new == text
    if base == text:
        assert expanded == text
    assert try_round_trips(*expansion, [text])["lost_texts"] == []


@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=200, deadline=None)
def test_decoding_gives_any_text_back(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def encoded(tokenizer: Any, num: int) -> list[Example]:
    """Return documents of both languages and conversations, ragged, none longer than a row."""
    documents = [document(source, index) for index in range(num) for source in ("en_text", "ar_text")]
    chats = [conversation("en_chats", index) for index in range(num)]
    items = [item[0] for records in (documents, chats) for item in encode_records(tokenizer, records)]
    return [example for example in items if len(example) <= CONTEXT]


def score_rows(scorer: Scorer, rows: list[Any]) -> torch.Tensor:
    laid = [lay_out(row, CONTEXT, 0) for row in rows]
    batch = collate(
        np.stack([ids for ids, _ in laid]), np.stack([labels for _, labels in laid]), [row.doc_lens for row in rows]
    )
    with torch.no_grad():
        logps: torch.Tensor = scorer(batch)
    return logps


def test_the_packed_loss_is_the_token_weighted_mean_of_unpacked_losses(tokenizer: Any, scorer: Scorer) -> None:
    examples = encoded(tokenizer, 12)
    rows = list(pack([(example,) for example in examples], CONTEXT, PackingConfig(min_free=0), PackingCounts()))
    assert len(rows) < len(examples) / 1.5
    packed = -float(score_rows(scorer, rows).sum())
    num_targets = sum(int((example.labels[1:] >= 0).sum()) for example in examples)
    alone, counts = [], []
    scorer.model.set_attn_implementation("sdpa")
    for example in examples:  # without our mask, positions and batching: transformers' own loss
        ids, labels = (torch.from_numpy(array.astype(np.int64))[None] for array in (example.input_ids, example.labels))
        with torch.no_grad():
            alone.append(float(scorer.model(input_ids=ids, labels=labels).loss))
        counts.append(int((example.labels[1:] >= 0).sum()))
    assert packed / num_targets == pytest.approx(np.average(alone, weights=counts), rel=1e-5)


def test_no_token_of_a_document_changes_when_another_of_its_row_does(tokenizer: Any, scorer: Scorer) -> None:
    examples = encoded(tokenizer, 12)
    row = next(
        row
        for row in pack([(e,) for e in examples], CONTEXT, PackingConfig(min_free=0), PackingCounts())
        if len(row.doc_lens) >= 3
    )
    before = score_rows(scorer, [row])[0]
    first, second = row.doc_lens[:2]
    middle = row.examples[1]
    other = (middle.input_ids + 7) % 600 + 20
    row.examples[1] = Example(other, np.where(middle.labels >= 0, other, IGNORE_INDEX))
    after = score_rows(scorer, [row])[0]
    changed = slice(first, first + second)
    assert not torch.equal(before[changed], after[changed])
    assert torch.equal(before[:first], after[:first])
    assert torch.equal(before[first + second :], after[first + second :])


def test_a_document_scores_the_same_wherever_it_lies_in_a_row(tokenizer: Any, scorer: Scorer) -> None:
    first, second, *_ = (example for example in encoded(tokenizer, 12) if 5 < len(example) < 25)
    forth, back = (
        next(pack([pair], CONTEXT, PackingConfig(), PackingCounts())) for pair in ((first, second), (second, first))
    )
    one, two = score_rows(scorer, [forth, back])
    assert torch.allclose(one[: len(first)], two[len(second) : len(second) + len(first)], atol=1e-4)


@pytest.mark.parametrize("strategy", Strategy)
def test_packing_keeps_every_token_once(strategy: Strategy, tokenizer: Any) -> None:
    examples = encoded(tokenizer, 20)
    config = PackingConfig(strategy=strategy, open_rows=3, window_items=11)
    rows = list(pack([(example,) for example in examples], CONTEXT, config, PackingCounts()))
    packed = sorted(token for row in rows for example in row.examples for token in example.input_ids.tolist())
    assert packed == sorted(token for example in examples for token in example.input_ids.tolist())
    assert all(sum(row.doc_lens) <= CONTEXT for row in rows)
    if strategy is not Strategy.concat:
        whole = sorted(example.input_ids.tobytes() for row in rows for example in row.examples)
        assert whole == sorted(example.input_ids.tobytes() for example in examples)


SIZES = {"ar": 700, "en": 1300, "par": 50}


MIX = MixConfig(
    weights={"ar": 0.6, "en": 0.35, "par": 0.05},
    stages={"anneal": MixStageConfig(from_step=41, weights={"ar": 0.5, "par": 0.5})},
    epoch_caps={"par": 30},
    seed=3,
)


def test_the_plan_is_the_same_for_every_number_of_workers() -> None:
    step_rows, num_steps = 24, 60
    whole = make_plan(SIZES, MIX, num_steps, step_rows).rows(0, step_rows * num_steps)
    for world_size in (1, 2, 3, 8):
        plan = make_plan(SIZES, MIX, num_steps, step_rows)
        share = step_rows // world_size
        parts = [
            plan.rows(step * step_rows + rank * share, step * step_rows + (rank + 1) * share)
            for step in range(num_steps)
            for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


def test_the_plan_is_the_same_in_another_process_and_from_any_place() -> None:
    code = (
        "import numpy as np; from lisan.data.config import *; from lisan.data.mix import *; "
        f"plan = make_plan({SIZES}, {MIX!r}, 60, 24); "
        "print(*np.concatenate([plan.rows(place, place + 10) for place in range(1430, -1, -10)][::-1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [int(row) for row in done.stdout.split()] == make_plan(SIZES, MIX, 60, 24).rows(0, 1440).tolist()


def test_an_epoch_reads_every_row_once() -> None:
    """Rows of one source among others: the first 700 of ar are all of ar, in spite of a change of weights between."""
    rows = make_plan(SIZES, MIX, 60, 24).rows(0, 60 * 24)
    arabic = rows[rows < 700]
    assert len(arabic) > 700
    assert sorted(arabic[:700].tolist()) == list(range(700))


def test_a_plan_of_one_source_reads_the_whole_source_before_it_repeats_a_row() -> None:
    plan = make_plan({"only": 1000}, MixConfig(seed=9), 3000, 1)
    for epoch in range(3):
        assert sorted(plan.rows(1000 * epoch, 1000 * epoch + 1000).tolist()) == list(range(1000))
    assert not np.array_equal(plan.rows(0, 1000), plan.rows(1000, 2000))


TURNS = (
    Turn("system", "Be short."),
    Turn("user", "ما هي عاصمة المغرب؟"),
    Turn("assistant", "الرباط."),
    Turn("user", "And of France?"),
)


@pytest.mark.parametrize(
    "turns", [TURNS[:2], TURNS, TURNS[1:2], (Turn("user", "two\n\nlines  "),), (Turn("user", ""),)]
)
def test_a_training_example_begins_with_exactly_the_prompt_that_serving_renders(
    turns: tuple[Turn, ...], tokenizer: Any
) -> None:
    prompt = encode_prompt(tokenizer, turns)
    served = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    reply = Turn("assistant", "الرباط Paris")
    for example in (encode_conversation(tokenizer, (*turns, reply)), encode_reply(tokenizer, turns, reply.content)):
        assert example.input_ids[: len(prompt)].tolist() == prompt == served
        assert (example.labels[len(prompt) :] == example.input_ids[len(prompt) :]).all()
        assert tokenizer.decode(example.input_ids[len(prompt) :]) == "الرباط Paris<|im_end|>"


def test_encoding_twice_gives_the_same_rows(tiny_store: Store, tmp_path: Path) -> None:
    from shutil import copytree

    from tiny import encode

    from lisan.core.artifact import Ref
    from lisan.records.kinds import RecordKind

    for name in ("corpus", "tokenizer"):
        copytree(Path(tiny_store.root.root) / name, tmp_path / name)
    again = encode(Store(str(tmp_path)), RecordKind.documents)
    files = {name: facts["sha256"] for name, facts in again.manifest["files"].items()}
    first = tiny_store.open(Ref.parse("tokens/documents@v1")).manifest["files"]
    assert files == {name: facts["sha256"] for name, facts in first.items()}
