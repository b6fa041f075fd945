"""The three training stages: what each trains on, with which objective, from which model, to which model.

In: a config, a tokens artifact and a model. Out: a `model` artifact: a Hugging Face folder with weights, tokenizer,
chat template and generation defaults. Always: `run_worker(job, worker)` is all that a process does, whoever started
it.
"""

from typing import Any

from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import Run, Stage
from lisan.tokens.chat import template_hash
from lisan.train.checkpoint import find_latest
from lisan.train.job import DpoConfig, TrainConfig, TrainJob, plan_run
from lisan.train.launch import launch
from lisan.train.ledger import realised
from lisan.train.loop import check_rows
from lisan.train.outcome import check_context, check_vocabulary, open_places
from lisan.train.scores import check_scores
from lisan.vocabulary.tokenizer import open_tokenizer


def build(config: TrainConfig, draft: Draft, run: Run) -> dict[str, Any]:
    """Start the workers that the cluster config asks for and return what they measured."""
    tokens = draft.parent(Kind.tokens)
    job = TrainJob(config, tokens, draft.parents, draft.store.checkpoints(draft.ref), draft.location, run)
    metrics = launch(job)
    if not (draft.location / "config.json").exists():
        raise DataError(f"{draft.ref} trained without leaving a model; see the workers' log")
    latest = find_latest(job.checkpoints)
    assert latest is not None
    where = {"step": latest.step, "uri": str(latest.location), "bytes": latest.num_bytes, "sha256": latest.digest}
    tokenizer = open_tokenizer(open_places(config, draft.parents).tokenizer)
    known = {"tokenizer_hash": tokens.facts["tokenizer_hash"], "template_hash": template_hash(tokenizer)}
    return {**metrics, "steps": latest.step, **realised(latest.facts), **known, "checkpoint": where}


def check(config: TrainConfig, store: Store) -> None:
    """Refuse, before a worker starts, what cannot train: rows that do not divide, tokens of another vocabulary, a wrong mix."""
    check_rows(config.loop, max(1, config.cluster.num_workers))
    tokens = store.open(Ref.parse(config.tokens, Kind.tokens))
    wanted = "preferences" if isinstance(config, DpoConfig) else None
    kind = tokens.facts["record_kind"]
    if (kind == "preferences") != (wanted == "preferences"):
        raise ConfigError(
            f"{tokens.ref} holds {kind}; train_dpo needs preferences and the others need documents or conversations"
        )
    parents = tuple(store.open(ref) for ref in parents_of(config))
    check_vocabulary(config, tokens, parents)
    check_context(config, tokens, parents)
    if isinstance(config, DpoConfig):
        check_scores(config, tokens, parents)
    plan_run(config, tokens)


def parents_of(config: TrainConfig) -> tuple[Ref, ...]:
    refs = [Ref.parse(config.tokens, Kind.tokens)]
    named = (config.model.path, config.model.tokenizer, config.model.new_rows.donor)
    refs += [Ref.parse(text) for text in named if text and Ref.looks_like(text)]
    if isinstance(config, DpoConfig) and config.reference is not None:
        refs.append(Ref.parse(config.reference, Kind.scores))
    return tuple(refs)


CPT = Stage("train_cpt", Kind.model, TrainConfig, parents_of, build, check)
SFT = Stage("train_sft", Kind.model, TrainConfig, parents_of, build, check)
DPO = Stage("train_dpo", Kind.model, DpoConfig, parents_of, build, check)
