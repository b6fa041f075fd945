"""Errors that users can cause: one sentence with the key, the value, the expectation and the remedy.

Every class takes a single string, so that an error raised in a Ray worker pickles back to the driver unchanged.
"""


class LisanError(Exception):
    """Base of every error that data, configuration, files or the network can cause."""


class ConfigError(LisanError, ValueError):
    """A configuration that cannot work: unknown key, wrong type, impossible combination."""


class DataError(LisanError, ValueError):
    """Input that cannot be used: missing file, wrong encoding, empty corpus, tokens that do not fit."""


class ArtifactError(LisanError):
    """An artifact that is missing, unfinished or would be overwritten."""


class ClusterError(LisanError):
    """A worker that cannot continue: a process died, memory ran out."""


class TrainingError(LisanError):
    """A training run that cannot continue."""


class DivergenceError(TrainingError):
    """A training run whose loss or gradients left their bounds, and would again from the same checkpoint."""


class Interrupted(LisanError):  # noqa: N818  not an error
    """Work that was asked to end; the same command continues it."""


class ServingError(LisanError):
    """An endpoint that cannot start or a model that may not be promoted."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the name of its class when there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
