"""Run a recipe's stages in order and skip what exists."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "platform")
)  # the code that was submitted, not an installed copy

from lisan.core.command_line.run_job import run_job
from lisan.recipes.run_pipeline import PipelineConfig, run_pipeline

if __name__ == "__main__":
    conf = Path(__file__).resolve().parents[1] / "conf"
    run_job(__file__, PipelineConfig, lambda config: run_pipeline(config, conf))
