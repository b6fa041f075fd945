"""A frozen base in 4 bits under adapters (QLoRA, Dettmers et al. 2023, 2305.14314). The only file that knows bitsandbytes.

In: a model whose weights are there, on the CPU. Out: the same model, the linear layers of its blocks in NF4 with scales in 8 bits,
about 4.1 bits a weight; embeddings, norms and the output layer stay as they are, and so do experts that are no linear layers.
Always: the 4-bit weights are buffers, which FSDP leaves whole on every worker and checkpoints leave out; they are made on the CPU,
from the same base the same ones, wherever they are computed with; what adapters are merged into is what they were trained over.
Tried on CPUs only: the kernels of a GPU are bitsandbytes' own, behind the same two calls.
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
"Weights that share a scale; the paper's."
SCALES_BLOCK = 256
"Scales that share a scale of their own."


def check_installed() -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "tuning.quantise_base=nf4 needs bitsandbytes, which is not installed: pip install -e '.[qlora]', or set it to none"
        )


class Nf4Linear(nn.Linear):
    """A frozen linear layer whose weight is kept in 4 bits and restored for each product, forwards and backwards."""

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
        """Return the weight [out, in] that the 4 bits stand for."""
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
        """For those who ask for shape, type and norms, PEFT among them: the restored weight in fp32."""
        return self.restore(torch.float32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(inputs, self)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x W^T, with W restored again in the backward pass: autograd would keep it, and with it the whole model in 16 bits."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Nf4Linear) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(inputs, layer.restore(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] @ ctx.layer.restore(grads[0].dtype), None


def quantise_blocks(model: Any) -> None:
    """Put the linear layers of the blocks into 4 bits, one after the other."""
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
    """Return a plain layer with the weight that the 4 bits stand for, in fp32."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(layer.weight, requires_grad=False)
    plain.bias = layer.bias
    return plain


def is_quantised(model: Any) -> bool:
    return any(isinstance(module, Nf4Linear) for module in model.modules())
