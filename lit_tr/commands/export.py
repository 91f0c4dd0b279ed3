"""Checkpoint -> Hugging Face folder: a full model, an adapter, or an adapter merged into its base."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser
from torch import Tensor

from lit_tr.commands.model_card import card, push
from lit_tr.data.datamodule import load_tokenizer
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained
from lit_tr.policy.adapters import merged, save_adapter
from lit_tr.restored import SavedRun, read_checkpoint, restored, saved_run


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
    folder, saved = _unused(Path(output)), read_checkpoint(Path(checkpoint))
    run = saved_run(checkpoint, saved["hyper_parameters"], base, with_reference=which == "reference")
    _check(run, merge, which, saved["state_dict"])
    tokenizer = load_tokenizer(run.policy.path)
    model, adapter = restored(run, checkpoint, saved["state_dict"])
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


def _unused(folder: Path) -> Path:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"output {folder}: it holds something already; give a new folder")
    return folder.resolve()


def _check(run: SavedRun, merge: bool, which: str, state: dict[str, Tensor]) -> None:
    """Check that there is such a model before large files are loaded."""
    if which not in ("policy", "reference"):
        raise UserError(f"which: policy or reference, not {which!r}")
    if merge and not run.has_adapter:
        raise UserError("merge: the run trained a full model and has no adapter to merge; leave merge out")
    if which == "policy":
        return
    if not run.moves:
        start = run.policy.adapter or run.policy.path
        raise UserError(f"which: the reference is the initial policy, {start}, and need not be exported")
    if not run.holds_reference(state):
        raise UserError(f"which: {type(run.reference).__name__} holds no weights to export; leave which out")


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
