"""Which batches a Trainer will bring, before it brings them: what a WindowReference has to score."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_tr.errors import UserError


@runtime_checkable
class Update(Protocol):
    """A callback that moves a reference.

    Attributes:
        reference: path of the attribute that moves.
        hard: the reference becomes the policy.
        foreseen: `next_update` tells for sure.
    """

    reference: str
    hard: bool
    foreseen: bool

    def next_update(self, step: int) -> int:
        """Return the first optimizer step behind `step` that an update follows."""


def hard_update(trainer: Trainer, reference: str = "reference") -> Update:
    """Return the one callback that moves a reference, which makes hard updates.

    Raises:
        UserError: there is none, there are several, or it is no hard one; or steps cannot be counted ahead.
    """
    callbacks = cast(Any, trainer).callbacks
    updates = [callback for callback in callbacks if isinstance(callback, Update) and callback.reference == reference]
    if len(updates) != 1 or not (updates[0].hard and updates[0].foreseen):
        found = " and ".join(type(update).__name__ for update in updates) or "no update of the reference"
        raise UserError(f"WindowReference goes with one HardReferenceUpdate, not with {found}: else take CopyReference")
    for hindrance, found in {
        "16-mixed precision, which skips steps: take bf16-mixed": getattr(trainer.precision_plugin, "scaler", None),
        "reload_dataloaders_every_n_epochs": cast(Any, trainer).reload_dataloaders_every_n_epochs,
        "GradientAccumulationScheduler": any(isinstance(c, GradientAccumulationScheduler) for c in callbacks),
    }.items():
        if found:
            raise UserError(
                f"WindowReference must know the batches up to the next update, so it does not go with {hindrance}"
            )
    return updates[0]


def check_loader(trainer: Trainer) -> None:
    """Check that the batches of the training loader can be had before they come.

    Raises:
        UserError: they cannot.
    """
    if not isinstance(trainer.train_dataloader, StatefulDataLoader):
        kind = type(trainer.train_dataloader).__name__
        raise UserError(
            f"WindowReference looks at the batches ahead, which a {kind} does not allow: give one torchdata "
            "StatefulDataLoader, as PreferenceDataModule does"
        )
    if trainer.num_training_batches == float("inf"):
        raise UserError(
            "WindowReference looks at the batches ahead, over the end of an epoch: give a loader of a known length"
        )


def batches_of_steps(trainer: Trainer, steps: int) -> int:
    """Return how many batches the next optimizer steps are made of, the one in hand the first of them.

    An optimizer step ends with each n-th batch of an epoch, and with its last one.
    """
    index, count = trainer.fit_loop.batch_idx, 0
    while steps:
        count, index = count + 1, index + 1
        last = index == trainer.num_training_batches
        steps -= last or index % trainer.accumulate_grad_batches == 0
        index = 0 if last else index
    return count


def training_batches(trainer: Trainer, batch: Any, count: int) -> Iterator[Any]:
    """Yield the training batch in hand and those that come behind it, in all `count`, over the ends of epochs.

    The trainer's own loader stays where it is: a copy of it goes on from its state.
    """
    yield batch
    twin = _twin(cast(StatefulDataLoader, trainer.train_dataloader))
    in_epoch, count = int(trainer.num_training_batches) - trainer.fit_loop.batch_idx - 1, count - 1
    while count:
        batches = iter(twin)
        if not in_epoch:
            next(batches, None)  # a sampler has begun its epoch only when it was asked for an index
        for coming in islice(batches, min(in_epoch, count)):
            yield _placed(trainer, coming)
        count -= min(in_epoch, count)
        in_epoch = int(trainer.num_training_batches)


def validation_batches(trainer: Trainer, count: int) -> Iterator[Any]:
    """Yield the batches of validation, if there may be one behind the next `count` batches.

    The number of a batch tells, in its epoch or in the run; where time or a callback decides there may always be one.
    """
    if not (trainer.enable_validation and _may_validate(trainer, count)):
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    for loader, most in zip(cast(Any, loop._combined_loader).flattened, loop._max_batches, strict=True):
        for batch in islice(loader, None if most == float("inf") else int(most)):
            yield _placed(trainer, batch)


def _may_validate(trainer: Any, count: int) -> bool:
    by_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    if by_clock or any(isinstance(callback, (EarlyStopping, Timer)) for callback in trainer.callbacks):
        return True
    if trainer.check_val_every_n_epoch is None:
        first = trainer.fit_loop.total_batch_idx
        numbers = iter(range(first, first + count))
    else:
        first = trainer.fit_loop.batch_idx
        numbers = (i % trainer.num_training_batches for i in range(first, first + count))
    return any((number + 1) % trainer.val_check_batch == 0 for number in numbers)


def _placed(trainer: Trainer, batch: Any) -> Any:
    """Return a batch as the trainer hands it to the module."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _twin(loader: StatefulDataLoader) -> StatefulDataLoader:
    """Return a loader that goes on where this one is, on the same rows, with a sampler of its own."""
    known: dict[int, Any] = {id(loader._iterator): None}
    if not isinstance(loader.dataset, IterableDataset):
        known[id(loader.dataset)] = loader.dataset
    twin = deepcopy(loader, known)
    twin.load_state_dict(loader.state_dict())
    return twin
