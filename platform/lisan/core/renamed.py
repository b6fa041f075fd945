"""Config keys that have a new name: an old key is refused with it."""

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "cluster.step_timeout_s": "runtime.step_timeout_s",
    "cluster.collective_timeout_s": "runtime.collective_timeout_s",
    "cluster.validation_timeout_s": "runtime.validation_timeout_s",
    "cluster.peak_tflops": "runtime.peak_tflops",
    "candidate": "model",
    "chunk_records": "block_records",
    "sharding.recompute": "sharding.activation_checkpointing",
    "sharding.tensor_workers": "sharding.tensor_parallel_size",
}
"Old key to new key, each as the last parts of the dotted key: `optim.peak: optim.peak_lr` also covers `train.optim.peak`."


def find_new_name(key: str) -> str | None:
    """Return the sentence `X is now called Y` for a dotted key that was renamed, or that lies below one; else None."""
    names = key.split(".")
    for end in range(len(names), 0, -1):
        old_key = ".".join(names[:end])
        for old, new in RENAMED.items():
            if old_key == old or old_key.endswith(f".{old}"):
                return f"{old_key} is now called {old_key.removesuffix(old)}{new}"
    return None
