"""Where training stands, and where a checkpoint says that it stood."""

from typing import Any

COUNTS = ("ready", "started", "processed", "completed")


def set_progress(loop: dict[str, Any], position: dict[str, Any], over: bool, validate: bool, step: int) -> None:
    """Let the progress that a checkpoint holds be that of the last whole optimizer step.

    Lightning saves the counts of the moment: within a step, whose gradient is in no checkpoint; or at the last batch of
    an epoch, from where it would go on with an empty epoch, or count one epoch twice.

    Args:
        loop: state of the `fit_loop`, changed in place.
        position: `epoch` and number of its `batches` that were trained on, whether it has `ended`, `total` batches.
        over: the hooks of the epoch's end have run.
        validate: validation was due after this step, and has not run to its end.
        step: number of optimizer steps.
    """
    epochs, batches = (position["epoch"] + 1, 0) if over else (position["epoch"], position["batches"])
    begun = epochs + (batches > 0)
    _set(loop["epoch_progress"], dict(zip(COUNTS, (begun, begun, epochs, epochs), strict=True)))
    _set(loop["epoch_loop.batch_progress"], dict.fromkeys(COUNTS, batches), dict.fromkeys(COUNTS, position["total"]))
    loop["epoch_loop.batch_progress"]["is_last_batch"] = position["ended"] and batches > 0
    # Lightning takes an evaluation in which a batch was begun and not processed for one that is to go on
    _set(loop["epoch_loop.val_loop.batch_progress"], dict(zip(COUNTS, (validate, validate, 0, 0), strict=True)))
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - validate


def _set(progress: dict[str, Any], current: dict[str, int], total: dict[str, int] | None = None) -> None:
    progress["current"] = {name: int(count) for name, count in current.items()}
    progress["total"] = {name: int(count) for name, count in (total or current).items()}


def ends_step(trainer: Any) -> bool:
    """Whether the batch that is trained on ends an optimizer step."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    at_end = not trainer.strategy.handles_gradient_accumulation and _is_last(trainer)
    return ready % trainer.accumulate_grad_batches == 0 or at_end


def is_logged(trainer: Any) -> bool:
    """Whether the batch that is trained on ends an optimizer step whose values Lightning logs."""
    every = trainer.log_every_n_steps
    return bool(every) and ends_step(trainer) and (trainer.global_step + 1) % every == 0


def ends_epoch(trainer: Any) -> bool:
    """Whether the batch that is trained on is the last one of an epoch or of the run."""
    last_step = trainer.global_step + 1 == trainer.max_steps and ends_step(trainer)
    return last_step or _is_last(trainer)


def _is_last(trainer: Any) -> bool:
    """Whether the batch that is trained on is the last one of an epoch."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready == trainer.num_training_batches or trainer.is_last_batch
