"""Weights in memory and on storage: load, resize, adapt, score. No text, no Ray."""

import logging

# transformers and PEFT import these wherever they are installed; they then complain of kernels and enums that nobody asked for.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
