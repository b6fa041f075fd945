"""Matrix products in float8: about twice the arithmetic of bfloat16 on GPUs that have it.

In: a model before it is sharded. Out: the same module, whose blocks scale each tensor and multiply in float8 while weights,
sums and everything else stay as they were. Always: the vocabulary's matrices and adapters keep their precision. Tried with
torchao's emulation on a CPU; not yet run on a GPU.
"""

from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.load import decoder_layers
from lisan.model.quiet import quiet_imports

FIRST_CAPABILITY = (8, 9)
"Of CUDA, from which on there are float8 products: L4, L40, RTX 40, H100 and later."
MULTIPLE = 16
"Both sides of a product must be a multiple of it, or the kernels refuse."


def check_float8(device: str) -> None:
    """Refuse what this machine cannot multiply."""
    try:
        with quiet_imports():
            import torchao.float8  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "float8=true needs the package torchao on every worker; pip install -e '.[float8]', or leave it out"
        ) from error
    if not device.startswith("cuda"):
        raise ConfigError(f"float8=true needs a GPU, this worker has {device}; leave it out")
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        raise ConfigError(
            f"float8=true needs a GPU of compute capability {'.'.join(map(str, FIRST_CAPABILITY))} or later (H100, L40), "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}; leave it out"
        )


def use_float8(model: Any, emulate: bool = False) -> int:
    """Make the linear layers of the blocks multiply in float8 and return how many do; `emulate` rounds without such a GPU.

    Raises ConfigError when none can.
    """
    with quiet_imports():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(emulate=emulate)
    for layer in decoder_layers(model):
        convert_to_float8_training(layer, config=config, module_filter_fn=_is_wanted)
    num_layers = sum(type(module).__name__ == "Float8Linear" for module in model.modules())
    if not num_layers:
        raise ConfigError(
            f"float8=true has no effect on {type(model).__name__}: its blocks have no linear layer whose sides are multiples of "
            f"{MULTIPLE}; leave it out"
        )
    return num_layers


def _is_wanted(module: nn.Module, name: str) -> bool:
    """Tell whether a layer is a matrix of the model and not of an adapter, whose thin products gain nothing."""
    if not isinstance(module, nn.Linear) or "lora_" in name:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
