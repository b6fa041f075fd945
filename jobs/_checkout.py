"""Runs a job with the package of this checkout, before an installed copy: a submitted job runs the submitted code."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from lisan.core.command_line.run_job import run_job
from lisan.recipes.jobs import run_one

__all__ = ["ROOT", "run_job", "run_one"]
