"""Fine-tune on conversations, all weights or LoRA."""

from _checkout import run_one

if __name__ == "__main__":
    run_one(__file__)
