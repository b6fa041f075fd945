"""Align a model with preferences by DPO."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
