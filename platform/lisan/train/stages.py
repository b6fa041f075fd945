"""The stages train_cpt, train_sft and train_dpo: a config, a tokens artifact and a model to a `model` artifact.

The artifact is a Hugging Face folder with weights, tokenizer, chat template and generation defaults.
"""

from typing import Any

from lisan.core.artifact import Draft, Kind, Ref
from lisan.core.errors import Interrupted, TrainingError
from lisan.core.stage import Run, SilentRun, Stage
from lisan.tokenizer.chat.chat_template import template_hash
from lisan.tokenizer.tokenizer import open_tokenizer
from lisan.train.checkpoint.retention import LOSS, PRECISION, Checkpoint, drop_damaged, find_best, find_latest
from lisan.train.config import DpoConfig, TrainConfig, inputs_of, parents_of
from lisan.train.launch import launch_on_ray
from lisan.train.launch_checks import check
from lisan.train.metrics.data_ledger import realised
from lisan.train.metrics.run_log import write_final_page
from lisan.train.run import TrainJob, local_worker, plan_run, run_worker
from lisan.train.setup.base_model import open_places


def build(config: TrainConfig, draft: Draft, run: Run) -> dict[str, Any]:
    """Train on the workers of the cluster config and return the facts of the model."""
    job = make_job(config, draft, run)
    drop_damaged(job.checkpoints)
    metrics = train(job)
    latest = check_outcome(job, draft.ref)
    where = {"step": latest.step, "uri": str(latest.location), "bytes": latest.num_bytes, "sha256": latest.digest}
    tokenizer = open_tokenizer(open_places(config, draft.parents).tokenizer)
    write_final_page(job.checkpoints, draft.location, run)
    known: dict[str, Any] = {
        "tokenizer_hash": job.tokens.facts["tokenizer_hash"],
        "template_hash": template_hash(tokenizer),
        "precision": latest.facts[PRECISION],
    }
    best = {found.step: found.facts[LOSS] for found in find_best(job.checkpoints, config.loop.keep_best)}
    if best:
        known["best_checkpoints"] = best
    # Under `metrics`: the tracker has these as series under train/ already.
    return {"metrics": metrics, "steps": latest.step, **realised(latest.facts), **known, "checkpoint": where}


def join(config: TrainConfig, draft: Draft) -> None:
    """Train as a further process of torchrun; the first one tracks and finishes the artifact."""
    train(make_job(config, draft, SilentRun()))


def train(job: TrainJob) -> dict[str, float]:
    """Train and return the last metrics; Interrupted names the step of the last checkpoint."""
    try:
        return launch(job)
    except (KeyboardInterrupt, Interrupted) as error:
        latest = find_latest(job.checkpoints)
        where = f"goes on from step {latest.step}" if latest else "begins anew, for there is no checkpoint yet"
        raise Interrupted(f"interrupted; the same command {where}") from error


def launch(job: TrainJob) -> dict[str, float]:
    """Train on Ray when the cluster config asks for workers, else in this process; return the last metrics."""
    if job.config.cluster.num_workers:
        return launch_on_ray(job)
    return run_worker(job, local_worker(job.config.cluster, job.config.runtime))


def make_job(config: TrainConfig, draft: Draft, run: Run) -> TrainJob:
    return TrainJob(config, draft.parents[0], draft.parents, draft.store.checkpoints(draft.ref), draft.location, run)


def check_outcome(job: TrainJob, ref: Ref) -> Checkpoint:
    """Return the last checkpoint of a complete run; TrainingError when steps, tokens or model files are missing.

    The exit code of a job follows from the files on storage, not from the launcher's result.
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


CPT = Stage("train_cpt", Kind.model, TrainConfig, parents_of, build, check, join, inputs_of)
SFT = Stage("train_sft", Kind.model, TrainConfig, parents_of, build, check, join, inputs_of)
DPO = Stage("train_dpo", Kind.model, DpoConfig, parents_of, build, check, join, inputs_of)
