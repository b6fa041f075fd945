"""Write a finished model in the layouts that others load."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "platform")
)  # the code that was submitted, not an installed copy

from lisan.recipes.jobs import run_one

if __name__ == "__main__":
    run_one(__file__)
