"""LoRA adapters of PEFT: copies, factors, switching, saving, merging."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_tr.errors import UserError
from lit_tr.policy.modules import modules_within

POLICY_ADAPTER = "default"


@dataclass(frozen=True)
class LowRank:
    """A matrix `scaling * b @ a`, or a batch of them.

    Args:
        a: factor, `(..., rank, in)`.
        b: factor, `(..., out, rank)`.
        scaling: LoRA's scaling.
    """

    a: Tensor
    b: Tensor
    scaling: float


def causal_model(policy: nn.Module) -> Any:
    """Return the causal language model inside an adapter, or the policy itself."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def has_adapter(policy: nn.Module) -> bool:
    """Whether a policy trains an adapter on a frozen base."""
    return isinstance(policy, PeftModel)


def adapter_parameters(policy: nn.Module, adapter: str = POLICY_ADAPTER) -> dict[str, nn.Parameter]:
    """Return the parameters of an adapter, by their names in the policy's own adapter."""
    own, infix = f".{POLICY_ADAPTER}.", f".{adapter}."
    named = ((f"{name}.", param) for name, param in policy.named_parameters())
    return {name.replace(infix, own)[:-1]: param for name, param in named if infix in name}


def is_base(policy: nn.Module) -> bool:
    """Whether a policy with an adapter equals its base: B is zero, and `modules_to_save` are the base's."""
    factors = [
        param for name, param in adapter_parameters(policy).items() if "lora_B" in name or "lora_embedding_B" in name
    ]
    saved = [one for one in policy.modules() if isinstance(one, ModulesToSaveWrapper)]
    return bool(factors or saved) and not any(param.any() for param in factors) and all(map(_equals_base, saved))


def _equals_base(module: Any) -> bool:
    base, own = (one.state_dict() for one in (module.original_module, module.modules_to_save[POLICY_ADAPTER]))
    return all(torch.equal(own[name], value.to(own[name])) for name, value in base.items())


EXTRA_LORA_FIELDS = (
    *("use_dora", "lora_bias", "use_qalora", "trainable_token_indices", "target_parameters", "layer_replication"),
    *("alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
"""Fields of a LoRA configuration that change the update from `scaling * B @ A`."""


def add_adapter_copy(
    policy: Any, name: str, rank: int | None = None, growth: int = 1, dtype: torch.dtype | None = None
) -> None:
    """Add a frozen adapter for a copy of the policy's LoRA adapter; at the same rank it is that copy.

    Args:
        policy: a policy with an adapter.
        name: name of the new one.
        rank: its rank; None takes the policy's times `growth`. The scaling stays the same.
        growth: see `rank`.
        dtype: its precision; None takes the policy's.

    Raises:
        UserError: the policy's adapter is not plain LoRA, or the rank does not fit its `rank_pattern`.
    """
    config = deepcopy(policy.peft_config[POLICY_ADAPTER])
    extras = [field for field in EXTRA_LORA_FIELDS if getattr(config, field, None)]
    if config.peft_type != "LORA" or config.bias != "none" or extras:
        kind = ", ".join(extras) or (f"bias {config.bias!r}" if config.peft_type == "LORA" else config.peft_type.value)
        raise UserError(f"a reference or an average of adapters needs plain LoRA adapters, and this one has {kind}")
    if rank is not None and rank < config.r:
        raise UserError(
            f"AdapterReference: rank {rank} cannot hold a policy of rank {config.r}: give {config.r} or more"
        )
    policy.add_adapter(name, _of_rank(config, rank or config.r * growth))
    copies, same = adapter_parameters(policy, name), rank in (None, config.r) and growth == 1
    for key, param in adapter_parameters(policy).items():
        copies[key].data = param.detach().clone() if same else copies[key].data.to(param.device)
        copies[key].data = copies[key].data.to(dtype or param.dtype)
        copies[key].requires_grad_(False)


def _of_rank(config: LoraConfig, rank: int) -> LoraConfig:
    """Return the configuration of an adapter of another rank and the same scaling in each layer."""
    growth = rank / config.r
    ranks = {pattern: own * growth for pattern, own in (config.rank_pattern or {}).items()}
    if any(own != int(own) or own < 1 for own in ranks.values()):
        raise UserError(f"AdapterReference: rank {rank} makes fractional ranks of rank_pattern {config.rank_pattern}")
    scale = growth**0.5 if config.use_rslora else growth
    config.r, config.lora_alpha = rank, _as_int(config.lora_alpha * scale)
    config.rank_pattern = {pattern: int(own) for pattern, own in ranks.items()}
    config.alpha_pattern = {pattern: _as_int(own * scale) for pattern, own in (config.alpha_pattern or {}).items()}
    config.init_lora_weights = True  # the policy's may be an initialization that changes the base
    return config


def _as_int(value: float) -> Any:
    return int(value) if value == int(value) else value


def lora_factors(policy: nn.Module, *adapters: str) -> dict[str, tuple[LowRank, ...]]:
    """Return the factors of some adapters by layer, named by the A in the policy; sharded if the weights are.

    They are views: writing to them changes the adapter.

    Raises:
        UserError: a layer's factors are not matrices.
    """
    factors = {}
    for layer_name, layer in policy.named_modules():
        if isinstance(layer, LoraLayer) and all(adapter in layer.scaling for adapter in adapters):
            a = f"lora_A.{POLICY_ADAPTER}.weight" if len(layer.lora_A) else f"lora_embedding_A.{POLICY_ADAPTER}"
            name = f"{layer_name}.{a}"
            factors[name] = tuple(LowRank(*_factors(layer, adapter), layer.scaling[adapter]) for adapter in adapters)
            if any(one.a.ndim != 2 for one in factors[name]):
                raise UserError(
                    f"{layer_name}: a LoRA adapter of a convolution has no reference here: take it out of the targets"
                )
    return factors


def _factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight.data, layer.lora_B[adapter].weight.data
    return layer.lora_embedding_A[adapter].data, layer.lora_embedding_B[adapter].data


def saved_modules(policy: Any, adapter: str) -> dict[str, nn.Parameter]:
    """Return the parameters of the `modules_to_save`, which are trained in full, named as by `adapter_parameters`."""
    if not policy.peft_config[adapter].modules_to_save:
        return {}
    return {name: param for name, param in adapter_parameters(policy, adapter).items() if "lora_" not in name}


@contextmanager
def adapter_switched(policy: Any, name: str | None) -> Iterator[Any]:
    """Yield the policy with another adapter, or none for name None, to compute without gradients; restore it after.

    What is trainable stays so: PEFT's own switches set that for each parameter, in a walk over all modules.
    """
    layers = modules_within(policy, BaseTunerLayer | AuxiliaryTrainingWrapper)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer, (active, _) in zip(layers, before, strict=True):
            vars(layer).update(_active_adapter=[name] if name else active, _disable_adapters=name is None)
        yield policy
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            vars(layer).update(_active_adapter=active, _disable_adapters=disabled)


def base_state_keys(policy: nn.Module) -> set[str]:
    """Return the keys of the policy's state_dict that training never changes: the base of an adapter."""
    if not has_adapter(policy):
        return set()
    adapters = cast(PeftModel, policy).peft_config
    return {key for key in policy.state_dict() if not any(f".{name}." in f"{key}." for name in adapters)}


def with_adapter(model: Any, config: dict[str, Any]) -> PeftModel:
    """Return a model with a new adapter for the policy, from PEFT's configuration of it."""
    return get_peft_model(model, PeftConfig.from_peft_type(**{**config, "inference_mode": False}), POLICY_ADAPTER)


def save_adapter(policy: Any, name: str, base: str, folder: Path) -> None:
    """Save a policy's adapter, with the path of its base, as a folder that PEFT loads under its default name."""
    config = deepcopy(policy.peft_config[name])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    save_file(_adapter_state(policy, name), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def merged(policy: Any, name: str) -> PreTrainedModel:
    """Return the base with one adapter added to its weights; the policy must not be used after.

    A 4-bit base is dequantized first: the sum is not rounded to 4 bits again.
    """
    config, weights = deepcopy(policy.peft_config[name]), _adapter_state(policy, name)
    config.base_model_name_or_path = None
    config.init_lora_weights = True  # others would change the base again
    base = policy.unload()
    if getattr(base, "is_quantized", False):
        base = base.dequantize()
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, weights)
    return model.merge_and_unload()


def _adapter_state(policy: Any, name: str) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
