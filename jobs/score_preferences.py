"""Score preferences with the reference model, once for any number of train_dpo runs."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
