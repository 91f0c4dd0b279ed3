"""A training step waits for its device at the logged steps alone."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO, KTO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference
from tests.waits import Waits

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: float((2 * x).max()),
        lambda x: bool(x.view(2, 2)[0, 0] > 0),
        lambda x: torch.zeros(4).add_(x).tolist(),
        lambda x: x.cpu(),
        lambda x: x.detach().numpy(),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), torch.ones(4)),
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.arange(4).repeat_interleave(x.long()),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_what_waits_is_counted(call):
    values = torch.ones(4, requires_grad=True)
    with Waits() as waits:
        waits.put(values)
        call(values)
    assert waits.found.total() == 1


def test_what_does_not_wait_is_not():
    values, lengths = torch.ones(4), torch.tensor([1, 3])
    with Waits() as waits:
        waits.put(values)
        sums = torch.stack([part.sum() for part in values.split(lengths.tolist())])
        (torch.where(sums > 1, sums, 0.0) + values.new_full((), 2.0) + torch.full((), 1.0, device="cpu")).mean()
        values[torch.tensor([0, 2])].masked_fill(torch.tensor([True, False]), 0.0)
        lengths.sum().item()
    assert waits.found.total() == 0


class OnDevice(SingleDeviceStrategy):
    """The CPU as a device of its own, to which the batches go."""

    def __init__(self, waits):
        super().__init__("cpu")
        self.waits = waits

    def batch_to_device(self, batch, device=None, dataloader_idx=0):
        batch = super().batch_to_device(batch, device, dataloader_idx)
        self.waits.put(*batch.tensors())
        return batch


class Watched(Callback):
    """Counts from the start of one training batch to that of the next, with the batch's transfer."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def on_train_start(self, trainer, module):
        models = [module.policy] + [one.model for one in module.held if one.model is not None]
        for model in models:
            self.waits.put(*model.parameters(), *model.buffers())

    def on_train_batch_start(self, *args):
        self.steps.append(+self.waits.found)
        self.waits.found.clear()


@pytest.mark.parametrize(
    ("loss", "reference", "policy"),
    [
        (DPO(), AdapterReference, {"lora": LoRA(r=2, dropout=0.1)}),
        (DPO(), CopyReference, {}),
        (KTO(), CopyReference, {}),
    ],
)
@pytest.mark.parametrize("logger", [False, True])
@pytest.mark.parametrize(("every", "logged"), [(1, 3), (2, 5)])
def test_steps_that_are_not_logged_wait_for_nothing(
    llama_dir, tmp_path, loss, reference, policy, logger, every, logged
):
    """Packs of pairs; in the first step the optimizer makes its state, and the 4th has the update that is measured."""
    waits = Waits()
    watched = Watched(waits)
    module = PreferenceModule(PretrainedPolicy(llama_dir, **policy), reference(), loss)
    data = PreferenceDataModule(llama_dir, SyntheticPairs(14), batch_size=2, mismatched=loss.mismatched)
    trainer = Trainer(
        strategy=OnDevice(waits), max_steps=6, log_every_n_steps=logged, gradient_clip_val=1.0,
        callbacks=[watched, SoftReferenceUpdate(0.6, every_n_steps=every)], default_root_dir=tmp_path,
        **QUIET | {"logger": logger and CSVLogger(tmp_path)},
    )  # fmt: skip
    with waits:
        trainer.fit(module, data)
    assert watched.steps.pop(logged)  # or nothing would be seen
    assert [dict(found) for found in watched.steps[2:]] == [{}] * 3
