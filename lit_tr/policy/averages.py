"""Averages of a policy with the policy that its training began with, at one rate or by groups of layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lit_tr.errors import UserError
from lit_tr.policy.adapters import (
    adapter_parameters,
    adapter_switched,
    add_adapter_copy,
    base_state_keys,
    has_adapter,
    is_base,
)
from lit_tr.policy.layers import repeated_layers
from lit_tr.policy.logprobs import scoring

AVERAGE = "average"
"""Name of the adapter that is the average."""

Ends = dict[str, tuple[Tensor, Tensor]]
"""Tensors of the initial policy and of the policy, by name."""


class Averages:
    """The averages `rate * policy + (1 - rate) * initial` of the weights of a policy and of its initial policy.

    This is model averaging, with several rates heterogeneous model averaging (Lin et al. 2023, "Mitigating the
    Alignment Tax of RLHF", arXiv 2309.06256). Each tensor is computed in float32 and kept in the policy's precision;
    rate 1 gives the policy and rate 0 the initial policy, to the bit. Of K rates each is that of a group of consecutive
    layers, see `layer_groups`.

    Of LoRA adapters the weights are averaged, not the factors. On an initial policy that is the base, B is scaled by
    the rate. One that has an adapter itself gives the stacked factors `[rate * B, (1 - rate) * B0]` and `[A; A0]`, of
    twice the rank. `modules_to_save` are averaged as other weights.

    Args:
        initial: the initial policy, as it was loaded. It becomes the average.
        policy: the policy's tensors, by their names in its `state_dict`, such as those of a checkpoint.

    Attributes:
        model: the model that `set` changes.
        adapter: name of the adapter that holds the average; None where all weights are averaged.

    Raises:
        UserError: the two do not go together, or the adapter is not plain LoRA.
    """

    def __init__(self, initial: nn.Module, policy: Mapping[str, Tensor]) -> None:
        self.model, self.adapter = initial, AVERAGE if has_adapter(initial) else None
        own = _trained(initial)
        _check_match(own, policy)
        self._ends: Ends = {name: (tensor.detach().cpu(), policy[name]) for name, tensor in own.items()}
        self._tensors = own
        if self.adapter:
            at_base = is_base(initial)
            add_adapter_copy(initial, self.adapter, growth=1 if at_base else 2)
            self._ends = _of_adapter(self._ends, at_base)
            self._tensors = {**adapter_parameters(initial, self.adapter)}

    def set(self, rates: Sequence[float], last: bool = False) -> None:
        """Let the model be the average of some rates.

        Args:
            rates: one for all layers, or one for each group of layers, from the input to the output.
            last: free the weights that are averaged, tensor after tensor; no other average can follow.

        Raises:
            UserError: a rate is not in [0, 1], or there are more rates than layers.
        """
        groups = layer_groups(self.model, self._tensors, len(check_rates(rates)))
        for name, tensor in self._tensors.items():
            ends = self._ends.pop(name) if last else self._ends[name]
            tensor.data = average(*ends, rates[groups[name]]).to(tensor.device)

    @contextmanager
    def at(self, rates: Sequence[float]) -> Iterator[Any]:
        """Yield the model as the average of some rates, without gradient and dropout; its weights stay so after."""
        self.set(rates)
        with adapter_switched(self.model, self.adapter) if self.adapter else nullcontext(), scoring(self.model):
            yield self.model


def average(initial: Tensor, policy: Tensor, rate: float) -> Tensor:
    """Return `rate * policy + (1 - rate) * initial`, computed in float32 or above, in the precision of the policy."""
    if rate in (0, 1) or not policy.is_floating_point():
        return initial.to(policy.dtype) if rate == 0 else policy
    wide = torch.promote_types(policy.dtype, torch.float32)
    return torch.lerp(initial.to(wide), policy.to(wide), rate).to(policy.dtype)


def check_rates(rates: Sequence[float]) -> Sequence[float]:
    """Return rates if there are some, all in [0, 1]; else raise a `UserError`."""
    if not rates:
        raise UserError("average: give one rate, or one for each group of layers")
    for rate in rates:
        if not 0 <= rate <= 1:
            raise UserError(f"average: a rate must be in [0, 1], not {rate}: 1 is the policy, 0 the initial policy")
    return rates


def layer_groups(model: nn.Module, names: Iterable[str], count: int) -> dict[str, int]:
    """Return the number of the group that each tensor of a model belongs to, from 0 at the input.

    The layers are divided into groups of consecutive ones, whose sizes differ by one at most. Embeddings go with the
    first group, and so does a head that is tied to them; the head and the final norm go with the last group.

    Args:
        model: a causal language model, or PEFT's model of one; its weights may have no values.
        names: names of its tensors.
        count: how many groups.

    Raises:
        UserError: there are more groups than layers.
    """
    if count == 1:
        return dict.fromkeys(names, 0)
    path, layers = repeated_layers(model)
    if count > len(layers):
        raise UserError(f"average: {count} groups of layers are too many, for the model has {len(layers)} layers")
    embeddings = [
        path.removesuffix(".base_layer") for path, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    groups = {}
    for name in names:
        number = name.removeprefix(f"{path}.").partition(".")[0]
        if name.startswith(f"{path}."):
            groups[name] = int(number) * count // len(layers)
        else:
            groups[name] = 0 if any(name.startswith(f"{one}.") for one in embeddings) else count - 1
    return groups


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint holds of a model, by name; what several names share, by the first one."""
    frozen, seen = base_state_keys(model), dict[int, str]()
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in frozen}
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}


def _check_match(initial: Mapping[str, Tensor], policy: Mapping[str, Tensor]) -> None:
    for name, tensor in initial.items():
        if name not in policy or policy[name].shape != tensor.shape:
            ours = f"the shape {tuple(policy[name].shape)}" if name in policy else "none"
            raise UserError(
                f"average: {name!r} has the shape {tuple(tensor.shape)} in the initial policy, and {ours} in the "
                "policy: base must be what training began with"
            )


def _of_adapter(ends: Ends, at_base: bool) -> Ends:
    """Return tensors of an adapter whose average, element by element, is that of the weights: A is one for both."""
    found: Ends = {}
    for name, (initial, policy) in ends.items():
        if "lora_" in name and "_A." in name:
            a = policy if at_base else torch.cat([policy, initial.to(policy.dtype)])
            found[name] = a, a
        elif "lora_" in name and not at_base:
            zeros = torch.zeros_like(policy)
            found[name] = torch.cat([zeros, initial], dim=1), torch.cat([policy, zeros], dim=1)
        else:  # B, which is zero in the base; or of `modules_to_save`
            found[name] = initial, policy
    return found
