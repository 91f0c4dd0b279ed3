import json
import math
from dataclasses import replace

import pytest
import torch
from torch import distributed, multiprocessing

from lit_tr.losses import DPO, IPO, KTO, SFT, ForwardKL, Scores, SimPO
from lit_tr.metrics import Means, preference_metrics
from tests.test_ranks import run

# log-ratios: chosen 2, -1, 0; rejected -1, 1, 0
CHOSEN = Scores(torch.tensor([-4.0, -9.0, -2.0]), torch.tensor([2, 4, 1]), torch.tensor([-6.0, -8.0, -2.0]))
REJECTED = Scores(torch.tensor([-7.0, -3.0, -2.0]), torch.tensor([5, 1, 1]), torch.tensor([-6.0, -4.0, -2.0]))
NONE = Scores(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def as_lists(values):
    return {name: value.tolist() for name, value in values.items()}


def test_values_of_pairs_by_hand():
    expected = {
        "rewards/chosen": [1.0, -0.5, 0.0],
        "rewards/rejected": [-0.5, 0.5, 0.0],
        "rewards/margins": [1.5, -1.0, 0.0],
        "rewards/accuracies": [1.0, 0.0, 0.5],
        "logps/chosen": [-4.0, -9.0, -2.0],
        "logps/rejected": [-7.0, -3.0, -2.0],
        "logps/accuracies": [1.0, 0.0, 0.5],
        "log_ratios": [2.0, -1.0, 0.0, -1.0, 1.0, 0.0],
    }
    assert as_lists(preference_metrics(DPO(beta=0.5), CHOSEN, REJECTED, paired=True)) == expected


def test_rewards_margins_and_accuracies_are_those_of_the_loss():
    sides = [replace(side, reference=None) for side in (CHOSEN, REJECTED)]
    values = preference_metrics(SimPO(beta=2.0), *sides, paired=True)
    torch.testing.assert_close(values["rewards/margins"], torch.tensor([-4 + 2.8, -4.5 + 6, -4 + 4]))
    assert values["rewards/accuracies"].tolist() == [0.0, 1.0, 0.5]  # not those of summed log-probs
    assert values["logps/accuracies"].tolist() == [1.0, 0.0, 0.5]
    assert "log_ratios" not in values


@pytest.mark.parametrize("loss", [DPO(), DPO(divergence=ForwardKL()), IPO(), KTO(), SFT(), SimPO()])
def test_names_are_the_same_whatever_the_batch(loss):
    batches = [(CHOSEN, REJECTED, True), (CHOSEN, REJECTED, False), (CHOSEN, NONE, False), (NONE, NONE, True)]
    pairs, unpaired, desirable, dummy = (preference_metrics(loss, *batch) for batch in batches)
    assert list(pairs) == list(unpaired) == list(desirable) == list(dummy)
    for name in ("rewards/margins", "rewards/accuracies", "logps/accuracies"):
        assert (len(pairs[name]), len(unpaired[name]), len(desirable[name])) == (3, 0, 0)
    assert len(desirable["rewards/chosen"]) == 3
    assert all(len(value) == 0 for value in dummy.values())


def test_values_have_no_gradient():
    policy = torch.tensor([-4.0], requires_grad=True)
    side = Scores(policy, torch.ones(1), torch.zeros(1))
    assert not any(value.requires_grad for value in preference_metrics(DPO(), side, side, True).values())


def test_means_weigh_examples_alike_whatever_the_batch():
    means = Means()
    means.update({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([5.0])})
    means.update({"a": torch.tensor([10.0]), "b": torch.tensor([])})
    assert as_lists(means.compute()) == {"a": 4.0, "b": 5.0}


def test_a_name_without_values_is_left_out():
    means = Means()
    assert means.compute() == {}
    means.update({"a": torch.tensor([]), "b": torch.tensor([1.0])})
    assert as_lists(means.compute()) == {"b": 1.0}


def test_a_nan_is_not_left_out():
    means = Means()
    means.update({"a": torch.tensor([1.0, float("nan")])})
    assert means.compute()["a"].isnan()


def test_means_start_again_after_compute():
    means = Means()
    means.update({"a": torch.tensor([1.0]), "b": torch.tensor([1.0])})
    means.compute()
    means.update({"a": torch.tensor([3.0])})
    assert as_lists(means.compute()) == {"a": 3.0}


def test_long_sums_lose_nothing():
    """In float32 a sum of 2^24 takes no more ones."""
    means = Means()
    means.update({"a": torch.tensor([2.0**24])})
    for _ in range(9):
        means.update({"a": torch.ones(1)})
    assert means.compute()["a"].item() == pytest.approx((2**24 + 9) / 10, rel=1e-7)


def test_means_keep_no_graph():
    means = Means()
    means.update({"a": torch.ones(2, requires_grad=True) * 2})
    assert not means.compute()["a"].requires_grad


def test_an_interval_goes_on_from_its_state(tmp_path):
    draw = torch.Generator().manual_seed(0)
    batches = [{"a": torch.randn(n, generator=draw)} for n in (3, 1, 4, 1, 5)]
    whole, first, second = Means(), Means(), Means()
    for batch in batches:
        whole.update(batch)
    for batch in batches[:2]:
        first.update(batch)
    torch.save(first.state(), tmp_path / "state.pt")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in batches[2:]:
        second.update(batch)
    assert torch.equal(second.compute()["a"], whole.compute()["a"])


VALUES = (  # of each rank: pairs on one, unpaired rows on the other; "none" is empty on both
    [{"margins": [1.0, 2.0], "chosen": [0.5], "none": []}, {"margins": [6.0], "chosen": [], "none": []}],
    [{"margins": [], "chosen": [1.0, 1.0, 2.0], "none": []}],
)


def of_rank(rank, folder):
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    means = Means()
    for values in VALUES[rank]:
        means.update({name: torch.tensor(value) for name, value in values.items()})
    torch.save(as_lists(means.compute()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_means_are_those_of_all_ranks_also_where_they_hold_different_kinds_of_rows(tmp_path):
    multiprocessing.start_processes(of_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == {"margins": 3.0, "chosen": math.fsum([0.5, 1, 1, 2]) / 4}


VALIDATION_SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Rows
from lit_tr.losses import KTO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

model, rows, devices, folder = sys.argv[1:]
module = PreferenceModule(PretrainedPolicy(model), CopyReference(), KTO(), log_initial=False)
data = PreferenceDataModule(model, Rows(rows), val=Rows(rows), batch_size=2, mismatched=True)
trainer = Trainer(
    accelerator="cpu", devices=int(devices), strategy="ddp" if devices == "2" else "auto", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
metrics = trainer.validate(module, data, verbose=False)[0]
batches = trainer.predict(module, data)
logps = [[batch["logps/chosen"].tolist(), batch["logps/rejected"].tolist()] for batch in batches]
with open(f"{folder}/{devices}.{trainer.global_rank}", "w") as file:
    json.dump([metrics, logps], file)
"""


@pytest.mark.slow
def test_two_ranks_evaluate_each_row_once_also_where_they_hold_different_kinds(llama_dir, write_rows, rows, tmp_path):
    """Rank 0 has the pairs, rows 0, 2 and 4, in two batches; rank 1 two unpaired rows, and then a dummy batch."""
    unpaired = [
        {"prompt": rows[1]["prompt"], "completion": rows[1]["chosen"], "label": True},
        {"prompt": rows[3]["prompt"], "completion": rows[3]["rejected"], "label": False},
    ]
    path = write_rows([rows[0], unpaired[0], rows[2], unpaired[1], rows[4]])
    for devices in ("1", "2"):
        run(tmp_path, VALIDATION_SCRIPT, llama_dir, path, devices, str(tmp_path))
    (one, alone), *two = (json.loads((tmp_path / name).read_text()) for name in ("1.0", "2.0", "2.1"))
    assert one.keys() >= {"val/rewards/margins", "val/rewards/accuracies", "val/logps/chosen", "val/loss"}
    for metrics, _ in two:
        assert metrics["val/loss"] == 0.5  # the reference is the policy
        for name in ("logps/chosen", "logps/rejected", "rewards/chosen", "log_ratios"):
            assert metrics[f"val/{name}"] == pytest.approx(one[f"val/{name}"], rel=1e-5, abs=1e-5), name
    (_, first), (_, second) = two
    for side in (0, 1):
        seen = [sorted(value for batch in batches for value in batch[side]) for batches in (alone, first + second)]
        assert seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert [[len(side) for side in batch] for batch in second] == [[1, 1], [0, 0]]
