"""The models in a checkpoint: its policy and its reference, with the weights that were saved."""

from argparse import ArgumentError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from lit_tr.checkpoints import read
from lit_tr.errors import UserError, explained
from lit_tr.hparams import ADAPTER_KEY, check_kept
from lit_tr.losses import Loss
from lit_tr.policy.adapters import POLICY_ADAPTER, base_state_keys, has_adapter, with_adapter
from lit_tr.policy.averages import Averages
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference.base import Reference


@dataclass(frozen=True)
class SavedRun:
    """The hyper-parameters of a run that are needed to load its weights.

    Args:
        policy: where the policy came from.
        adapter: PEFT's configuration of the adapter of a policy that was a model in memory.
        reference: the reference, if it is asked for.
    """

    policy: PretrainedPolicy
    adapter: dict[str, Any] | None = None
    reference: Reference | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether it trained an adapter on a frozen base."""
        return bool(self.policy.lora or self.policy.adapter or self.adapter)

    @property
    def refers_to_start(self) -> bool:
        """Whether its reference is the initial policy; also where it has none."""
        return self.reference is None or self.reference.is_start

    @property
    def moves(self) -> bool:
        """Whether its reference could move."""
        return self.reference is not None and self.reference.moves

    def holds_reference(self, state: dict[str, Tensor]) -> bool:
        """Whether a checkpoint of it has weights of the reference."""
        infixes = "reference.model.", f".{self.reference.adapter}." if self.reference else "."
        return self.moves and any(infix in key for key in state for infix in infixes)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of a `PreferenceModule`, with tensors mapped from its file.

    Raises:
        UserError: it is a folder of shards, or no such checkpoint.
    """
    if path.is_dir():
        raise UserError(
            f"checkpoint {path}: a folder of shards; "
            f"make it one file with `python -m lightning.fabric.utilities.consolidate_checkpoint {path}`"
        )
    if not path.exists():
        raise UserError(f"checkpoint {path}: there is no such file")
    saved = read(path)
    if "policy" not in (saved.get("hyper_parameters") or {}):
        raise UserError(f"checkpoint {path}: it holds no hyper-parameters of a PreferenceModule")
    return saved


def saved_run(path: str | Path, kept: dict[str, Any], base: str | None, with_reference: bool) -> SavedRun:
    """Return the run of some saved hyper-parameters. Model code that comes with weights is never run.

    Args:
        path: the checkpoint, for messages.
        kept: its hyper-parameters.
        base: folder or hub id of the policy that training began with; None takes the one in the checkpoint.
        with_reference: whether the reference is asked for.

    Raises:
        UserError: they cannot be read, or training began with a model in memory and there is no `base`.
    """
    policy = {"path": kept["policy"]} if isinstance(kept["policy"], str) else kept["policy"]
    if policy is None and base is None:
        raise UserError(
            f"checkpoint {path}: training began with a model in memory: give base, the folder or hub id of that model"
        )
    policy = {**(policy or {}), **({"path": base} if base else {}), "trust_remote_code": False}
    wanted = {"policy": policy, "adapter": kept.get(ADAPTER_KEY)}
    if with_reference:
        check_kept("reference", kept.get("reference", {}))
        wanted["reference"] = kept.get("reference")
    with explained(f"checkpoint {path}: its hyper-parameters cannot be read", ArgumentError):
        return instantiate_module(cast(Any, SavedRun), wanted)


@dataclass(frozen=True)
class _Trained:
    loss: Loss


def saved_loss(path: str | Path, kept: dict[str, Any]) -> Loss:
    """Return the loss of some saved hyper-parameters.

    Args:
        path: the checkpoint, for messages.
        kept: its hyper-parameters.

    Raises:
        UserError: it cannot be read.
    """
    check_kept("loss", kept["loss"])
    with explained(f"checkpoint {path}: its loss cannot be read", ArgumentError):
        return instantiate_module(cast(Any, _Trained), {"loss": kept["loss"]}).loss


def restored(
    run: SavedRun, path: str | Path, state: dict[str, Tensor], device: torch.device | str = "cpu"
) -> tuple[nn.Module, str | None]:
    """Return a model with the checkpoint's weights, in their precision, and the name of the adapter, if any.

    With LoRA, the model has the adapters of policy and reference. Else it is the reference if the run has one.

    Raises:
        UserError: the weights do not fit the model.
    """
    policy, prefix, adapter = run.policy.load(device), "policy.", None
    if run.adapter:
        policy = with_adapter(policy, run.adapter)
    if has_adapter(policy):
        adapter = POLICY_ADAPTER
        if run.reference is not None:
            run.reference.prepare(policy)
            adapter = run.reference.adapter
    elif run.reference is not None:
        prefix = "reference.model."
    _load_weights(_below(prefix, state), policy, f"checkpoint {path} and {run.policy.path}")
    return policy.to(device), adapter


def averages(run: SavedRun, path: str | Path, state: dict[str, Tensor], device: torch.device | str = "cpu") -> Averages:
    """Return the averages of the policy in a checkpoint with the policy that its training began with.

    Raises:
        UserError: the weights do not fit the model, or training began with an adapter in memory.
    """
    if run.adapter:
        raise UserError(
            f"checkpoint {path}: training began with an adapter in memory, which it has only as it became, so there is "
            "no initial policy to average with"
        )
    initial = replace(run.policy, compile=False, gradient_checkpointing=False).load(device)
    return Averages(initial, _below("policy.", state))


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _load_weights(weights: dict[str, Tensor], model: nn.Module, both: str) -> None:
    missing = model.state_dict().keys() - base_state_keys(model) - weights.keys()
    if missing:
        raise UserError(f"{both} do not go together: {len(missing)} tensors are missing, such as {min(missing)}")
    with explained(f"{both} do not go together", RuntimeError):
        model.load_state_dict(weights, strict=False, assign=True)  # in the saved precision
