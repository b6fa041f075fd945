"""The three training stages: what each trains on, with which objective, from which model, to which model.

In: a config, a tokens artifact and a model. Out: a `model` artifact: a Hugging Face folder with weights, tokenizer,
chat template and generation defaults. Always: `run_worker(job, worker)` is all that a process does, whoever started
it.
"""

from typing import Any

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError, TrainingError
from lisan.core.peers import num_peers
from lisan.core.stage import Run, SilentRun, Stage
from lisan.model.parallel import check_sharding
from lisan.tokens.chat import template_hash
from lisan.train.checkpoint import LOSS, Checkpoint, find_best, find_latest
from lisan.train.config import DpoConfig, TrainConfig
from lisan.train.history import leave_page
from lisan.train.job import TrainJob, plan_run
from lisan.train.launch import launch
from lisan.train.ledger import realised
from lisan.train.loop import check_rows
from lisan.train.optim import check_moments
from lisan.train.origin import check_context, check_vocabulary, open_places
from lisan.train.reference import check_scores
from lisan.train.split import check_model
from lisan.vocabulary.tokenizer import open_tokenizer


def build(config: TrainConfig, draft: Draft, run: Run) -> dict[str, Any]:
    """Start the workers that the cluster config asks for and return what they measured."""
    job = make_job(config, draft, run)
    metrics = launch(job)
    latest = check_outcome(job, draft.ref)
    where = {"step": latest.step, "uri": str(latest.location), "bytes": latest.num_bytes, "sha256": latest.digest}
    tokenizer = open_tokenizer(open_places(config, draft.parents).tokenizer)
    leave_page(job.checkpoints, draft.location, run)
    known: dict[str, Any] = {
        "tokenizer_hash": job.tokens.facts["tokenizer_hash"],
        "template_hash": template_hash(tokenizer),
    }
    best = {found.step: found.facts[LOSS] for found in find_best(job.checkpoints, config.loop.keep_best)}
    if best:
        known["best_checkpoints"] = best
    return {**metrics, "steps": latest.step, **realised(latest.facts), **known, "checkpoint": where}


def join(config: TrainConfig, draft: Draft) -> None:
    """Train beside the first process of torchrun, which begins, tracks and finishes what all of them train."""
    launch(make_job(config, draft, SilentRun()))


def make_job(config: TrainConfig, draft: Draft, run: Run) -> TrainJob:
    return TrainJob(config, draft.parents[0], draft.parents, draft.store.checkpoints(draft.ref), draft.location, run)


def check_outcome(job: TrainJob, ref: Ref) -> Checkpoint:
    """Return the last checkpoint of a run that did all it should; TrainingError when a launcher only says so.

    The exit code of a job follows from what lies on storage, not from the workers' farewell.
    """
    num_steps, _ = plan_run(job.config, job.tokens)
    latest = find_latest(job.checkpoints)
    steps = latest.step if latest else 0
    if latest is None or steps != num_steps:
        raise TrainingError(
            f"{ref} ended at step {steps} of {num_steps}; run the same command again to go on from there"
        )
    if not realised(latest.facts)["tokens_seen"]:
        raise TrainingError(
            f"{ref} took {steps} steps and read no token; see the workers' log and delete {job.checkpoints}"
        )
    files = {file.relative_to(job.output): size for file, size in job.output.walk()}
    missing = [name for name in ("config.json", "tokenizer.json") if not files.get(name)]
    if missing or not any(size for name, size in files.items() if name.endswith(".safetensors")):
        lost = missing[0] if missing else "weights (*.safetensors)"
        raise TrainingError(
            f"{ref} took all {steps} steps and left no {lost} in {job.output}; run the same command again, which writes the "
            "model from the last checkpoint"
        )
    return latest


def check(config: TrainConfig, store: Store) -> None:
    """Refuse, before a worker starts, what cannot train: rows that do not divide, tokens of another vocabulary, a wrong mix."""
    num_workers = config.cluster.num_workers or num_peers()
    check_sharding(config.sharding, num_workers, config.cluster.num_nodes)
    check_rows(config.loop, num_workers, config.sharding.tensor_workers)
    check_moments(config.optim)
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
    check_model(config, parents)
    if config.validation.tokens is not None:
        check_held_out(config, store, parents)
    if isinstance(config, DpoConfig):
        check_scores(config, tokens, parents)
    plan_run(config, tokens)
    check_targets(config, tokens)


def check_targets(config: TrainConfig, tokens: Artifact) -> None:
    """Refuse rows of which no token is trained; DataError."""
    sources = [source for source in tokens.facts["sources"] if config.mix.reads(source)]
    if not any(tokens.facts["sources"][source]["targets"] for source in sources):
        raise DataError(
            f"{tokens.ref} has no trained token in {', '.join(sources)}: no reply of an assistant is in its rows; look at them "
            "with show_example, mix other sources, or encode conversations that have replies"
        )


def check_held_out(config: TrainConfig, store: Store, parents: tuple[Artifact, ...]) -> None:
    """Refuse held-out rows that are not held out, not stored, or of another tokenizer."""
    held_out = store.open(Ref.parse(config.validation.tokens or "", Kind.tokens))
    key = f"validation.tokens={held_out.ref}"
    if config.validation.tokens == config.tokens:
        raise ConfigError(f"{key} is what is trained on; encode the corpus once more with split=validation")
    if held_out.facts["record_kind"] == "preferences":
        raise ConfigError(f"{key} holds preferences; the loss is that of documents or conversations")
    if "chunk_records" in held_out.facts:
        raise ConfigError(f"{key} stores no rows; encode it with store_rows=true")
    if not any(source["targets"] for source in held_out.facts["sources"].values()):
        raise DataError(f"{key} has no trained token; encode records that have replies")
    check_vocabulary(config, held_out, parents)
    check_context(config, held_out, parents)


def parents_of(config: TrainConfig) -> tuple[Ref, ...]:
    refs = [Ref.parse(config.tokens, Kind.tokens)]
    if config.validation.tokens is not None:
        refs.append(Ref.parse(config.validation.tokens, Kind.tokens))
    named = (config.model.path, config.model.tokenizer, config.model.new_rows.donor)
    refs += [Ref.parse(text) for text in named if text and Ref.looks_like(text)]
    if isinstance(config, DpoConfig) and config.reference is not None:
        refs.append(Ref.parse(config.reference, Kind.scores))
    return tuple(refs)


CPT = Stage("train_cpt", Kind.model, TrainConfig, parents_of, build, check, join)
SFT = Stage("train_sft", Kind.model, TrainConfig, parents_of, build, check, join)
DPO = Stage("train_dpo", Kind.model, DpoConfig, parents_of, build, check, join)
