"""Compare tokenizers on the same text, language by language."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
