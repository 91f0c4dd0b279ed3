"""Batches drawn an optimizer step at a time, or a window of steps, so that a run goes on exactly from any checkpoint.

A `Trainer` asks where its batches come from; `draw_from` puts the loaders of this file between.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import IterableDataset

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.progress import COUNTS

ENDLESS = float("inf")


class Drawn:
    """Batches that were drawn together: those of one optimizer step, or of all steps up to an update of the reference.

    It is no dataclass: Lightning would look for tensors in it, and copy it, wherever a batch goes.

    Attributes:
        start: what the loader went on from at the first of them, a part of a checkpoint.
        batches: the batches, on the CPU.
        places: for each batch its epoch, and the number of batches of the epoch that have come with it.
        step_ends: after how many of the batches each optimizer step ends.
        log_probs: the reference's log-probs of the scored tokens of each batch, where they were computed ahead.
    """

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start
        self.batches: list[PairBatch] = []
        self.places: list[tuple[int, int]] = []
        self.step_ends: list[int] = []
        self.log_probs: list[Tensor] | None = None


class StepLoader(CombinedLoader):
    """The training loader of a Trainer, drawn from as many optimizer steps ahead as the reference wants.

    Its `position` is where the last whole optimizer step ended, whatever was fetched since: batches of a step that was
    broken off come again. The loader inside is asked for its state (`state_dict`) after each batch; of one without a
    state the batches up to the position are drawn again and dropped.

    Args:
        loader: a loader of `PairBatch`.
        module: a `PreferenceModule`, attached to its trainer.

    Raises:
        UserError: several loaders were given.
    """

    def __init__(self, loader: Any, module: Any) -> None:
        super().__init__(loader, "max_size_cycle")
        if len(self.flattened) != 1:
            raise UserError(f"PreferenceModule trains on one loader, and {len(self.flattened)} were given")
        self._module, self._loop = module, module.trainer.fit_loop
        self.epoch = self._loop.epoch_progress.current.processed
        self._place, self._ended, self._state = (self.epoch - 1, 0), True, None
        self._steps, self._total = module.trainer.global_step, self._trained
        self._batches: Iterator[Any] = iter(())
        self._groups: deque[Drawn] = deque()
        self._queue: deque[tuple[Drawn, int]] = deque()
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        if self._limit == ENDLESS:
            raise NotImplementedError("the loader has no length")
        return int(self._limit)

    def __iter__(self) -> "StepLoader":
        """Begin the next epoch, or the rest of the one that was loaded."""
        if self._resume is not None:
            self._reopen(self._resume)
            self._resume = None
            return self
        self.epoch = self._loop.epoch_progress.current.processed
        while self._queue and self._epoch_of_next < self.epoch:  # an epoch that was broken off
            self._queue.popleft()
        self._ended |= self._place[0] < self.epoch
        return self

    def __next__(self) -> tuple[PairBatch, int, int]:
        """Return the next batch of the epoch, its number, and the number of its loader."""
        if not self._queue:
            self._draw(self._module.steps_ahead(self._steps))
        if not self._queue or self._epoch_of_next != self.epoch:
            raise StopIteration
        drawn, index = self._queue.popleft()
        return drawn.batches[index].copied(drawn=drawn, index=index), drawn.places[index][1] - 1, 0

    def position(self) -> dict[str, Any]:
        """Return where the last whole optimizer step ended, and what it takes to draw all that comes after it.

        Returns:
            `epoch` and `batches` of it that were trained on, whether it has `ended`, `total` batches of all epochs; and
            `start`, `steps`, `skip`: the batches of so many steps are drawn from there, and so many of them skipped.
        """
        self._forget()
        drawn = self._groups[0] if self._groups else Drawn(self._start())
        trained = self._trained - drawn.start["total"]
        skip = max((end for end in drawn.step_ends if end <= trained), default=0)
        if drawn.batches and skip == len(drawn.batches):
            drawn, skip = Drawn(self._start()), 0
        start = drawn.start
        epoch, batches = drawn.places[skip - 1] if skip else (start["epoch"], start["batches"])
        ended = batches >= self._limit if skip else start["ended"]
        where = {"epoch": epoch, "batches": batches, "ended": ended, "total": start["total"] + skip}
        return {**where, "start": start, "steps": len(drawn.step_ends), "skip": skip}

    def load(self, positions: list[dict[str, Any]], rank: int, ranks: int) -> None:
        """Go on from the positions of all ranks, if there are any, at the next `__iter__`.

        Raises:
            UserError: in the middle of an epoch, there were another number of ranks, and the loader cannot go on so.
        """
        self._resume = positions[rank % len(positions)] if positions else None
        if positions and len(positions) != ranks and not positions[0]["ended"]:
            self._resume = self._resharded(positions, ranks)

    def _resharded(self, positions: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
        """Return the position among the batches of another number of ranks."""
        position = positions[0]
        if position["skip"] or not hasattr(self._loader, "batches_taken"):
            raise UserError(
                f"the checkpoint was saved on {len(positions)} ranks in the middle of "
                f"{'a window' if position['skip'] else 'an epoch'}, and now there are {ranks}: rows would come twice "
                "or not at all; go on with as many ranks, or from a checkpoint of an epoch's end"
            )
        state = position["start"]["state"]
        batches = 0 if state is None else self._loader.batches_taken(state)
        vars(self._loop.epoch_loop.batch_progress.current).update(dict.fromkeys(COUNTS, batches))
        return {**position, "batches": batches, "start": {**position["start"], "batches": batches}}

    def reset(self) -> None:
        """End the workers; the position stays."""
        self._queue.clear()
        self._batches = iter(())
        super().reset()

    def _state_dicts(self) -> list[dict[str, Any]]:
        return []  # Lightning keeps those of the first rank alone: the module saves the positions of all ranks

    def _load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        pass

    @property
    def _loader(self) -> Any:
        return self.flattened[0]

    @property
    def _limit(self) -> float:
        length = sized_len(self._loader)
        return min(ENDLESS if length is None else length, (self.limits or [ENDLESS])[0])

    @property
    def _trained(self) -> int:
        return self._loop.epoch_loop.batch_progress.total.processed

    @property
    def _epoch_of_next(self) -> int:
        drawn, index = self._queue[0]
        return drawn.places[index][0]

    def _start(self) -> dict[str, Any]:
        """Return where drawing goes on."""
        where = {"epoch": self._place[0], "batches": self._place[1], "ended": self._ended, "total": self._total}
        return {**where, "step": self._steps, "state": self._state, "random_state": torch.get_rng_state()}

    def _forget(self) -> None:
        """Let go of batches that no position needs any more."""
        while len(self._groups) > 1 and self._trained >= self._groups[1].start["total"]:
            self._groups.popleft()

    def _draw(self, steps: int) -> None:
        """Draw the batches of some optimizer steps; over the ends of epochs, where these are several steps."""
        self._forget()
        drawn, accumulate, in_step = Drawn(self._start()), self._module.trainer.accumulate_grad_batches, 0
        while len(drawn.step_ends) < steps and self._begin_epoch(drawn):
            batch = self._fetch()
            if batch is not None:
                drawn.batches.append(batch)
                drawn.places.append(self._place)
                in_step += 1
            if in_step and (self._ended or in_step == accumulate):
                drawn.step_ends.append(len(drawn.batches))
                in_step = 0
        if drawn.batches:
            self._steps, self._total = self._steps + len(drawn.step_ends), self._total + len(drawn.batches)
            self._groups.append(drawn)
            self._queue.extend((drawn, index) for index in range(len(drawn.batches)))

    def _begin_epoch(self, drawn: Drawn) -> bool:
        """Begin the next epoch where one has ended; return whether there is one to draw from."""
        if not self._ended:
            return True
        goes_on = self._place[1] > 0 if drawn.batches else self._place[0] < self.epoch
        if not goes_on:
            return False
        epoch = self._place[0] + 1
        _set_epoch(self._loader, epoch)
        self._batches, self._place, self._ended = iter(self._loader), (epoch, 0), False
        return True

    def _fetch(self) -> PairBatch | None:
        """Return the next batch of the epoch that is drawn from; None at its end."""
        epoch, taken = self._place
        batch = next(self._batches, None) if taken < self._limit else None
        if batch is not None:
            self._place = epoch, taken + 1
            self._state = self._loader.state_dict() if _is_stateful(self._loader) else None
        self._ended = batch is None or taken + 1 >= self._limit
        return batch

    def _reopen(self, position: dict[str, Any]) -> None:
        """Draw again what the position says was drawn."""
        start = position["start"]
        over = self._loop.epoch_progress.current.processed > position["epoch"]  # its end was no matter of the batches
        self.epoch = position["epoch"] + over
        self._place, self._ended, self._state = (start["epoch"], start["batches"]), start["ended"], start["state"]
        self._steps, self._total = start["step"], start["total"]
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(start["random_state"])
            self._open()
            if position["skip"]:
                self._draw(position["steps"])
        for _ in range(position["skip"]):
            self._queue.popleft()

    def _open(self) -> None:
        """Let the loader stand where its state says; one that has ended is asked for a batch once more."""
        epoch, taken = self._place
        if self._state is not None:
            self._loader.load_state_dict(self._state)
        if self._state is not None or (taken and not self._ended):
            _set_epoch(self._loader, epoch)
            self._batches = iter(self._loader)
            for _ in range(1 if self._ended else 0 if self._state is not None else taken):
                next(self._batches, None)


def _is_stateful(loader: Any) -> bool:
    """Whether a loader knows where it stands; torchdata's counts on for a data set that does not, and loses its end."""
    data = getattr(loader, "dataset", None)
    counts = isinstance(data, IterableDataset) and not hasattr(data, "state_dict")
    return hasattr(loader, "state_dict") and not counts


def _set_epoch(loader: Any, epoch: int) -> None:
    """Let the samplers of a loader draw the order of an epoch."""
    samplers: list[Any] = [getattr(one, "sampler", None) for one in (loader, getattr(loader, "batch_sampler", None))]
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def draw_from(loop: Any, around: Callable[[Any], CombinedLoader]) -> None:
    """Let a loop of a Trainer draw its batches from another loader, made of the one that it was given."""
    source = loop._data_source
    source.dataloader = lambda: around(type(source).dataloader(source))
