"""Measures held-out losses of checkpoints in a process beside the workers.

Rows, model and code are those of the workers; the whole model is in this process, whose process group has one rank.
"""

from contextlib import ExitStack
from dataclasses import replace

from lisan.cluster.worker import ProcessGroup, Worker
from lisan.model.config import ShardingConfig
from lisan.model.score import Scorer
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.run import TrainJob, make_validation, open_scorer
from lisan.train.setup.base_model import open_places


class Validator:
    """Holds the model of a run and fills it with one checkpoint after the other."""

    def __init__(self, job: TrainJob, worker: Worker) -> None:
        self.checkpoints = job.checkpoints
        self.measure_losses = make_validation(job, worker)
        self.stack = ExitStack()
        self.stack.enter_context(ProcessGroup(worker))  # until this process ends
        self.worker = worker
        cluster = replace(job.config.cluster, num_nodes=1)
        self.config = replace(job.config, sharding=ShardingConfig(), cluster=cluster)
        self.places = open_places(self.config, job.parents)
        self.scorer: Scorer | None = None

    def measure(self, step: int) -> dict[str, float]:
        """Return the losses of the checkpoint of a step, in the precision of the workers that wrote it."""
        assert self.measure_losses is not None
        written = retention.open_step(self.checkpoints, step)
        if self.scorer is None or self.worker.precision is not written.precision:
            self.worker = replace(self.worker, precision=written.precision)
            _, self.scorer = open_scorer(self.config, self.places, self.worker)
        sharded_state.load_weights(self.scorer, written)
        return self.measure_losses(self.scorer)
