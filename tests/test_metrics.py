import torch

from lit_tr.losses import Scores
from lit_tr.metrics import Means, preference_metrics

# log-ratios: chosen 2, -1, 0; rejected -1, 1, 0
CHOSEN = Scores(torch.tensor([-4.0, -9.0, -2.0]), torch.tensor([-6.0, -8.0, -2.0]), torch.tensor([2, 4, 1]))
REJECTED = Scores(torch.tensor([-7.0, -3.0, -2.0]), torch.tensor([-6.0, -4.0, -2.0]), torch.tensor([5, 1, 1]))


def test_values_of_pairs_by_hand():
    values = preference_metrics(CHOSEN, REJECTED, beta=0.5, paired=True)
    expected = {
        "rewards/chosen": [1.0, -0.5, 0.0],
        "rewards/rejected": [-0.5, 0.5, 0.0],
        "rewards/margin": [1.5, -1.0, 0.0],
        "rewards/accuracy": [1.0, 0.0, 0.5],
        "log_probs/chosen": [-4.0, -9.0, -2.0],
        "log_probs/rejected": [-7.0, -3.0, -2.0],
        "log_probs/accuracy": [1.0, 0.0, 0.5],
        "log_ratio": [2.0, -1.0, 0.0, -1.0, 1.0, 0.0],
    }
    assert {name: value.tolist() for name, value in values.items()} == expected


def test_unpaired_rows_have_no_margin():
    values = preference_metrics(CHOSEN, REJECTED, beta=0.5, paired=False)
    assert not values.keys() & {"rewards/margin", "rewards/accuracy", "log_probs/accuracy"}


def test_means_weigh_examples_alike_whatever_the_batch():
    means = Means()
    means.update({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([5.0])})
    means.update({"a": torch.tensor([10.0]), "b": torch.tensor([])})
    assert {name: value.item() for name, value in means.compute().items()} == {"a": 4.0, "b": 5.0}


def test_a_nan_is_not_left_out():
    means = Means()
    means.update({"a": torch.tensor([1.0, float("nan")])})
    assert means.compute()["a"].isnan()


def test_means_start_again_after_compute():
    means = Means()
    means.update({"a": torch.tensor([1.0])})
    means.compute()
    means.update({"a": torch.tensor([3.0])})
    assert means.compute()["a"].item() == 3.0
