"""Laws of evaluation: an oracle is right, a uniform model guesses, and batching changes nothing."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import SHAPE, document, make_model, preference, question

from lisan.core.artifact import Ref, Store
from lisan.data.examples import encode_records
from lisan.data.rows import RowReader
from lisan.evaluate.config import EvalConfig, Length, PromptStyle, TaskConfig, TaskKind
from lisan.evaluate.metrics import bits_per_byte
from lisan.evaluate.results import ItemResult, aggregate
from lisan.evaluate.run_evals import score_items
from lisan.evaluate.tasks import Item, make_items
from lisan.model.config import ModelConfig
from lisan.model.score import Batch, Scorer, collate
from lisan.train.objectives import causal_lm

CHOICE = TaskConfig(kind=TaskKind.multiple_choice, sources=("en_questions",))
SETTING = EvalConfig(name="t", model="t", corpus="corpus/tiny@v1", tasks={"t": CHOICE}, context_length=96, batch_rows=4)


class Oracle(torch.nn.Module):
    """Gives every label of the texts that it knows to be right a log-probability of almost 0, and others -9."""

    def __init__(self, right: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.right, self.weight = right, torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> torch.Tensor:
        logps = torch.zeros(batch.labels.shape)
        for number in batch.doc_numbers:
            here = batch.documents == number
            known = tuple(batch.input_ids[here].tolist()) in self.right
            logps[here] = torch.where(batch.labels[here] >= 0, -0.01 if known else -9.0, 0.0)
        return logps


def oracle(items: list[Item]) -> Oracle:
    return Oracle({tuple(item.candidates[item.answer].input_ids.tolist()) for item in items})


@pytest.mark.parametrize("length", list(Length))
@pytest.mark.parametrize("prompt", list(PromptStyle))
@pytest.mark.parametrize("kind", [TaskKind.multiple_choice, TaskKind.preference])
def test_an_oracle_scores_1(kind: TaskKind, prompt: PromptStyle, length: Length, tokenizer: Any) -> None:
    make, source = (question, "en_questions") if kind is TaskKind.multiple_choice else (preference, "en_pairs")
    task = TaskConfig(kind=kind, sources=(source,), prompt=prompt, length=length)
    items = make_items(task, [make(source, index) for index in range(40)], tokenizer)
    metrics = aggregate(task, score_items(oracle(items), items, SETTING))
    assert metrics == {"accuracy": 1.0, "accuracy_stderr": 0.0}


def test_a_uniform_model_scores_chance_within_three_standard_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(2000, 4, generator=generator).tolist()
    results = [
        ItemResult(str(index), tuple(row), (9,) * 4, (9,) * 4, (9,) * 4, index % 4) for index, row in enumerate(logps)
    ]
    metrics = aggregate(CHOICE, results)
    assert metrics["accuracy_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 2000), rel=0.05)
    assert abs(metrics["accuracy"] - 0.25) < 3 * metrics["accuracy_stderr"]


def test_an_untrained_model_scores_chance_within_three_standard_errors(tokenizer: Any, scorer: Scorer) -> None:
    records = [
        replace(question("en_questions", index), choices=("Rabat", "Paris", "Cairo", "Tunis")) for index in range(300)
    ]
    items = make_items(CHOICE, records, tokenizer)
    metrics = aggregate(CHOICE, score_items(scorer, items, SETTING))
    assert abs(metrics["accuracy"] - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 300)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary_for_every_token(tokenizer: Any) -> None:
    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 640, {}, seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_text",))
    records = [document("ar_text", index) for index in range(30)]
    metrics = aggregate(task, score_items(Scorer(model).eval(), make_items(task, records, tokenizer), SETTING))
    expected = math.log2(640) / metrics["bytes_per_token"]
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_scoring_in_batches_is_scoring_one_by_one(tokenizer: Any, scorer: Scorer) -> None:
    items = make_items(CHOICE, [question("en_questions", index) for index in range(30)], tokenizer)
    together = score_items(scorer, items, SETTING)
    alone = [
        score_items(scorer, [replace(item, candidates=(candidate,))], SETTING)[0].logps[0]
        for item in items
        for candidate in item.candidates
    ]
    assert [logp for result in together for logp in result.logps] == pytest.approx(alone, abs=1e-4)
    for batch_rows, context_length in ((1, 96), (16, 300)):
        other = score_items(scorer, items, replace(SETTING, batch_rows=batch_rows, context_length=context_length))
        assert [r.logps for r in other] == [pytest.approx(r.logps, abs=1e-4) for r in together]


def test_the_order_of_items_changes_no_result(tokenizer: Any, scorer: Scorer) -> None:
    items = make_items(CHOICE, [question("en_questions", index) for index in range(20)], tokenizer)
    forth = {result.id: result.logps for result in score_items(scorer, items, SETTING)}
    back = {result.id: result.logps for result in score_items(scorer, items[::-1], SETTING)}
    assert forth == {name: pytest.approx(logps, abs=1e-4) for name, logps in back.items()}


def test_a_report_and_a_training_loss_cannot_disagree(tiny_store: Store, tokenizer: Any, scorer: Scorer) -> None:
    """Bits per byte of the training documents are the training loss of their packed rows."""
    rows = RowReader(tiny_store.open(Ref.parse("tokens/documents@v1")))
    some = rows.read(range(len(rows)))
    with torch.no_grad():
        loss = causal_lm(scorer, collate(some.input_ids, some.labels, some.doc_lens))
    records = [document(source, index) for source in ("ar_text", "en_text") for index in range(80)]
    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_text", "en_text"), max_records=1000)
    items = make_items(task, records, tokenizer)
    # Rows split what is longer than they are; the same context length splits the same.
    metrics = aggregate(task, score_items(scorer, items, replace(SETTING, context_length=rows.context_length)))
    num_bytes = sum(len(record.text.encode()) for record in records)
    assert metrics["bits_per_byte"] == pytest.approx(bits_per_byte(float(loss.total), num_bytes), rel=1e-5)


def test_a_candidates_log_probability_covers_the_candidate_alone(tokenizer: Any, scorer: Scorer) -> None:
    """It is what transformers' own logits give for the candidate's tokens after the prompt."""
    [item] = make_items(CHOICE, [question("en_questions", 3)], tokenizer)
    [result] = score_items(scorer, [item], SETTING)
    scorer.model.set_attn_implementation("sdpa")
    for candidate, logp in zip(item.candidates, result.logps, strict=True):
        ids = torch.tensor(candidate.input_ids.tolist())[None]
        with torch.no_grad():
            logps = scorer.model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        start = int((candidate.labels >= 0).argmax())
        assert tokenizer.decode(candidate.input_ids[start:]).strip() in question("en_questions", 3).choices
        assert logp == pytest.approx(float(logps[start - 1 :].sum()), abs=1e-4)


def test_shuffled_choices_move_with_their_answer(tokenizer: Any, scorer: Scorer) -> None:
    """A permutation of the choices is a permutation of the results: severity 0 of every later perturbation."""
    record = question("en_questions", 1)
    shuffled = replace(record, choices=record.choices[::-1], answer=3 - record.answer)
    [forth], [back] = (score_items(scorer, make_items(CHOICE, [one], tokenizer), SETTING) for one in (record, shuffled))
    assert back.logps[::-1] == pytest.approx(forth.logps, abs=1e-4)
    assert back.choose(Length.bytes) == tuple(3 - place for place in forth.choose(Length.bytes))


def test_encoding_for_evaluation_is_encoding_for_training(tokenizer: Any) -> None:
    records = [document("ar_text", index) for index in range(5)]
    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_text",))
    items = sorted(make_items(task, records, tokenizer), key=lambda item: int(item.id.rpartition("-")[2]))
    trained = [example for [example] in encode_records(tokenizer, records)]
    assert [item.candidates[0].input_ids.tolist() for item in items] == [
        example.input_ids.tolist() for example in trained
    ]
