"""Keeps the progress bars and warnings of model libraries out of job logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

NOISY_LOGGERS = ("torchao", "bitsandbytes", "torch.utils._pytree")
"PEFT and transformers import these libraries where they are installed; on import they warn of kernels and enums."


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide the import warnings of `NOISY_LOGGERS`."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@cache
def quiet_transformers() -> None:
    """Turn off the progress bars and warnings of transformers."""
    with quiet_imports():
        from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@cache
def print_once(line: str) -> None:
    """Print a line at most once in a process."""
    print(line, flush=True)
