"""Policies by name: the three models of a checkpoint, a Hugging Face folder or id, an adapter on its base."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.data.datamodule import load_tokenizer
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.policy.adapters import POLICY_ADAPTER
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.restored import SavedRun, read_checkpoint, restored, saved_loss, saved_run

DType = Literal["float32", "bfloat16", "float16"]
POLICY, REFERENCE, INITIAL = WHICH = ("policy", "reference", "initial")
"""The models of a checkpoint; `CKPT:reference` names the second one."""
BLOCK, BLOCKS = 2**16, 64
"""Size and number of the pieces of a file of weights that tell it from others."""


@dataclass(frozen=True)
class Loading:
    """How weights are loaded.

    Args:
        dtype: their precision; None takes that of the run or of the folder.
        quantize: `nf4` puts the linear layers of a model, or of the base of an adapter, into 4 bits, as in training.
        device: the device; None takes a GPU if there is one.
        base: folder or hub id of the model that training began with, or that an adapter is for; None takes the one that
            checkpoint or adapter name.
    """

    dtype: DType | None = None
    quantize: Literal["nf4"] | None = None
    device: str | None = None
    base: str | None = None

    @property
    def placed(self) -> str:
        """The device."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


def open_policies(
    specs: Sequence[str], loading: Loading = Loading(), names: Sequence[str] = (), token_rewards: bool = False
) -> list[LocalPolicy]:
    """Return policies; no weights are loaded yet. Those of one LoRA checkpoint share one base.

    Args:
        specs: each a checkpoint, or the folder of a run for its newest, with `:reference` or `:initial` for these; or a
            Hugging Face folder or id of a model or an adapter.
        loading: how weights are loaded.
        names: names for files of responses; by default made of the paths.
        token_rewards: responses of a checkpoint are to have their divergence from its initial policy, and the implicit
            reward of each token.

    Raises:
        UserError: there is no such policy, two have one name, or token rewards are asked of what has none.
    """
    checkpoints: dict[Path, Checkpoint] = {}
    found = []
    for spec in specs:
        path, which = split_spec(spec)
        file = checkpoint_of(path)
        if file is None and token_rewards:
            raise UserError(f"{spec}: token_rewards are against the initial policy, which only a checkpoint knows")
        if file is None:
            found.append(_of_folder(spec, loading))
        else:
            checkpoint = checkpoints.setdefault(file, Checkpoint(file, loading))
            found.append(checkpoint.rewarded(which) if token_rewards else checkpoint.policy(which))
    return named(found, names)


def named(policies: Sequence[LocalPolicy], names: Sequence[str] = ()) -> list[LocalPolicy]:
    """Return policies with other names, if there are any.

    Raises:
        UserError: there are not as many names as policies, or two policies have one name.
    """
    if names and len(names) != len(policies):
        raise UserError(f"names: there are {len(policies)} policies and {len(names)} names")
    found = [replace(one, name=name) for one, name in zip(policies, names, strict=True)] if names else [*policies]
    twice = {one.name for one in found if sum(other.name == one.name for other in found) > 1}
    if twice:
        raise UserError(f"two policies are called {min(twice)}: give each a name")
    return found


def split_spec(spec: str) -> tuple[str, str]:
    """Return path and model of `path:reference`; a path alone is that of its policy."""
    path, _, which = spec.rpartition(":")
    return (path, which) if which in WHICH and path else (spec, POLICY)


def checkpoint_of(path: str) -> Path | None:
    """Return the checkpoint that a path names: the file, or the newest one in the folder of a run; else None.

    Raises:
        UserError: the run has no whole checkpoint.
    """
    found = Path(path).expanduser()
    if found.suffix == ".ckpt" or found.is_file():
        return found
    if not (found / "checkpoints").is_dir() or (found / "config.json").exists():
        return None
    newest = next(complete_checkpoints(found / "checkpoints"), None)
    if newest is None:
        raise UserError(f"{path}: this run has no checkpoint yet")
    return newest


class Checkpoint:
    """The policy, the reference and the initial policy of a run, out of a checkpoint.

    Args:
        path: file of the checkpoint.
        loading: how weights are loaded.

    Raises:
        UserError: it is none, or its hyper-parameters cannot be read.
    """

    def __init__(self, path: Path, loading: Loading = Loading()) -> None:
        self.path, self.loading, self.saved = path, loading, read_checkpoint(path)
        kept = self.saved["hyper_parameters"]
        self.run = saved_run(path, kept, loading.base, with_reference=kept.get("reference") is not None)
        source = self.run.policy
        source = replace(source, dtype=loading.dtype or source.dtype, compile=False, gradient_checkpointing=False)
        self.run = replace(self.run, policy=source)

    def policy(self, which: str = POLICY) -> LocalPolicy:
        """Return one of its policies.

        Args:
            which: `policy`, `reference` or `initial`. A frozen reference is the initial policy.

        Raises:
            UserError: the checkpoint does not hold it.
        """
        if which == REFERENCE and self.run.refers_to_start:
            which = INITIAL
        self._check(which)
        source = self.run.policy.path
        weights = _fingerprint(self.path) | {"which": which, "dtype": self.run.policy.dtype}
        run, file = self.path.parent.parent.name, self.path.stem
        name = f"{run}-{file}" if self.path.parent.name == "checkpoints" and run else file
        return LocalPolicy(
            name if which == POLICY else f"{name}-{which}",
            load_tokenizer(source),
            context_of(_config(source)),
            weights,
            lambda: self._load(which),
        )

    def rewarded(self, which: str = POLICY) -> LocalPolicy:
        """Return one of its policies; responses have the implicit reward of each token, of the initial policy's all 0.

        Raises:
            UserError: the checkpoint does not hold the policy or the initial one, or its loss has no such reward.
        """
        found, loss = self.policy(which), saved_loss(self.path, self.saved["hyper_parameters"])
        if not loss.needs_reference:
            raise UserError(f"{self.path}: the loss {type(loss).__name__} has no reference, so tokens have no reward")
        identity = found.identity | {"token_rewards": loss.beta}
        return replace(found, identity=identity, initial=self.policy(INITIAL), beta=loss.beta)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of its run; empty where it came from no command line."""
        return self.saved.get("config") or {}

    def _check(self, which: str) -> None:
        if which == REFERENCE and not self.run.holds_reference(self.saved["state_dict"]):
            kind = type(self.run.reference).__name__
            raise UserError(f"{self.path}:{which}: a {kind} keeps no weights in checkpoints")
        if which == INITIAL and self.run.adapter:
            raise UserError(
                f"{self.path}:{which}: training began with an adapter in memory, which the checkpoint has only as it "
                "became: give the folder that it came from"
            )

    def _load(self, which: str) -> tuple[nn.Module, str | None]:
        policy = self.run.policy
        if self.run.has_adapter and not (which == INITIAL and policy.adapter):
            reference = self.run.reference
            adapters = {POLICY: POLICY_ADAPTER, REFERENCE: reference.adapter if reference else None, INITIAL: None}
            return self._with_adapters, adapters[which]
        if which == INITIAL:
            return self._initial, POLICY_ADAPTER
        run = self.run if which == REFERENCE else replace(self.run, reference=None)
        return self._restored(run), None

    @cached_property
    def _initial(self) -> nn.Module:
        return self.run.policy.load(self.loading.placed)

    @cached_property
    def _with_adapters(self) -> nn.Module:
        """The base with the adapters of the policy and of a reference that moves."""
        holds = self.run.holds_reference(self.saved["state_dict"])
        return self._restored(self.run if holds else replace(self.run, reference=None))

    def _restored(self, run: SavedRun) -> nn.Module:
        model, _ = restored(run, self.path, self.saved["state_dict"], self.loading.placed)
        if self.loading.dtype and not run.policy.quantize:
            model.to(getattr(torch, self.loading.dtype))
        return model


def _of_folder(path: str, loading: Loading) -> LocalPolicy:
    """Return the policy of a Hugging Face folder or id: a model, or an adapter with its base."""
    given, tokenizer = _source(path, loading), path
    if given.adapter and not any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = given.path
    found = load_tokenizer(tokenizer)
    config = _config(given.path)
    dtype = loading.dtype or str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    given = replace(given, dtype=cast(DType, dtype))
    weights = _fingerprint(Path(resolve(path))) | {"dtype": dtype, "base": given.path if given.adapter else None}
    weights |= {"quantize": loading.quantize} if loading.quantize else {}
    name = Path(path).absolute().name if Path(path).is_dir() else path
    adapter = POLICY_ADAPTER if given.adapter else None
    return LocalPolicy(name, found, context_of(config), weights, lambda: (given.load(loading.placed), adapter))


def _source(path: str, loading: Loading) -> PretrainedPolicy:
    with explained(f"{path}: neither a model nor an adapter can be found in this folder or hub id", OSError):
        found = find_adapter_config_file(resolve(path))
    if found is None:
        unused = LoRA(r=1) if loading.quantize else None  # 4 bits stand under an adapter, which is switched off
        return PretrainedPolicy(path, quantize=loading.quantize, lora=unused)
    base = loading.base or json.loads(Path(found).read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{path}: the adapter names no base: give base, the folder or hub id of its model")
    return PretrainedPolicy(base, adapter=path, quantize=loading.quantize)


def _config(path: str) -> Any:
    said = f"{path}: no configuration of a causal language model in this folder or hub id"
    with explained(said, OSError, ValueError):
        return AutoConfig.from_pretrained(resolve(path))


def context_of(config: Any) -> int | None:
    """Return how many tokens a model takes, if its configuration says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _fingerprint(path: Path) -> dict[str, Any]:
    """Return what tells weights from others that once had the same path; of a hub id the id.

    It is a hash of sizes and of pieces of each file, evenly spaced up to its end: a step of training changes nearly all
    weights, and the end of a checkpoint has the checksums of its tensors.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin"))
    digest = blake2b(digest_size=12)
    for one in files:
        size = one.stat().st_size
        digest.update(str(size).encode())
        with one.open("rb") as file:
            for i in range(BLOCKS):
                file.seek(max(size - BLOCK, 0) * i // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return {"weights": digest.hexdigest() if files else str(path)}
