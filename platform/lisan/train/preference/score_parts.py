"""Scores parts of the reference pass, in this process or in Ray actors.

The scores equal those that the workers of train_dpo compute, to the last digit.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

from lisan.cluster.config import Precision
from lisan.cluster.map_items import map_with_state
from lisan.cluster.precision import Resolved, find_precision
from lisan.cluster.worker import ProcessGroup, Worker, share_threads
from lisan.core.artifact import Artifact
from lisan.core.parts import part_path
from lisan.core.stage import ClusterConfig
from lisan.core.storage import Location
from lisan.data.rows import RowReader
from lisan.model.score import Scorer
from lisan.train.config import ScoreConfig, as_training
from lisan.train.launch import check_capacity
from lisan.train.preference.kto import MismatchedReader
from lisan.train.preference.reference import MISMATCHED, join_scores, score_rows, write_scores
from lisan.train.run import local_worker, open_scorer
from lisan.train.setup.base_model import open_places

PART_BATCHES = 64
"Of `micro_rows` rows: what a killed job loses of each worker."


@dataclass(frozen=True)
class Part:
    """Neighbouring batches of one pass."""

    folder: str
    "Of the pass: empty, or MISMATCHED."
    index: int

    @property
    def path(self) -> str:
        return f"{self.folder or 'matched'}/{part_path(self.index)}"


@dataclass(frozen=True)
class ScoreJob:
    """Everything that a process needs to score a part."""

    config: ScoreConfig
    tokens: Artifact
    parents: tuple[Artifact, ...]
    parts: Location
    num_rows: int
    precision: Precision
    "Of all parts, never auto."

    def plan(self) -> list[Part]:
        num_parts = -(-self.num_rows // self.part_rows)
        folders = ("", MISMATCHED) if self.config.mismatched else ("",)
        return [Part(folder, index) for folder in folders for index in range(num_parts)]

    @property
    def part_rows(self) -> int:
        return self.config.micro_rows * PART_BATCHES

    def count_rows(self, part: Part) -> int:
        return min(self.part_rows, self.num_rows - part.index * self.part_rows)


class ReferenceModel:
    """The reference model in one process, loaded when it is first asked."""

    def __init__(self, job: ScoreJob) -> None:
        self.job = job
        cluster = job.config.cluster
        threads = (
            share_threads(cluster, cluster.num_workers // cluster.num_nodes)
            if cluster.num_workers
            else local_worker(cluster).threads
        )
        self.worker = Worker(device=find_device(cluster), precision=job.precision, threads=threads)
        self.group, self.stack = ProcessGroup(self.worker), ExitStack()

    @cached_property
    def scorer(self) -> Scorer:
        config = as_training(self.job.config)
        self.stack.enter_context(self.group)
        _, scorer = open_scorer(config, open_places(config, self.job.parents), self.worker)
        return scorer

    @cached_property
    def readers(self) -> dict[str, RowReader]:
        tokens = self.job.tokens
        return {"": RowReader(tokens), **({MISMATCHED: MismatchedReader(tokens)} if self.job.config.mismatched else {})}

    def __call__(self, part: Part) -> int:
        """Score and keep a part; return the rows it has."""
        batches = [row_ids for row_ids, _ in Worker().deal(self.job.num_rows, self.job.config.micro_rows)]
        mine = batches[part.index * PART_BATCHES : (part.index + 1) * PART_BATCHES]
        table = join_scores([score_rows(self.scorer, self.readers[part.folder], mine, self.worker.device)])
        write_scores(table, self.job.parts / part.path)
        return int(table.num_rows)

    def close(self) -> None:
        self.stack.close()


def find_device(cluster: ClusterConfig) -> str:
    """Return the device of a scoring process."""
    if cluster.num_workers:
        return "cuda:0" if cluster.use_gpu else "cpu"
    return local_worker(cluster).device


def find_precisions(cluster: ClusterConfig) -> list[Resolved]:
    """Return the answer of the devices of every node that may score, this process's for its own node."""
    device = find_device(cluster)
    if not cluster.num_workers:
        return [find_precision(device)]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from lisan.cluster.ray import connect, in_one_sentence

    connect(cluster)
    needs = "GPU" if cluster.use_gpu else "CPU"
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(needs)]
    here = ray.get_runtime_context().get_node_id()
    ask = ray.remote(num_cpus=0, num_gpus=int(cluster.use_gpu))(find_precision)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(device)
        for node in nodes
        if node != here
    ]
    with in_one_sentence():
        return [*([find_precision(device)] if here in nodes else []), *ray.get(asked)]


def score_parts(job: ScoreJob, parts: Sequence[Part]) -> Generator[int]:
    """Score parts in this process or in a pool of Ray actors, each with a model of its own; yield their row counts."""
    cluster = job.config.cluster
    if cluster.num_workers and parts:
        from lisan.cluster.ray import connect

        connect(cluster)
        check_capacity(cluster)
    yield from map_with_state(partial(ReferenceModel, job), parts, cluster)
