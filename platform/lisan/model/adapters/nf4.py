"""Keeps a frozen base in 4 bits under adapters (QLoRA, Dettmers et al. 2023, 2305.14314). The only file that imports bitsandbytes.

Converts the linear layers of the blocks, on the CPU, to NF4 with 8-bit scales, about 4.1 bits a weight. Embeddings, norms, the
output layer and experts that are not linear layers stay as they are. The 4-bit weights are buffers, which FSDP replicates and
checkpoints omit; they depend on the base only, not on the device that computes with them. Adapters are merged into the
dequantised weights that they were trained over. Tested on CPUs only: GPUs use bitsandbytes' kernels behind the same two calls.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lisan.core.errors import ConfigError
from lisan.model.load import block_linears
from lisan.model.quiet import quiet_imports, quiet_transformers

BLOCK = 64
"Weights that share a scale, as in the paper."
SCALES_BLOCK = 256
"Scales that share a scale of their own."


def check_installed() -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "tuning.quantise_base=nf4 needs bitsandbytes, which is not installed: pip install -e '.[qlora]', or set it to none"
        )


class Nf4Linear(nn.Linear):
    """A frozen linear layer with a 4-bit weight that is dequantised for each product, forward and backward."""

    def __init__(self, linear: nn.Linear) -> None:
        with quiet_imports():
            from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        packed, state = quantize_4bit(
            linear.weight.detach().float(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        parts = {
            "packed": packed,
            "scales": state.absmax,
            "code": state.code,
            "offset": state.offset,
            "scales_of_scales": state.state2.absmax,
            "scales_code": state.state2.code,
        }
        for name, tensor in parts.items():
            self.register_buffer(name, tensor, persistent=False)

    def restore(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dequantised weight [out, in]."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=QuantState(
                absmax=self.scales_of_scales, blocksize=SCALES_BLOCK, code=self.scales_code, dtype=torch.float32
            ),
        )
        weight: torch.Tensor = dequantize_4bit(self.packed, state)
        return weight

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The dequantised weight in fp32; PEFT reads its shape, dtype and norms."""
        return self.restore(torch.float32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(inputs, self)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x W^T; dequantises W again in the backward pass, because autograd would keep the whole model in 16 bits."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Nf4Linear) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(inputs, layer.restore(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] @ ctx.layer.restore(grads[0].dtype), None


def quantise_blocks(model: Any) -> None:
    """Convert the linear layers of the blocks to 4 bits, one at a time."""
    check_installed()
    quiet_transformers()
    names = [name for name in block_linears(model) if type(model.get_submodule(name)) is nn.Linear]
    if not names:
        raise ConfigError(
            f"tuning.quantise_base=nf4 has no effect: the blocks of {type(model).__name__} have no linear layers; set it to none"
        )
    for name in names:
        model.set_submodule(name, Nf4Linear(model.get_submodule(name)))


def restore_linear(layer: Nf4Linear) -> nn.Linear:
    """Return a plain layer with the dequantised weight in fp32."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(layer.weight, requires_grad=False)
    plain.bias = layer.bias
    return plain


def is_quantised(model: Any) -> bool:
    return any(isinstance(module, Nf4Linear) for module in model.modules())
