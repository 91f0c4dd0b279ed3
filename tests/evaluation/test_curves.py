import csv

import pytest

from lit_tr.evaluation.curves import from_start, plot_curves, smoothed


def test_curves_are_drawn_from_what_there_is(tmp_path):
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "train/rewards/margins", "val/loss", "reference/alpha"])
        writer.writeheader()
        writer.writerows({"step": i, "train/loss": 0.7 - i / 10, "train/rewards/margins": i} for i in range(3))
        writer.writerow({"step": 2, "val/loss": 0.5, "reference/alpha": 0.6})
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_smoothed_curve_is_an_average_in_which_each_older_value_weighs_a_fifth_less():
    steps, values = zip(*smoothed([(1, 1.0), (2, 2.0), (3, 4.0)]), strict=True)
    assert steps == (1, 2, 3)
    assert values == pytest.approx([1.0, (0.8 * 1 + 2) / 1.8, (0.64 * 1 + 0.8 * 2 + 4) / 2.44])


def test_training_stands_at_the_steps_before_its_batch_and_begins_with_what_is_known():
    rows = [{"step": "0", "train/loss": "0.7"}, {"step": "4", "train/loss": "0.6", "train/log_ratios": "-1"}]
    rows += [{"step": "4", "val/loss": "0.5", "val/log_ratios": "-2"}]
    assert from_start(rows, "train", "loss") == [(0, 0.7), (4, 0.6)]
    assert from_start(rows, "train", "log_ratios") == [(0, 0.0), (4, -1.0)]
    assert from_start(rows, "val", "loss") == [(5, 0.5)]
    assert from_start(rows, "val", "log_ratios") == [(0, 0.0), (5, -2.0)]
    assert from_start(rows, "train", "rewards/margins") == []
