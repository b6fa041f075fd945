"""The `score_preferences` stage: what the reference model thinks of every reply, as an artifact of its own.

In: a preference tokens artifact and the model that training will start from. Out: `scores`, log-probabilities by row.
Always: to the digit what the workers of train_dpo would compute for themselves alone; parts that are done stay done when the
job is killed. Worth a job when several runs (a sweep of beta, loss or rate) share one reference, or when it is to be computed
on other machines than training: Ray Data maps parts of the rows through `cluster.num_workers` actors, each with the whole
model. A model that fits no single GPU is scored by the workers of train_dpo, over which it is sharded. Actors on GPUs have
not been tried on one.
"""

import os
import pickle
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store, differing_keys
from lisan.core.config import to_plain
from lisan.core.errors import ConfigError, DataError, LisanError
from lisan.core.stage import Run, Stage, StageConfig
from lisan.core.storage import Location
from lisan.model.attention import Attention
from lisan.model.load import ModelConfig
from lisan.model.parallel import Precision
from lisan.model.score import Scorer
from lisan.tokens.rows import RowReader
from lisan.train.course import LoopConfig
from lisan.train.job import DpoConfig, open_scorer
from lisan.train.kto_anchor import MismatchedReader
from lisan.train.launch import check_capacity
from lisan.train.objectives import PreferenceLoss
from lisan.train.outcome import check_context, check_vocabulary, open_places
from lisan.train.reference import MISMATCHED, REFERENCE, batches_of, join_scores, read_scores, score_rows, write_scores
from lisan.train.tuning import Quantisation
from lisan.train.worker import ProcessGroup, Worker

PART_BATCHES = 64
"Of `micro_rows` rows: what a killed job loses of each worker."
SAY_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(StageConfig):
    tokens: str
    "tokens/name@version of preferences"
    model: ModelConfig
    "As train_dpo will have it: a model and, when its vocabulary is to grow, the tokenizer and how new rows begin."
    mismatched: bool = False
    "Also scores every prompt with the reply of another pair, which loss=kto measures its KL divergence with."
    micro_rows: int = 8
    "Rows that one worker computes at a time."
    precision: Precision = Precision.bfloat16
    "Of the computation; the same as in training."
    attention: Attention = Attention.sdpa

    def __post_init__(self) -> None:
        if self.micro_rows < 1:
            raise ConfigError(f"micro_rows must be >= 1, got {self.micro_rows}")
        as_training(self)


def as_training(config: ScoreConfig) -> DpoConfig:
    """Return the training whose first model this is."""
    return DpoConfig(
        name=config.name,
        tokens=config.tokens,
        model=config.model,
        precision=config.precision,
        attention=config.attention,
        loop=LoopConfig(step_rows=config.micro_rows, micro_rows=config.micro_rows),
        storage=config.storage,
        cluster=config.cluster,
    )


@dataclass(frozen=True)
class Part:
    """Neighbouring batches of one pass."""

    folder: str
    "Of the pass: empty, or MISMATCHED."
    index: int

    @property
    def path(self) -> str:
        return f"{self.folder or 'matched'}/part-{self.index:05d}.parquet"


@dataclass(frozen=True)
class ScoreJob:
    """What it takes to score a part anywhere."""

    config: ScoreConfig
    tokens: Artifact
    parents: tuple[Artifact, ...]
    parts: Location
    num_rows: int

    def plan(self) -> list[Part]:
        num_parts = -(-self.num_rows // (self.config.micro_rows * PART_BATCHES))
        folders = ("", MISMATCHED) if self.config.mismatched else ("",)
        return [Part(folder, index) for folder in folders for index in range(num_parts)]


class ReferenceModel:
    """The reference model in one process, loaded when it is first asked."""

    def __init__(self, job: ScoreJob) -> None:
        self.job = job
        cluster = job.config.cluster
        threads = cluster.threads_per_worker
        if cluster.num_workers and not threads and not cluster.use_gpu:
            threads = max(1, (os.cpu_count() or 1) * cluster.num_nodes // cluster.num_workers)
        self.worker = Worker(device="cuda:0" if cluster.use_gpu else "cpu", threads=threads)
        self.group = ProcessGroup(self.worker, cluster.collective_timeout_s)

    @cached_property
    def scorer(self) -> Scorer:
        config = as_training(self.job.config)
        self.group.__enter__()
        _, scorer = open_scorer(config, open_places(config, self.job.parents), self.worker)
        return scorer

    @cached_property
    def readers(self) -> dict[str, RowReader]:
        tokens = self.job.tokens
        return {"": RowReader(tokens), **({MISMATCHED: MismatchedReader(tokens)} if self.job.config.mismatched else {})}

    def score(self, part: Part) -> int:
        """Score and keep a part; return the rows it has."""
        batches = batches_of(self.job.num_rows, self.job.config.micro_rows, Worker())
        mine = batches[part.index * PART_BATCHES : (part.index + 1) * PART_BATCHES]
        table = join_scores([score_rows(self.scorer, self.readers[part.folder], mine, self.worker.device)])
        write_scores(table, self.job.parts / part.path)
        return int(table.num_rows)

    def close(self) -> None:
        self.group.__exit__()

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Be asked by Ray Data; what users can cause travels as a sentence, without Ray's trace around it."""
        try:
            return {"result": pickle.dumps(self.score(pickle.loads(row["part"])))}
        except LisanError as error:
            return {"result": pickle.dumps(error)}


def score_preferences(config: ScoreConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    tokens = draft.parent(Kind.tokens)
    job = ScoreJob(config, tokens, draft.parents, draft.parts, len(RowReader(tokens)))
    plan = job.plan()
    missing = [part for part in plan if not (job.parts / part.path).exists()]
    if len(missing) < len(plan):
        print(f"  {len(plan) - len(missing)} of {len(plan)} parts are scored already", flush=True)
    score = _score_on_ray if config.cluster.num_workers else _score_here
    with closing(score(job, missing)) as scored:
        _watch(scored, job.num_rows * (1 + config.mismatched) * len(missing) // len(plan), run)
    facts = _join(job, plan, draft.location)
    job.parts.delete()
    return {"rows": job.num_rows, **facts}


def _score_here(job: ScoreJob, parts: Sequence[Part]) -> Generator[int]:
    with closing(ReferenceModel(job)) as reference:
        yield from map(reference.score, parts)


def _score_on_ray(job: ScoreJob, parts: Sequence[Part]) -> Generator[int]:
    """Map parts through a pool of actors, each with a model of its own."""
    if not parts:
        return
    import ray

    from lisan.session import connect

    cluster = job.config.cluster
    connect(cluster)
    check_capacity(cluster)
    rows = [{"part": pickle.dumps(part)} for part in parts]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ReferenceModel,
        fn_constructor_kwargs={"job": job},
        compute=ray.data.ActorPoolStrategy(size=min(cluster.num_workers, len(rows))),
        num_cpus=min(1.0, cluster.cpus_per_worker),
        num_gpus=1.0 if cluster.use_gpu else None,
    )
    for row in scored.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, LisanError):
            raise result
        yield result


def _watch(results: Iterator[int], num_rows: int, run: Run) -> None:
    """Say every few seconds how far it is and when it will be done."""
    start = said = time.monotonic()
    done = 0
    for count in results:
        done += count
        now = time.monotonic()
        rate = done / (now - start)
        run.log_metrics({"score/rows": float(done), "score/rows_per_s": rate}, done)
        if now - said > SAY_EVERY_S:
            said = now
            left_s = max(0, num_rows - done) / rate
            print(f"  scored {done:,}/{num_rows:,} rows, {rate:,.0f} rows/s, {left_s:,.0f} s left", flush=True)


def _join(job: ScoreJob, plan: Sequence[Part], target: Location) -> dict[str, Any]:
    """Write one file a pass and return what is known of it."""
    for folder in dict.fromkeys(part.folder for part in plan):
        table = join_scores(read_scores(job.parts / part.path) for part in plan if part.folder == folder)
        write_scores(table, target / folder / REFERENCE)
    matched = read_scores(target / REFERENCE)
    logps = pc.list_flatten(matched["logps"]).combine_chunks()
    chosen, rejected = (float(pc.mean(logps.take(pa.array(range(side, len(logps), 2)))).as_py()) for side in (0, 1))
    return {"documents": len(logps), "mean_chosen_logp": chosen, "mean_rejected_logp": rejected}


def check_scores(config: DpoConfig, tokens: Artifact, parents: Sequence[Artifact]) -> None:
    """Refuse scores of other rows, of another model, in another precision, or without what the loss needs."""
    scores = next((parent for parent in parents if parent.ref.kind is Kind.scores), None)
    if scores is None:
        return
    known = scores.manifest["parents"]
    for parent in (tokens, *(parent for parent in parents if parent.ref.kind in (Kind.model, Kind.tokenizer))):
        if known.get(str(parent.ref)) != parent.manifest["fingerprint"]:
            names = ", ".join(ref for ref in known if ref.split("/")[0] == parent.ref.kind) or f"no {parent.ref.kind}"
            raise DataError(
                f"reference={scores.ref} was scored with {names}, not with this {parent.ref}; score_preferences again with it"
            )
    wanted = {"model": to_plain(config.model), "precision": config.precision.value}
    keys = differing_keys({key: scores.config[key] for key in wanted}, wanted)
    if keys:
        raise DataError(
            f"reference={scores.ref} was scored with another config ({keys}); score_preferences with this one"
        )
    if config.float8 or config.tuning.quantise_base is not Quantisation.none:
        raise ConfigError(
            f"reference={scores.ref} was scored with whole weights in {config.precision}; leave it out with "
            "tuning.quantise_base=nf4 or float8=true"
        )
    if config.loss is PreferenceLoss.kto and not scores.config["mismatched"]:
        raise ConfigError(
            f"loss=kto needs scores of exchanged replies, which {scores.ref} lacks; score with mismatched=true"
        )


def _parents(config: ScoreConfig) -> tuple[Ref, ...]:
    named = (config.model.path, config.model.tokenizer, config.model.new_rows.donor)
    models = tuple(Ref.parse(text) for text in named if text and Ref.looks_like(text))
    return (Ref.parse(config.tokens, Kind.tokens), *models)


def _check(config: ScoreConfig, store: Store) -> None:
    tokens = store.open(Ref.parse(config.tokens, Kind.tokens))
    if tokens.facts["record_kind"] != "preferences":
        raise ConfigError(f"{tokens.ref} holds {tokens.facts['record_kind']}; score_preferences needs preferences")
    parents = tuple(store.open(ref) for ref in _parents(config))
    training = as_training(config)
    check_vocabulary(training, tokens, parents)
    check_context(training, tokens, parents)
    if config.mismatched:
        MismatchedReader(tokens)


SCORES = Stage("score_preferences", Kind.scores, ScoreConfig, _parents, score_preferences, _check)
