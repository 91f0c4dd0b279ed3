"""What a checkpoint holds beside weights and optimizer, so that a run goes on exactly: state that all ranks save."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_tr.errors import UserError
from lit_tr.holder import take_reference
from lit_tr.policy.sharding import of_ranks
from lit_tr.progress import set_progress

RANKS = "lit_tr_ranks"


def save(module: Any, checkpoint: dict[str, Any]) -> None:
    """Add what the ranks hold to a checkpoint of training, and let it be that of the last whole optimizer step."""
    if "current_model_state" in checkpoint:  # WeightAveraging has copied the reference, too, when training began
        averaged = dict(module.named_parameters())
        current = checkpoint["current_model_state"].items()
        checkpoint["state_dict"] |= {name: value for name, value in current if name not in averaged}
    if not module._trainer or module.trainer.state.fn != TrainerFn.FITTING or not hasattr(module, "loader"):
        return
    position, fit = module.loader.position(), module.trainer.fit_loop
    total = fit.epoch_loop.batch_progress.total
    within = total.processed != position["total"] or total.started != total.processed
    over = position["ended"] and fit.epoch_progress.current.processed > position["epoch"]
    validate = not within and _validation_is_due(module, total.completed < total.processed)
    set_progress(checkpoint["loops"]["fit_loop"], position, over, validate, module.global_step)
    rank = module.reference.rank_state() if module.reference is not None else None
    state = {**(module.before_step if within else moment(module)), "position": position, "reference": rank}
    state["packs"] = module.scorer.packs
    checkpoint[RANKS] = of_ranks(move_data_to_device(state, "cpu"))


def load(module: Any, checkpoint: dict[str, Any]) -> None:
    """Take what the ranks hold; a checkpoint of another policy or kind of reference is a `UserError`."""
    states = checkpoint.get(RANKS, [])
    if states and module.reference is not None:
        module.reference.load_rank_state([state["reference"] for state in states], module.global_rank)
    if states and states[0].get("loss") == type(module.loss).__name__:  # those of another one mean something else
        module.scorer.statistics = states[0]["statistics"]
    if module._trainer and module.trainer.state.fn == TrainerFn.FITTING:
        module.saved = states
        if states and states[0].get("packs") is False:  # or learned weights could prove what the first ones did not
            module.scorer.packs = False
            if hasattr(rows := module.trainer.datamodule, "packed"):
                rows.packed = False
        module.trainer.num_sanity_val_steps = 0  # Lightning leaves it out for most resumes, and not for all
    if "state_dict" not in checkpoint:  # the strategy has read it: all of a folder of shards, of a file the module tree
        path = Path(module.trainer.ckpt_path or "")
        if module.reference is not None and path.is_file():
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
            take_reference(module, state, "", None, True, [])
        return
    optional = tuple(f"reference.{start}" for start in getattr(module.reference, "optional", ()))
    states = (module.state_dict(), checkpoint["state_dict"])
    ours, theirs = ({key for key in state if not key.startswith(optional)} for state in states)
    if ours != theirs:
        missing, unknown = ours - theirs, theirs - ours
        raise UserError(
            f"the checkpoint is of another policy or kind of reference: {len(missing)} tensors are not in it, "
            f"{len(unknown)} are not in the model, such as {min(missing | unknown)}"
        )


def restore(module: Any, states: list[dict[str, Any]]) -> None:
    """Go on from where the ranks stood."""
    if len(states) == module.trainer.world_size:
        own = states[module.global_rank]
        module.interval.load_state(own["interval"], module.device)
        _set_random_state(own["random_state"], module.device)
        if own["position"]["start"]["ended"] and not own["position"]["skip"]:
            torch.set_rng_state(own["position"]["start"]["random_state"])  # what the order of the epoch is drawn from


def moment(module: Any) -> dict[str, Any]:
    """Return what changes within an optimizer step, as it is now."""
    return {
        "random_state": _random_state(module.device),
        "interval": module.interval.state(),
        "loss": type(module.loss).__name__,
        "statistics": module.scorer.statistics,
    }


def _validation_is_due(module: Any, at_batch_end: bool) -> bool:
    """Whether validation follows the batch that was trained on last, and has not run to its end."""
    trainer = module.trainer
    if at_batch_end:
        return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return trainer.validating and not module.is_validated


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
