"""Checkpoint -> Hugging Face folder: a full model, an adapter, or an adapter merged into its base."""

from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from lit_tr.commands.checkpoints import read
from lit_tr.commands.model_card import card, push
from lit_tr.data.datamodule import load_tokenizer
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained
from lit_tr.hparams import ADAPTER_KEY, check_kept
from lit_tr.policy.adapters import POLICY_ADAPTER, base_state_keys, has_adapter, merged, save_adapter, with_adapter
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference.base import Reference


def export(
    checkpoint: str | Path,
    output: str | Path,
    merge: bool = False,
    which: Literal["policy", "reference"] = "policy",
    base: str | None = None,
) -> Path:
    """Write the policy or the reference of a checkpoint as a folder that transformers, PEFT and vLLM load.

    Full fine-tuning gives a full model, LoRA an adapter that names its base; each with its tokenizer and a model card.
    The weights keep the precision of the checkpoint. Model code that comes with weights is never run.

    Args:
        checkpoint: file of the checkpoint.
        output: folder to write, new or empty.
        merge: add the adapter to its base and write a full model in the base's precision; a 4-bit base is dequantized
            first, for the adapter was trained on its rounded weights.
        which: the policy, or the checkpoint's reference.
        base: folder or hub id of the policy that training began with; None takes the one in the checkpoint. It is
            required if training began with a model in memory.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoint cannot be read or has no such model, or the folder is not empty.
    """
    folder, saved = _unused(Path(output)), _read(Path(checkpoint))
    run = _run(checkpoint, saved["hyper_parameters"], base, which)
    _check(run, merge, which, saved["state_dict"])
    tokenizer = load_tokenizer(run.policy.path)
    model, adapter = _restored(run, which, checkpoint, saved["state_dict"])
    if adapter and merge:
        model, adapter = merged(model, adapter), None
    with _written(folder) as partial:
        if adapter:
            start = Path(resolve(run.policy.path))  # a folder, or a hub id
            save_adapter(model, adapter, str(start.absolute()) if start.is_dir() else run.policy.path, partial)
        else:
            cast(Any, model).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(
            card(folder.name, saved, run.policy.path, which, bool(adapter), Path(checkpoint))
        )
    return folder


@dataclass(frozen=True)
class _Run:
    """The hyper-parameters of a run that are needed to load its weights."""

    policy: PretrainedPolicy
    adapter: dict[str, Any] | None = None  # that of a policy that was a model in memory
    reference: Reference | None = None  # if it is to be exported


def _unused(folder: Path) -> Path:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"output {folder}: it holds something already; give a new folder")
    return folder.resolve()


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(
            f"checkpoint {path}: a folder of shards; "
            f"make it one file with `python -m lightning.pytorch.utilities.consolidate_checkpoint {path}`"
        )
    if not path.exists():
        raise UserError(f"checkpoint {path}: there is no such file")
    saved = read(path)
    if "policy" not in (saved.get("hyper_parameters") or {}):
        raise UserError(f"checkpoint {path}: it holds no hyper-parameters of a PreferenceModule")
    return saved


def _run(path: str | Path, kept: dict[str, Any], base: str | None, which: str) -> _Run:
    policy = {"path": kept["policy"]} if isinstance(kept["policy"], str) else kept["policy"]
    if policy is None and base is None:
        raise UserError(
            f"checkpoint {path}: training began with a model in memory: give base, the folder or hub id of that model"
        )
    policy = {**(policy or {}), **({"path": base} if base else {}), "trust_remote_code": False}
    wanted = {"policy": policy, "adapter": kept.get(ADAPTER_KEY)}
    if which == "reference":
        check_kept("reference", kept.get("reference", {}))
        wanted["reference"] = kept.get("reference")
    with explained(f"checkpoint {path}: its hyper-parameters cannot be read", ArgumentError):
        return instantiate_module(cast(Any, _Run), wanted)


def _check(run: _Run, merge: bool, which: str, state: dict[str, Tensor]) -> None:
    """Check that there is such a model before large files are loaded."""
    if which not in ("policy", "reference"):
        raise UserError(f"which: policy or reference, not {which!r}")
    if merge and not (run.policy.lora or run.policy.adapter or run.adapter):
        raise UserError("merge: the run trained a full model and has no adapter to merge; leave merge out")
    if which == "policy":
        return
    if run.reference is None or not run.reference.moves:
        start = run.policy.adapter or run.policy.path
        raise UserError(f"which: the reference is the initial policy, {start}, and need not be exported")
    infixes = "reference.model.", f".{run.reference.adapter}."
    if not any(infix in key for key in state for infix in infixes):
        raise UserError(f"which: {type(run.reference).__name__} holds no weights to export; leave which out")


def _restored(run: _Run, which: str, path: str | Path, state: dict[str, Tensor]) -> tuple[nn.Module, str | None]:
    """Return the model with the checkpoint's weights, and the name of the adapter to export, if any."""
    policy, prefix, adapter = run.policy.load(), "policy.", None
    if run.adapter:
        policy = with_adapter(policy, run.adapter)
    if has_adapter(policy):
        adapter = POLICY_ADAPTER
        if run.reference is not None:
            run.reference.prepare(policy)
            adapter = run.reference.adapter
    elif run.reference is not None:
        prefix = "reference.model."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _load_weights(weights, policy, f"checkpoint {path} and {run.policy.path}")
    return policy, adapter


def _load_weights(weights: dict[str, Tensor], model: nn.Module, both: str) -> None:
    missing = model.state_dict().keys() - base_state_keys(model) - weights.keys()
    if missing:
        raise UserError(f"{both} do not go together: {len(missing)} tensors are missing, such as {min(missing)}")
    with explained(f"{both} do not go together", RuntimeError):
        model.load_state_dict(weights, strict=False, assign=True)  # in the saved precision


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes this one at the end, so that a failure leaves no incomplete one."""
    with explained(f"output {folder}: it cannot be written", OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            yield partial
            partial.replace(folder)


def run(args: list[str]) -> None:
    """Export as the options say."""
    description = (export.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(exit_on_error=False, prog="lit-tr export", description=description)
    parser.add_function_arguments(export, as_group=False, skip={"merge"})
    parser.add_argument("--merge", action="store_true", help="add the adapter to its base and write a full model")
    parser.add_argument(
        "--push", type=str | None, help="repository on a hub to upload the folder to, such as name/model"
    )
    given = parser.parse_args(args)
    repo = given.pop("push")
    folder = export(**given)
    print(f"The model is in {folder}")
    if repo:
        print(f"It is uploaded: {push(folder, repo)}")
