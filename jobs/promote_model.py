"""Register a model, check its gates and move an alias to it."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
