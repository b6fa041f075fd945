"""Weights in memory and on storage: load, resize, adapt, score. No text, no Ray."""

import logging

# transformers imports torchao wherever it is installed, which then complains of kernels and enums that nobody asked for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
