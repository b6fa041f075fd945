"""The `run_evals` stage: a model and a suite of tasks to a report.

In: a model and a corpus with held-out records. Out: a `report` artifact: metrics in the manifest, every item's result
in `results/<task>.parquet`. Always: the same `score` as training, so a report and a loss cannot disagree.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.integrity import fetch_folder
from lisan.core.stage import Run, Stage
from lisan.corpus.reader import list_sources, read_records
from lisan.evaluate.config import EvalConfig
from lisan.evaluate.tasks import RECORDS, Item, Length, Result, aggregate, make_items
from lisan.model.load import load_model
from lisan.model.precision import find_precision, resolve_precision
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.tokens.packing import Overflow, PackingConfig, PackingCounts, fit, lay_out, pack
from lisan.vocabulary.tokenizer import check_ids, load_tokenizer


def run_evals(config: EvalConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    corpus = draft.parent(Kind.corpus)
    models = [parent for parent in draft.parents if parent.ref.kind is Kind.model]
    place = str(fetch_folder(models[0].location)) if models else config.candidate
    tokenizer = load_tokenizer(place)
    device = "cuda" if config.cluster.use_gpu and torch.cuda.is_available() else "cpu"
    resolved = resolve_precision(config.precision, [find_precision(device)])
    print(f"  {resolved}", flush=True)
    run.log_tag("precision", str(resolved.precision))
    scorer = Scorer(load_model(place, resolved.precision.dtype).to(device).eval())
    metrics: dict[str, float] = {}
    for name, task in config.tasks.items():
        start = time.monotonic()
        records = read_records(corpus, RECORDS[task.kind], task.split, task.sources)
        items = make_items(task, records, tokenizer)
        if not items:
            raise DataError(
                f"tasks.{name} finds no records in {corpus.ref}: sources {', '.join(task.sources)}, split {task.split}, "
                f"where {dict(task.where)}"
            )
        highest = max(int(example.input_ids.max()) for item in items for example in item.candidates)
        check_ids(f"tasks.{name}", highest, len(scorer.model.get_input_embeddings().weight), tokenizer)
        results = score_items(scorer, items, config)
        _write_results(draft, name, results, task.length)
        found = {f"{name}/{metric}": value for metric, value in aggregate(task, results).items()}
        metrics |= found
        run.log_metrics(found)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in found.items())
        print(f"  {shown}  ({len(items):,} items, {time.monotonic() - start:.1f} s)", flush=True)
    return {
        "metrics": metrics,
        "candidate": config.candidate,
        "corpus": config.corpus,
        "precision": resolved.precision.value,
    }


@torch.no_grad()
def score_items(scorer: Scorer, items: Sequence[Item], config: EvalConfig) -> list[Result]:
    """Score every candidate of every item, many to a row; candidates do not see each other."""
    length = config.context_length
    examples = [(index, example) for index, item in enumerate(items) for example in item.candidates]
    # Parts of a long candidate are scored on their own and summed.
    parts = [
        (place, part[0])
        for place, (_, example) in enumerate(examples)
        for part in fit([(example,)], length, Overflow.split, PackingCounts())
    ]
    owner = {id(part): place for place, part in parts}
    rows = list(pack(((part,) for _, part in parts), length, PackingConfig(), PackingCounts()))
    logps = [0.0] * len(examples)
    device = next(scorer.parameters()).device
    for start in range(0, len(rows), config.batch_rows):
        some = rows[start : start + config.batch_rows]
        laid = [lay_out(row, length, 0) for row in some]
        batch = collate(
            np.stack([ids for ids, _ in laid]), np.stack([labels for _, labels in laid]), [row.doc_lens for row in some]
        ).to(device)
        sums = sum_by_document(scorer(batch), batch).tolist()
        for part, logp in zip((example for row in some for example in row.examples), sums, strict=True):
            logps[owner[id(part)]] += logp
    return _results(items, examples, logps)


def _results(items: Sequence[Item], examples: Sequence[tuple[int, Any]], logps: Sequence[float]) -> list[Result]:
    by_item: list[list[float]] = [[] for _ in items]
    for (index, _), logp in zip(examples, logps, strict=True):
        by_item[index].append(logp)
    return [_result(item, found) for item, found in zip(items, by_item, strict=True)]


def _result(item: Item, logps: Sequence[float]) -> Result:
    num_tokens = sum(int((example.labels >= 0).sum()) for example in item.candidates)
    return Result(item.id, tuple(logps), item.num_bytes, item.answer, item.num_words, num_tokens)


def _write_results(draft: Draft, name: str, results: Sequence[Result], length: Length) -> None:
    table = pa.Table.from_pylist([{**asdict(result), "choice": result.choose(length)} for result in results])
    place = draft.location / "results" / f"{name}.parquet"
    place.file_system.create_dir(place.full_path.rpartition("/")[0], recursive=True)
    pq.write_table(table, place.full_path, filesystem=place.file_system)


def _parents(config: EvalConfig) -> tuple[Ref, ...]:
    model = (Ref.parse(config.candidate, Kind.model),) if Ref.looks_like(config.candidate) else ()
    return (Ref.parse(config.corpus, Kind.corpus), *model)


def _check(config: EvalConfig, store: Store) -> None:
    corpus = store.open(Ref.parse(config.corpus, Kind.corpus))
    for name, task in config.tasks.items():
        known = list_sources(corpus, RECORDS[task.kind])
        missing = [source for source in task.sources if source not in known]
        if missing:
            raise ConfigError(
                f"tasks.{name}.sources names {missing[0]}, {corpus.ref} has {', '.join(known) or 'none'} "
                f"of {RECORDS[task.kind]}"
            )


EVALS = Stage(
    "run_evals", Kind.report, EvalConfig, _parents, run_evals, _check, inputs=lambda config: (config.candidate,)
)
