"""Pretrain from random weights, or continue pretraining, on documents."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
