"""The loaders between a Trainer and its data, driven as Lightning's loops drive them."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_tr.data.loading import EpochLoader
from lit_tr.errors import UserError
from lit_tr.loading import StepLoader


@dataclass
class Batch:
    """What a loader gives in the place of a PairBatch."""

    rows: list
    drawn: object = None
    index: int = 0
    known: object = None

    def copied(self, **changes):
        return replace(self, **changes)

    @property
    def reference_log_probs(self):
        return None if self.known is None else self.known.log_probs


def batch(rows):
    return Batch([int(row) for row in rows])


class Unsized(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from range(self.rows)


class Counted(Unsized):
    """Knows where it stands."""

    def __init__(self, rows):
        super().__init__(rows)
        self.at = self.resume = 0

    def __iter__(self):
        self.at, self.resume = self.resume, 0
        return self.going_on()

    def going_on(self):
        while self.at < self.rows:
            self.at += 1
            yield self.at - 1

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.resume = state["at"]


def sized(rows, rank=0, ranks=1, size=2):
    return EpochLoader(range(rows), None, size, batch, rank, ranks, shuffle=True, seed=4)


LOADERS = {
    "sized": sized,
    "random": lambda rows: StatefulDataLoader(range(rows), 2, shuffle=True, collate_fn=batch),
    "unsized": lambda rows: StatefulDataLoader(Unsized(rows), batch_size=2, collate_fn=batch),
    "counted": lambda rows: StatefulDataLoader(Counted(rows), batch_size=2, collate_fn=batch),
    "stateless": lambda rows: DataLoader(range(rows), batch_size=2, collate_fn=batch),
}


class Run:
    """A Trainer's loop over a loader: epochs, optimizer steps, and what it counts."""

    def __init__(self, loader, accumulate, limit, tau, position=None, positions=(), ranks=1):
        processed = SimpleNamespace(processed=0)
        self.batches = SimpleNamespace(total=SimpleNamespace(processed=0), current=SimpleNamespace())
        self.epochs = SimpleNamespace(current=processed)
        loop = SimpleNamespace(epoch_progress=self.epochs, epoch_loop=SimpleNamespace(batch_progress=self.batches))
        self.trainer = SimpleNamespace(fit_loop=loop, accumulate_grad_batches=accumulate, global_step=0)
        module = SimpleNamespace(trainer=self.trainer, steps_ahead=lambda step: tau - step % tau)
        if position is not None:
            over = position["ended"] and position["over"]
            processed.processed = position["epoch"] + over
            self.batches.total.processed = position["total"]
            self.trainer.global_step = position["global_step"]
        self.loader = StepLoader(loader, module)
        self.loader.limits = [float("inf") if limit is None else limit]
        self.accumulate, self.rest = accumulate, position and not over
        self.at = position["batches"] if self.rest else 0
        if position is not None:
            self.loader.load(list(positions) or [position], 0, ranks)
            self.at = vars(self.batches.current).get("ready", self.at)

    def train(self, count):
        """Train on so many batches; return the rows of each, and where the run stood after each."""
        seen, positions = [], []
        random_state = torch.get_rng_state()
        iterator = iter(self.loader)
        torch.set_rng_state(random_state)  # as the module does at the start of training
        while len(seen) < count:
            coming = next(iterator, None)
            while coming is not None and len(seen) < count:
                following = next(iterator, None) if self._is_unsized else coming  # Lightning looks one batch ahead
                self.at += 1
                last = following is None or (not self._is_unsized and self.at == len(self.loader))
                seen.append(coming[0].rows)
                self.batches.total.processed += 1
                self.trainer.global_step += last or self.at % self.accumulate == 0
                positions.append({**self.loader.position(), "global_step": self.trainer.global_step, "over": False})
                coming = None if last else following if self._is_unsized else next(iterator)
            if len(seen) < count or coming is None:
                self.epochs.current.processed += 1
                self.at = 0
                positions[-1:] = [{**positions[-1], "over": True}] if positions else []
                iterator = iter(self.loader)
        return seen, positions

    @property
    def _is_unsized(self):
        try:
            return len(self.loader) is None
        except NotImplementedError:
            return True


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(LOADERS)),
    rows=st.integers(2, 13),
    accumulate=st.integers(1, 3),
    limit=st.one_of(st.none(), st.integers(1, 5)),
    tau=st.integers(1, 4),
    stop=st.integers(1, 20),
    again=st.integers(1, 6),
)
def test_a_run_goes_on_from_any_position_twice(kind, rows, accumulate, limit, tau, stop, again):
    """The batches after a stop are those of the run that did not stop, from the start of a step on."""
    assume(kind not in ("counted", "unsized") or limit is None)  # Lightning takes the limit for their length
    options = {"accumulate": accumulate, "limit": limit, "tau": tau}
    torch.manual_seed(0)
    whole, positions = Run(LOADERS[kind](rows), **options).train(32)
    if kind == "random" and tau > 1:
        return  # an epoch's order is drawn from the global random state, and by a window earlier than by an epoch
    position = positions[stop - 1]
    for _ in range(2):
        total = position["total"]
        assert 0 <= stop - total < accumulate
        torch.manual_seed(0)  # as a run begins; torchdata's sampler draws a seed when it is made
        run = Run(LOADERS[kind](rows), **options, position=position)
        torch.set_rng_state(position["start"]["random_state"])
        resumed, later = run.train(32 - total)
        assert resumed == whole[total:]
        stop = min(total + again, 32)
        position = later[stop - total - 1]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(2, 30),
    before=st.integers(1, 3),
    after=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    stop=st.integers(1, 6),
)
def test_an_epoch_goes_on_with_another_number_of_ranks(rows, before, after, accumulate, stop):
    """Of one epoch, no row comes twice or not at all; the next one has the order that it would have had."""
    batches = -(-rows // (2 * before))
    stop = min(stop, batches)
    ran = [Run(sized(rows, rank, before), accumulate, None, 1).train(stop) for rank in range(before)]
    positions = [places[-1] for _, places in ran]
    trained = positions[0]["batches"]
    seen = [row for found, _ in ran for step in found[:trained] for row in step]
    rest = -(-max(rows - 2 * before * trained, 0) // (2 * after))
    for rank in range(after):
        options = {"position": positions[0], "positions": positions, "ranks": after}
        found, _ = Run(sized(rows, rank, after), accumulate, None, 1, **options).train(rest + 1)
        assert len(found) == rest + 1
        seen += [row for step in found[:rest] for row in step]
        following = EpochLoader(range(rows), None, 2, batch, rank, after, shuffle=True, seed=4)
        list(following)
        assert found[rest] == next(iter(following)).rows
    assert sorted(seen) == list(range(rows))


def test_a_window_or_a_loader_of_others_is_for_as_many_ranks():
    _, positions = Run(sized(12), 1, None, 3).train(6)
    loader = Run(sized(12), 1, None, 3).loader
    with pytest.raises(UserError, match="saved on 2 ranks in the middle of a window, and now there are 1"):
        loader.load([positions[0]] * 2, 0, 1)
    loader.load([positions[2]] * 2, 0, 1)  # between two windows
    loader.load([positions[5]] * 2, 0, 1)  # at an epoch's end
    others = Run(LOADERS["counted"](12), 1, None, 1).loader
    with pytest.raises(UserError, match="saved on 2 ranks in the middle of an epoch, and now there are 1"):
        others.load([positions[2]] * 2, 0, 1)


def test_one_loader_is_trained_on():
    with pytest.raises(UserError, match="trains on one loader, and 2 were given"):
        Run([sized(4), sized(4)], 1, None, 1)
