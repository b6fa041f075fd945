"""Print training examples as text, with the trained tokens marked."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
