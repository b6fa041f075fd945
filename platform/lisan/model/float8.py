"""Makes the blocks of a model multiply in float8: about twice the speed of bfloat16 on GPUs that support it.

Applied before sharding. Each tensor is scaled and multiplied in float8; weights and sums keep their dtype. The vocabulary's
matrices and adapters keep their precision. Tested with torchao's emulation on a CPU; not yet run on a GPU.
"""

from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.load import decoder_layers
from lisan.model.quiet import quiet_imports

FIRST_CAPABILITY = (8, 9)
"First CUDA compute capability with float8 products: L4, L40, RTX 40, H100 and later."
MULTIPLE = 16
"The kernels need both sides of a product to be a multiple of it."


def check_float8(device: str) -> None:
    """Refuse a device without float8 products, or a worker without torchao."""
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
    """Convert the linear layers of the blocks to float8 and return their number; `emulate` rounds on any device.

    ConfigError when no layer can be converted.
    """
    with quiet_imports():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(emulate=emulate)
    for layer in decoder_layers(model):
        convert_to_float8_training(layer, config=config, module_filter_fn=_is_convertible)
    num_layers = sum(type(module).__name__ == "Float8Linear" for module in model.modules())
    if not num_layers:
        raise ConfigError(
            f"float8=true has no effect on {type(model).__name__}: its blocks have no linear layer whose sides are multiples of "
            f"{MULTIPLE}; leave it out"
        )
    return num_layers


def _is_convertible(module: nn.Module, name: str) -> bool:
    """Tell whether a layer is a matrix of the model; the thin products of adapters gain nothing."""
    if not isinstance(module, nn.Linear) or "lora_" in name:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
