"""4-bit weights of bitsandbytes."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

BLOCK = 64
"""Number of weights that share a scale (QLoRA, arXiv 2305.14314, Sec. 3)."""


class NF4Linear(nn.Module):
    """A frozen 4-bit copy of a linear layer.

    bitsandbytes' own `Linear4bit` cannot be quantized a second time, nor restored by `load_state_dict`.

    Args:
        linear: the layer to copy; its bias keeps its precision.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape, self.dtype = linear.weight.shape, linear.weight.dtype
        self.register_buffer("codes", None)
        self.register_buffer("scales", None)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.copy_from(linear)

    @torch.no_grad()
    def copy_from(self, linear: nn.Linear) -> None:
        """Quantize the weights of a layer."""
        self.codes, state = quantize_4bit(linear.weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        self.scales = state.absmax
        if self.bias is not None:
            self.bias.copy_(linear.bias)

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, `(out, in)`."""
        state = QuantState(self.scales, self.shape, blocksize=BLOCK, quant_type="nf4", dtype=self.dtype)
        return dequantize_4bit(self.codes, state)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias`."""
        return F.linear(input, self.weight, self.bias)


def quantized_copy(model: Any) -> Any:
    """Return a copy of a model whose linear layers, except the output head, are `NF4Linear`."""
    head = model.get_output_embeddings()
    linears = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return deepcopy(model, {id(linear): NF4Linear(linear) for linear in linears})


def nf4(compute_dtype: torch.dtype, in_shards: bool = False) -> BitsAndBytesConfig:
    """Return the configuration of a 4-bit base for transformers.

    With `in_shards` codes are stored as numbers of the computing precision: FSDP2 shards floating-point weights only.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=compute_dtype if in_shards else torch.uint8,
    )


@torch.no_grad()
def make_nf4(model: Any) -> None:
    """Give a model on the meta device the 4-bit layers that transformers would: all except the output."""
    config = nf4(model.dtype)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = _meta_state(module.weight.shape, model.dtype)
            codes = torch.empty((module.weight.numel() + 1) // 2, 1, dtype=torch.uint8)
            module.weight = Params4bit(codes, quant_state=state, bnb_quantized=True, module=module)
            module.quant_state = state
            if module.bias is not None:
                module.bias = nn.Parameter(torch.empty(module.bias.shape, dtype=model.dtype), requires_grad=False)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = model.is_quantized = True


def _meta_state(shape: torch.Size, dtype: torch.dtype) -> QuantState:
    blocks = -(-shape.numel() // BLOCK)
    # scales are 8 bits wide, and 256 of them share one of their own
    scales = QuantState(torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32)
    return QuantState(
        torch.empty(blocks, dtype=torch.uint8),
        shape=shape,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty(()),
        state2=scales,
    )


def keep_layout(model: nn.Module) -> None:
    """Keep the 4-bit layout that has a gradient.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a weight for good at its first forward pass in eval mode, into a
    layout whose product has none: what is below that layer would silently stop training.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
