"""Checkpoint -> Hugging Face folder: a full model, an adapter, or an adapter merged into its base; or an average."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lit_tr.commands.model_card import card, push
from lit_tr.commands.parsing import parsed
from lit_tr.data.datamodule import load_tokenizer
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.rate_search import Averaged, RateSearch
from lit_tr.policy.adapters import merged, save_adapter
from lit_tr.policy.averages import check_rates, layer_groups
from lit_tr.restored import SavedRun, averages, read_checkpoint, restored, saved_run
from lit_tr.rewards.classifier import HEAD, sequence_classifier

AVERAGE = "average.json"
"""File of the rates of an average, and of the search that found them."""


def export(
    checkpoint: str | Path,
    output: str | Path,
    merge: bool = False,
    which: Literal["policy", "reference"] = "policy",
    base: str | None = None,
    average: float | list[float] | RateSearch | None = None,
) -> Path:
    """Write the policy or the reference of a checkpoint as a folder that transformers, PEFT and vLLM load.

    Full fine-tuning gives a full model, LoRA an adapter that names its base; each with its tokenizer and a model card.
    A checkpoint of `RewardModule` gives the sequence classifier that `RewardModel` loads, with an adapter merged.
    The weights keep the precision of the checkpoint. Model code that comes with weights is never run.

    Args:
        checkpoint: file of the checkpoint.
        output: folder to write, new or empty.
        merge: add the adapter to its base and write a full model in the base's precision; a 4-bit base is dequantized
            first, for the adapter was trained on its rounded weights.
        which: the policy, or the checkpoint's reference.
        base: folder or hub id of the policy that training began with; None takes the one in the checkpoint. It is
            required if training began with a model in memory.
        average: write `rate * policy + (1 - rate) * initial policy` for a rate in [0, 1], or for a rate of each group
            of layers, from the input to the output; or for the best rates by a metric. See `Averages` and
            `RateSearch`.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoint cannot be read or has no such model, rates are not as they should be, or the folder is
            not empty.
    """
    folder, saved = _unused(Path(output)), read_checkpoint(Path(checkpoint))
    run = saved_run(checkpoint, saved["hyper_parameters"], base, with_reference=which == "reference")
    head = saved["state_dict"].get(HEAD)
    _check(run, merge, which, saved["state_dict"])
    if head is not None and average is not None:
        raise UserError("average: policies are averaged, and this is a reward model; leave average out")
    tokenizer, found = load_tokenizer(run.policy.path), None
    if average is None:
        model, adapter = restored(run, checkpoint, saved["state_dict"])
    else:
        model, adapter, found = _averaged(run, checkpoint, saved, which, tokenizer, average)
    if adapter and (merge or head is not None):
        model, adapter = merged(model, adapter), None
    if head is not None:
        model = sequence_classifier(model, head, tokenizer)
    with _written(folder) as partial:
        if adapter:
            start = Path(resolve(run.policy.path))  # a folder, or a hub id
            save_adapter(model, adapter, str(start.absolute()) if start.is_dir() else run.policy.path, partial)
        else:
            cast(Any, model).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(
            card(
                folder.name,
                saved,
                run.policy.path,
                which if head is None else "reward",
                bool(adapter),
                Path(checkpoint),
                found,
            )
        )
        if found:
            (partial / AVERAGE).write_text(json.dumps(found.as_json(), indent=2) + "\n")
            print(f"An average of the policy with its initial policy: {found}")
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
    if run.refers_to_start:
        start = run.policy.adapter or run.policy.path
        raise UserError(f"which: the reference is the initial policy, {start}, and need not be exported")
    if not run.holds_reference(state):
        raise UserError(f"which: {type(run.reference).__name__} holds no weights to export; leave which out")


def _averaged(
    run: SavedRun, checkpoint: str | Path, saved: dict[str, Any], which: str, tokenizer: Any, given: Any
) -> tuple[nn.Module, str | None, Averaged]:
    """Return an average of policy and initial policy, the adapter that holds it, and its rates."""
    if which != "policy":
        raise UserError("average: the policy is averaged with its initial policy; leave which out")
    search: RateSearch | None = given if callable(given) else None
    rates = check_rates(given if isinstance(given, list | tuple) else [given]) if search is None else ()
    layer_groups(run.policy.load_meta(), (), search.groups if search else len(rates))
    rows = search.rows(saved.get("config") or {}, checkpoint) if search else None
    made = averages(run, checkpoint, saved["state_dict"], search.placed if search else "cpu")
    found = search(made, tokenizer, rows, print) if search else Averaged(tuple(rates))
    made.set(found.rates, last=True)
    return made.model, made.adapter, found


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
    made = parser()
    given = made.instantiate(parsed(made, args))
    repo = given.pop("push")
    folder = export(**given)
    print(f"The model is in {folder}")
    if repo:
        print(f"It is uploaded: {push(folder, repo)}")


def parser() -> ArgumentParser:
    """Return the parser of the verb."""
    description = (export.__doc__ or "").partition("\n")[0]
    made = ArgumentParser(exit_on_error=False, prog="lit-tr export", description=description)
    made.add_function_arguments(export, as_group=False, skip={"merge"})
    made.add_argument("--merge", action="store_true", help="add the adapter to its base and write a full model")
    made.add_argument("--push", type=str | None, help="repository on a hub to upload the folder to, such as name/model")
    return made
