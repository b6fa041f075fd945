"""Runs a job: composes its config, calls its action, and turns errors into one sentence and an exit code."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lisan.core.command_line.choices import check_recipe
from lisan.core.command_line.overrides import quote_text
from lisan.core.config import T, _composing, compose, compose_raw, load, register
from lisan.core.credentials import hide_credentials
from lisan.core.errors import Interrupted, LisanError
from lisan.core.interrupt import raise_interrupt
from lisan.core.torchrun import first_reports, is_first

INTERRUPTED = 130
"Exit code of a job that was asked to end, as after Ctrl-C in a shell."

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR)
"Errors of a full disk, a read-only root, or a root that is no folder."


def run_job(job_file: str, schema: type[T], action: Callable[[T], object]) -> None:
    """Compose the config of a job from the command line and call `action` with it; print sentences instead of stack traces.

    The job is named by its file: `jobs/train_cpt.py` reads `conf/train_cpt.yaml`. Exits 1 on any LisanError.
    """
    path, arguments = Path(job_file).resolve(), sys.argv[1:]
    conf_dir, job = path.parents[1] / "conf", path.stem
    flags = [argument for argument in arguments if argument.startswith("-")]
    signal.signal(signal.SIGTERM, raise_interrupt)
    with sentences():
        if {"--help", "-h"} & set(flags):
            print(_help(path, schema, [argument for argument in arguments if argument not in flags]))
        elif flags:
            _run_hydra(conf_dir, job, schema, action)
        else:
            with first_reports():
                config = compose(conf_dir, job, schema, arguments)
            action(config)


def _help(job_file: Path, schema: type[Any], overrides: Sequence[str]) -> str:
    from omegaconf import OmegaConf

    from lisan.core.command_line.help_page import render_help

    raw = compose_raw(job_file.parents[1] / "conf", job_file.stem, schema, overrides)
    return render_help(job_file, schema, OmegaConf.to_container(raw, enum_to_str=True))


def _run_hydra(conf_dir: Path, job: str, schema: type[T], action: Callable[[T], object]) -> None:
    """Pass the command line to Hydra, whose flags print a config or run a sweep."""
    import hydra

    register(job, schema)
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    check_recipe(conf_dir, job, schema, overrides)
    sys.argv[1:] = quote_text(schema, sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors are raised, so that they become a sentence here

    @hydra.main(version_base="1.3", config_path=str(conf_dir), config_name=job)
    def main(raw: Any) -> None:
        action(load(schema, raw))

    with _composing(job, schema, overrides):
        main()


class sentences:  # noqa: N801  used as `with sentences():`
    """Exit 1 with one line on stderr for a LisanError or an unwritable storage, 130 after an interrupt; raise other errors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt | Interrupted):
            if is_first():
                print(str(error) or "interrupted; the same command continues from the finished work", file=sys.stderr)
            sys.exit(INTERRUPTED)
        if isinstance(error, LisanError):
            sys.exit(hide_credentials(f"{type(error).__name__}: {error}"))
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            where = error.filename or "storage"
            sys.exit(
                f"ArtifactError: cannot write {where}: {error.strerror}; free space there or set storage.root elsewhere"
            )
