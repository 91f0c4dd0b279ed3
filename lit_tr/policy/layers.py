"""The repeated layers of a language model."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def repeated_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the path of a model's longest list of repeated layers, and the layers; "" and none if it has no list."""
    lists = (
        (path, list(module))
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(map(is_layer, module))
    )
    return max(lists, key=lambda found: len(found[1]), default=("", []))


def is_layer(module: nn.Module) -> bool:
    """Whether a module has transformers' mark of a repeated layer."""
    return isinstance(module, GradientCheckpointingLayer)
