"""The validator: held-out losses of checkpoints, measured in a process beside the workers.

In: a job, and steps of which it has finished checkpoints. Out: what `measure_losses` finds with the weights of each. Always: the
rows, the model and the code are those of the workers; the whole model lies in this one process, whose group has one rank.
`launch.py` makes one an actor.
"""

from dataclasses import replace

from lisan.model.config import ShardingConfig
from lisan.train import checkpoint, shards
from lisan.train.job import TrainJob, make_validation, open_scorer
from lisan.train.origin import open_places
from lisan.train.worker import ProcessGroup, Worker


class Validator:
    """Holds the model of a run and fills it with one checkpoint after the other."""

    def __init__(self, job: TrainJob, worker: Worker) -> None:
        self.checkpoints = job.checkpoints
        self.measure_losses = make_validation(job, worker)
        ProcessGroup(worker).__enter__()  # for as long as this process lasts
        cluster = replace(job.config.cluster, num_nodes=1)
        config = replace(job.config, sharding=ShardingConfig(), cluster=cluster)
        _, self.scorer = open_scorer(config, open_places(config, job.parents), worker)

    def measure(self, step: int) -> dict[str, float]:
        """Return the losses of the checkpoint of a step."""
        assert self.measure_losses is not None
        shards.load_weights(self.scorer, checkpoint.open_step(self.checkpoints, step))
        return self.measure_losses(self.scorer)
