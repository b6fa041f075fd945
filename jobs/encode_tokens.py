"""Encode a corpus as packed rows of token ids."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
