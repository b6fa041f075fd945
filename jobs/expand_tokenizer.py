"""Learn a vocabulary, or expand one for a second language."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
