"""Build a corpus from raw text: read, normalise, remove duplicates, split."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
