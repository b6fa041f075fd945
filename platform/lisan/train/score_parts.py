"""Parts of the reference pass, scored in this process or by actors of Ray Data.

In: a `ScoreJob` and the parts that are to be scored. Out: their row counts, one by one; the scores lie on storage. Always: to the
digit what the workers of train_dpo would compute for themselves alone.
"""

import os
import pickle
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lisan.core.artifact import Artifact
from lisan.core.errors import ConfigError, LisanError
from lisan.core.stage import StageConfig
from lisan.core.storage import Location
from lisan.model.attention import Attention
from lisan.model.load import ModelConfig
from lisan.model.parallel import Precision
from lisan.model.score import Scorer
from lisan.tokens.rows import RowReader
from lisan.train.config import DpoConfig
from lisan.train.course import LoopConfig
from lisan.train.job import open_scorer
from lisan.train.kto_anchor import MismatchedReader
from lisan.train.launch import check_capacity
from lisan.train.origin import open_places
from lisan.train.reference import MISMATCHED, batches_of, join_scores, score_rows, write_scores
from lisan.train.worker import ProcessGroup, Worker

PART_BATCHES = 64
"Of `micro_rows` rows: what a killed job loses of each worker."


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


def score_here(job: ScoreJob, parts: Sequence[Part]) -> Generator[int]:
    with closing(ReferenceModel(job)) as reference:
        yield from map(reference.score, parts)


def score_on_ray(job: ScoreJob, parts: Sequence[Part]) -> Generator[int]:
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
