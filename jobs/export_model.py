"""Export a finished model to the formats of other programs."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
