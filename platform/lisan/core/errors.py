"""What users read when something is wrong: one sentence naming the key, the value, what was expected and what to do.

Every class takes a single string, so that an error raised in a Ray worker pickles back to the driver unchanged.
"""


class LisanError(Exception):
    """Root of every error that data, configuration, files or the network can cause."""


class ConfigError(LisanError, ValueError):
    """A configuration that cannot work: unknown key, wrong type, impossible combination."""


class DataError(LisanError, ValueError):
    """Input that cannot be used: missing file, wrong encoding, empty corpus, tokens that do not fit."""


class ArtifactError(LisanError):
    """An artifact that is missing, unfinished or would be overwritten."""


class ClusterError(LisanError):
    """A worker that cannot go on: a process that died, memory that ran out."""


class TrainingError(LisanError):
    """A training run that cannot go on."""


class DivergenceError(TrainingError):
    """A training run whose loss or gradients went out of bounds, and would again from the same checkpoint."""


class Interrupted(LisanError):  # noqa: N818  nothing is wrong
    """Work that was asked to end; the same command goes on with it."""


class ServingError(LisanError):
    """An endpoint that cannot start or a model that may not be promoted."""
