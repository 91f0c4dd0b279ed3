"""Two real processes with gloo against one."""

import json

import pytest
import torch

from lit_tr.data import Collator
from lit_tr.data.formats import explicit_prompt
from lit_tr.data.tokenization import tokenize
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.losses import KTO, Scores
from lit_tr.policy import PretrainedPolicy, response_log_probs
from lit_tr.reference import CopyReference
from tests.processes import run

BETA = 0.1
KTO_SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import KTO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference


class Moved(PreferenceModule):
    def configure_model(self):
        super().configure_model()
        torch.manual_seed(3)
        for param in self.reference.model.parameters():
            param.data += 0.05 * torch.randn_like(param)


module = Moved(PretrainedPolicy(sys.argv[1]), CopyReference(), KTO(beta=0.1), log_initial=False)
data = PreferenceDataModule(
    sys.argv[1], SyntheticPairs(2), val=SyntheticPairs(8, seed=4), batch_size=4, mismatched=True
)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
metrics = trainer.validate(module, data, verbose=False)[0]
if trainer.is_global_zero:
    print(json.dumps(metrics))
"""

STEP_SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO, TDPO1, TDPO2
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference


class Moved(PreferenceModule):
    def configure_model(self):
        super().configure_model()
        torch.manual_seed(3)
        for param in self.reference.model.parameters():
            param.data += 0.05 * torch.randn_like(param)


ranks, loss, pairs = int(sys.argv[2]), {"DPO": DPO, "TDPO1": TDPO1, "TDPO2": TDPO2}[sys.argv[4]], 9
module = Moved(
    PretrainedPolicy(sys.argv[1]), CopyReference(), loss(beta=0.5), lambda params: torch.optim.SGD(params, lr=0.1)
)
size = {"batch_size": pairs} if ranks == 1 else {"max_tokens": 260}
trainer = Trainer(
    accelerator="cpu", devices=ranks, strategy="ddp", max_epochs=1, accumulate_grad_batches=1 if ranks == 1 else 10,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
data = PreferenceDataModule(sys.argv[1], SyntheticPairs(pairs), **size)
trainer.fit(module, data)
assert trainer.global_step == 1
sizes = [len(batch) for batch in data.train_dataloader()]
Path(sys.argv[3] + f".{trainer.global_rank}").write_text(str(sum(sizes)))
if trainer.is_global_zero:
    torch.save(dict(module.policy.named_parameters()), sys.argv[3])
"""

ADAPTIVE_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lit_tr import AdaptiveReferenceUpdate, PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference


class Recorded(AdaptiveReferenceUpdate):
    seen = []

    def is_due(self, trainer, pl_module, batch):
        kl, places = pl_module.reference.kl(pl_module.policy, batch)
        due = super().is_due(trainer, pl_module, batch)
        self.seen.append([kl.item(), places, due])
        return due


torch.manual_seed(0)
module = PreferenceModule(
    PretrainedPolicy(sys.argv[1]), CopyReference(), DPO(beta=0.5), lambda params: torch.optim.AdamW(params, lr=0.003)
)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=16, callbacks=Recorded(0.01, every_n_steps=1),
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, PreferenceDataModule(sys.argv[1], SyntheticPairs(24), batch_size=2))
total = sum(param.double().sum().item() for param in module.reference.model.parameters())
Path(sys.argv[2] + f".{trainer.global_rank}").write_text(json.dumps([Recorded.seen, total]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["DPO", "TDPO1", "TDPO2"])
def test_a_step_is_the_mean_over_the_pairs_of_all_ranks(llama_dir, tmp_path, loss):
    run(tmp_path, STEP_SCRIPT, llama_dir, 2, tmp_path / "two.pt", loss, ranks=2)
    pairs = [int((tmp_path / f"two.pt.{rank}").read_text()) for rank in (0, 1)]
    assert sum(pairs) == 9  # the ranks hold unequal numbers of pairs
    run(tmp_path, STEP_SCRIPT, llama_dir, 1, tmp_path / "one.pt", loss)
    two, one = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("two", "one"))
    for name, param in one.items():
        torch.testing.assert_close(two[name], param, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_adaptive_update_comes_at_the_same_step_on_all_ranks(llama_dir, tmp_path):
    run(tmp_path, ADAPTIVE_SCRIPT, llama_dir, tmp_path / "seen", ranks=2)
    (first, total), (second, other) = (json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in (0, 1))
    alone = [[kl / places > 0.01 for kl, places, _ in seen] for seen in (first, second)]
    pairs = list(zip(first, second, strict=True))
    both = [(kl + other_kl) / (places + others) > 0.01 for (kl, places, _), (other_kl, others, _) in pairs]
    assert [due for *_, due in first] == [due for *_, due in second] == both
    assert alone[0] != alone[1]  # alone they would have parted
    assert total == other


@pytest.mark.slow
def test_the_kl_baseline_and_the_means_are_those_of_all_ranks(llama_dir, tokenizer, tmp_path):
    """Rank 0 holds rows 0, 2, 4, 6, rank 1 the others: the loss with the baseline of both, a mean over both."""
    output = run(tmp_path, KTO_SCRIPT, llama_dir, ranks=2).stdout
    metrics = json.loads(output.splitlines()[-1])

    policy, reference = PretrainedPolicy(llama_dir).load(), CopyReference()
    reference.prepare(policy)
    torch.manual_seed(3)
    for param in reference.model.parameters():
        param.data += 0.05 * torch.randn_like(param)
    examples = [tokenize(explicit_prompt(row), tokenizer) for _, row in SyntheticPairs(8, seed=4).rows()]
    parts = []
    for rank in (0, 1):
        batch = Collator(packed=False, mismatched=True)(examples[rank::2])
        ours = batch.split(response_log_probs(policy, batch).detach())
        theirs = batch.split(reference.log_probs(policy, batch))
        parts.append([Scores(a, torch.ones_like(a), b) for a, b in zip(ours, theirs, strict=True)])
    baselines = [mismatched.log_ratios.mean().item() for _, _, mismatched in parts]
    assert baselines[0] != pytest.approx(baselines[1], rel=0.01)
    baseline = torch.tensor(max(sum(baselines) / 2, 0))
    assert baseline > 0
    losses = [KTO(beta=BETA)(chosen, rejected, baseline).mean() for chosen, rejected, _ in parts]
    assert metrics["val/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    margins = torch.cat([chosen.log_ratios - rejected.log_ratios for chosen, rejected, _ in parts])
    assert metrics["val/rewards/margins"] == pytest.approx(BETA * margins.mean().item(), rel=1e-4)


BCO_SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import BCO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

path, file, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
optimizer = lambda params: torch.optim.SGD(params, lr=0.05)
module = PreferenceModule(PretrainedPolicy(path), CopyReference(), BCO(beta=0.5), optimizer, log_initial=False)
trainer = Trainer(
    accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_steps=4, accumulate_grad_batches=2,
    logger=False, callbacks=[SoftReferenceUpdate()], enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)
data = PreferenceDataModule(path, SyntheticPairs(30), val=SyntheticPairs(4, seed=8), batch_size=4 // ranks)
trainer.fit(module, data)
torch.save([module.scorer.statistics, dict(module.policy.named_parameters())], f"{file}.{trainer.global_rank}")
"""


@pytest.mark.slow
def test_the_reward_shift_of_two_ranks_is_that_of_one_process(tmp_path):
    """8 batches of 4 pairs, of which the last has 2, in steps of two batches each."""
    for ranks in (1, 2):
        run(tmp_path, BCO_SCRIPT, TINY, tmp_path / str(ranks), ranks, ranks=ranks)
    (one, expected), (first, params), (second, _) = (
        torch.load(tmp_path / name, weights_only=True) for name in ("1.0", "2.0", "2.1")
    )
    assert torch.equal(first, second)
    assert one[1] == first[1] == 60
    torch.testing.assert_close(first, one, rtol=1e-4, atol=1e-4)
    assert abs(one[0]) > 0.1
    for name, value in expected.items():
        torch.testing.assert_close(params[name], value, rtol=1e-4, atol=1e-5, msg=name)


WINDOW_SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference, WindowReference

losses = []


class Recorded(PreferenceModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        losses.append(loss.item())
        return loss


def run(kind, steps, ckpt_path=None):
    losses.clear()
    saved = ModelCheckpoint(sys.argv[2], filename="last", every_n_train_steps=4, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=steps, accumulate_grad_batches=2, logger=False,
        callbacks=[HardReferenceUpdate(every_n_steps=3), saved], enable_progress_bar=False, enable_model_summary=False,
    )
    optimizer = lambda params: torch.optim.AdamW(params, lr=0.003)
    torch.manual_seed(0)
    module = Recorded(PretrainedPolicy(sys.argv[1]), kind(), DPO(beta=0.5), optimizer, log_initial=False)
    data = PreferenceDataModule(sys.argv[1], SyntheticPairs(20), val=SyntheticPairs(4, seed=8), batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return list(losses), trainer


copied, _ = run(CopyReference, 7)
run(WindowReference, 4)
resumed, _ = run(WindowReference, 7, sys.argv[2] + "/last.ckpt")
whole, trainer = run(WindowReference, 7)
alike = [whole == copied, len(resumed), resumed == whole[-len(resumed):]]
with open(f"{sys.argv[2]}/alike.{trainer.global_rank}", "w") as file:
    file.write(str(alike))
"""


@pytest.mark.slow
def test_each_rank_has_a_window_of_its_own_and_goes_on_with_it(llama_dir, tmp_path):
    """Of 5 batches an epoch and rank, steps of 2, 2 and 1: step 4 is in the middle of the window of steps 4 to 6."""
    run(tmp_path, WINDOW_SCRIPT, llama_dir, tmp_path, ranks=2)
    assert [(tmp_path / f"alike.{rank}").read_text() for rank in (0, 1)] == ["[True, 5, True]"] * 2


STREAM_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

model, rows, folder, workers = sys.argv[1:]


class Recorded(Callback):
    def __init__(self, stop=None):
        self.stop, self.seen, self.state = stop, [], None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append([len(batch), outputs["loss"].item(), sorted(batch.targets.tolist())])
        if len(self.seen) == self.stop:
            raise RuntimeError("stop")


def run(record, ckpt_path=None, epochs=2):
    torch.manual_seed(0)
    module = PreferenceModule(
        PretrainedPolicy(model), CopyReference(), DPO(beta=0.5), lambda params: torch.optim.SGD(params, lr=0.05)
    )
    data = PreferenceDataModule(model, Rows(rows), max_tokens=200, buffer=6, num_workers=int(workers))
    saved = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=epochs, accumulate_grad_batches=2, logger=False,
        callbacks=[SoftReferenceUpdate(), record, saved], enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    except RuntimeError as error:
        assert str(error) == "stop"
    total = sum(param.double().sum().item() for param in module.reference.model.parameters())
    return trainer, total


whole, stopped, resumed = Recorded(), Recorded(3), Recorded()
_, total = run(whole)
run(stopped)
trainer, again = run(resumed, folder + "/last.ckpt")
Path(f"{folder}/seen.{trainer.global_rank}").write_text(json.dumps([whole.seen, resumed.seen, total, again]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_ranks_of_a_stream_end_together_and_go_on_exactly(llama_dir, write_rows, tmp_path, workers):
    """Rank 1 has far longer rows than rank 0, so it has more batches."""
    long = " and the river runs cold" * 6
    rows = [
        {"prompt": f"Tell me about river {i}.", "chosen": f" It is {i} icy.", "rejected": f" Hot{long * (i % 2)}"}
        for i in range(15)
    ]
    run(tmp_path, STREAM_SCRIPT, llama_dir, write_rows(rows), tmp_path, workers, ranks=2)
    seen = [json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in (0, 1)]
    for whole, resumed, total, again in seen:
        assert resumed == whole[2:]  # step 1, of two batches, was the last before the stop in the third batch
        assert total == again == seen[0][2]
    sizes = [[size for size, *_ in whole] for whole, *_ in seen]
    assert len(sizes[0]) == len(sizes[1])
    assert sum(sizes[0]) + sum(sizes[1]) == 2 * 15
    assert 0 in sizes[0]
    assert 0 not in sizes[1]
    targets = [targets for whole, *_ in seen for size, _, targets in whole if size]
    assert sorted(sum(targets[: len(targets)], [])) == sorted(sum(targets, []))


RESHARD_SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

path, folder, ranks, steps, ckpt_path = sys.argv[1:]


def run(ranks, steps, ckpt_path=None):
    torch.manual_seed(0)
    optimizer = lambda params: torch.optim.SGD(params, lr=0.05)
    module = PreferenceModule(PretrainedPolicy(path), CopyReference(), DPO(beta=0.5), optimizer, log_initial=False)
    data = PreferenceDataModule(path, SyntheticPairs(22), batch_size=4 // ranks, num_workers=ranks - 1)
    saved = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_steps=steps, logger=False,
        callbacks=[SoftReferenceUpdate(), saved], enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, [module.state_dict(), trainer.current_epoch]


trainer, state = run(int(ranks), int(steps), ckpt_path or None)
torch.save(state, f"{folder}/state.{trainer.global_rank}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_a_run_goes_on_within_an_epoch_on_another_number_of_ranks_and_workers(tmp_path, before, now):
    """Of 22 pairs in steps of 4, the last step of each epoch has 2: weights are those of one process throughout."""
    run(tmp_path, RESHARD_SCRIPT, TINY, tmp_path, before, 3, "", ranks=before)
    run(tmp_path, RESHARD_SCRIPT, TINY, tmp_path, now, 9, tmp_path / "last.ckpt", ranks=now)
    resumed, epoch = torch.load(tmp_path / "state.0")
    run(tmp_path, RESHARD_SCRIPT, TINY, tmp_path, 1, 9, "")
    expected, epochs = torch.load(tmp_path / "state.0")
    assert epoch == epochs
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5, msg=name)
