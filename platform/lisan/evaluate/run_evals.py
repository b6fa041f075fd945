"""The `run_evals` stage: scores a model on a suite of tasks.

Writes a `report` artifact: metrics and counts in the manifest, item results in `results/<task>.parquet` and the page
`report.html`. Reports and training losses agree because both use `model.score`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lisan.cluster.precision import find_precision, resolve_precision
from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.progress import doing
from lisan.core.references import fetch_named, local_path, parse_refs
from lisan.core.stage import Run, Stage
from lisan.corpus.reader import list_sources, read_records, shard_paths
from lisan.data.config import Overflow, PackingConfig
from lisan.data.examples import count_spelt_controls
from lisan.data.packing import PackingCounts, fit, lay_out, pack
from lisan.evaluate.config import EvalConfig, PromptStyle, TaskConfig
from lisan.evaluate.report_page import render_page
from lisan.evaluate.results import ItemResult, TaskReport, check_finite, describe, make_result, print_task
from lisan.evaluate.tasks import RECORDS, Item, TaskCounts, choose_records, fit_items, make_item
from lisan.model.folder import check_folder
from lisan.model.load import load_model, read_max_positions
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.tokenizer.tokenizer import check_ids, load_tokenizer


def run_evals(config: EvalConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    corpus = draft.parent(Kind.corpus)
    tokenizer, scorer, precision = _open_model(config, draft)
    run.log_tag("precision", precision)
    done: list[TaskReport] = []
    for name in config.tasks:
        start = time.monotonic()
        report = score_task(config, name, corpus, tokenizer, scorer)
        _write_results(draft, report)
        run.log_metrics({f"{name}/{metric}": value for metric, value in report.metrics.items()})
        print_task(report, config.context_length, time.monotonic() - start)
        done.append(report)
    html = render_page(config, done, precision).encode()
    (draft.location / "report.html").write_bytes(html)
    run.log_file("report.html", html)
    print(f"  page: {draft.location / 'report.html'}", flush=True)
    return {
        "metrics": {f"{one.name}/{metric}": value for one in done for metric, value in one.metrics.items()},
        "counts": {one.name: one.numbers for one in done},
        "model": config.model,
        "corpus": config.corpus,
        "precision": precision,
    }


def _open_model(config: EvalConfig, draft: Draft) -> tuple[Any, Scorer, str]:
    """Return the tokenizer, the scorer and the name of its precision."""
    folder = _find_model(config, draft.store)
    tokenizer = load_tokenizer(folder)
    _check_template(config, tokenizer)
    device = "cuda" if config.cluster.use_gpu and torch.cuda.is_available() else "cpu"
    resolved = resolve_precision(config.precision, [find_precision(device)])
    print(f"  {resolved}", flush=True)
    with doing(f"loading {config.model}"):
        scorer = Scorer(load_model(folder, resolved.precision.dtype).to(device).eval(), exact_logits=True)
    return tokenizer, scorer, resolved.precision.value


def score_task(config: EvalConfig, name: str, corpus: Artifact, tokenizer: Any, scorer: Scorer) -> TaskReport:
    """Score one task; DataError when no record can be scored or a log-probability is not finite."""
    task, counts = config.task(name), TaskCounts()
    records = choose_records(task, read_records(corpus, RECORDS[task.kind], task.split, task.sources), counts)
    counts.spelt_controls = count_spelt_controls(tokenizer, records)
    items = [make_item(task, record, tokenizer) for record in records]
    items = fit_items(items, config.context_length, tokenizer.bos_token_id, counts)
    if not items:
        raise DataError(_nothing_to_score(name, task, corpus.ref, counts))
    highest = max(int(example.input_ids.max()) for item in items for example in item.candidates)
    check_ids(f"tasks.{name}", highest, len(scorer.model.get_input_embeddings().weight), tokenizer)
    with doing(f"scoring {len(items):,} items of {name}"):
        results = score_items(scorer, items, config)
    check_finite(name, results, config.model)
    return TaskReport(name, task, counts, items, results)


def _check_template(config: EvalConfig, tokenizer: Any) -> None:
    chats = [name for name in config.tasks if config.task(name).prompt is PromptStyle.chat]
    if chats and tokenizer.chat_template is None:
        key = f"tasks.{chats[0]}.prompt" if config.tasks[chats[0]].prompt else "prompt"
        raise ConfigError(
            f"{key} is chat and the tokenizer of {config.model} has no chat template; set it to plain, "
            "choose a tuned model, or give the tokenizer a template with expand_tokenizer chat_template=chatml"
        )


def _nothing_to_score(name: str, task: TaskConfig, corpus: Ref, counts: TaskCounts) -> str:
    if counts.left_out:
        return f"tasks.{name} can score none of its {counts.left_out.total():,} records: {describe(counts.left_out)}"
    return (
        f"tasks.{name} finds no records in {corpus}: sources {', '.join(task.sources)}, split {task.split}, "
        f"where {dict(task.where)}"
    )


@torch.no_grad()
def score_items(scorer: Scorer, items: Sequence[Item], config: EvalConfig) -> list[ItemResult]:
    """Score every candidate of every item, packed into rows without attention between candidates.

    A document longer than a row is scored in spans, as in training; candidates with a prompt must fit a row.
    """
    length = config.context_length
    examples = [(index, example) for index, item in enumerate(items) for example in item.candidates]
    spans = []
    for number, (index, example) in enumerate(examples):
        assert len(example) <= length or len(items[index].candidates) == 1  # fit_items guarantees it
        spans += [(number, span[0]) for span in fit([(example,)], length, Overflow.split, PackingCounts())]
    owner = {id(span): number for number, span in spans}
    rows = list(pack(((span,) for _, span in spans), length, PackingConfig(), PackingCounts()))
    logps = [0.0] * len(examples)
    device = next(scorer.parameters()).device
    for start in range(0, len(rows), config.batch_rows):
        batch_rows = rows[start : start + config.batch_rows]
        laid = [lay_out(row, length, 0) for row in batch_rows]
        batch = collate(
            np.stack([ids for ids, _ in laid]),
            np.stack([labels for _, labels in laid]),
            [row.doc_lens for row in batch_rows],
        ).to(device)
        sums = sum_by_document(scorer(batch), batch).tolist()
        for span, logp in zip((example for row in batch_rows for example in row.examples), sums, strict=True):
            logps[owner[id(span)]] += logp
    by_item: list[list[float]] = [[] for _ in items]
    for (index, _), logp in zip(examples, logps, strict=True):
        by_item[index].append(logp)
    return [make_result(item, found) for item, found in zip(items, by_item, strict=True)]


def _write_results(draft: Draft, report: TaskReport) -> None:
    length = report.task.length
    records = [
        {**asdict(result), "chosen": result.choose(length), "credit": result.credit(length)}
        for result in report.results
    ]
    file = draft.location / "results" / f"{report.name}.parquet"
    file.parent.make()
    pq.write_table(pa.Table.from_pylist(records), file.full_path, filesystem=file.file_system)


def _parents(config: EvalConfig) -> tuple[Ref, ...]:
    return (Ref.parse(config.corpus, Kind.corpus), *parse_refs(config.model, kind=Kind.model))


def _find_model(config: EvalConfig, store: Store) -> str:
    """Return the local folder or hub id of the model."""
    return fetch_named(store, config.model, Kind.model)


def _check(config: EvalConfig, store: Store) -> None:
    check_model_path(config.model)
    folder = _find_model(config, store)
    check_folder(folder)
    longest = read_max_positions(folder)
    if longest is not None and config.context_length > longest:
        raise ConfigError(
            f"context_length is {config.context_length:,} and {config.model} has positions for {longest:,} tokens; "
            f"set context_length={longest}"
        )
    corpus = store.open(Ref.parse(config.corpus, Kind.corpus))
    for name, task in config.tasks.items():
        kind = RECORDS[task.kind]
        known = list_sources(corpus, kind)
        for source in task.sources:
            if source not in known:
                raise ConfigError(
                    f"tasks.{name}.sources names {source}, {corpus.ref} has {', '.join(known) or 'none'} of {kind}; "
                    f"name one of these, leave the task out with '~tasks.{name}', or choose another suite"
                )
            shard_paths(corpus, kind, source, task.split)


def check_model_path(model: str) -> None:
    """Refuse a local path without a model; names that are no path are hub ids."""
    folder = local_path(model)
    if folder is not None and not (folder / "config.json").exists():
        fault = "has no config.json" if folder.is_dir() else "is no folder"
        raise ConfigError(f"model={model} {fault}; name a model folder, model/name@version or a hub id")


EVALS = Stage("run_evals", Kind.report, EvalConfig, _parents, run_evals, _check, inputs=lambda config: (config.model,))
