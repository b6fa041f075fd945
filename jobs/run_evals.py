"""Evaluate a model: bits per byte, multiple choice, preference accuracy."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
