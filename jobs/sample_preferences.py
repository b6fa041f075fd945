"""Sample answers of a model, score them with a judge, and keep the best and the worst as preferences."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
