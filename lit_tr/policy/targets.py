"""Which linear layers get a LoRA adapter."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_tr.errors import UserError

PRESETS = ("attention", "mlp")


def target_names(model: PreTrainedModel, targets: str | list[str]) -> str | list[str]:
    """Return the names that a preset stands for in a model, each with its parent's; anything else as it is.

    Raises:
        UserError: the model has no such layers.
    """
    if targets not in PRESETS:
        return targets
    head, wanted = model.get_output_embeddings(), targets == "attention"
    linear = [
        name.split(".")
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    ]
    names = {".".join(path[-2:]) for path in linear if _in_attention(path) is wanted}
    if not names:
        raise UserError(f"lora.targets: {type(model).__name__} has no {targets} layers that are known: name them")
    return sorted(names)


def _in_attention(path: list[str]) -> bool:
    return any("attn" in part or "attention" in part for part in path[:-1])
