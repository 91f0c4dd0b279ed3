import csv

import pytest

from lit_tr.evaluation.curves import from_start, plot_curves, points, smoothed


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


def test_training_stands_at_the_steps_before_its_batch_and_begins_with_its_first_batch():
    rows = [{"step": "0", "start/loss": "0.7", "start/logps/chosen": "-40", "start/log_ratios": "0"}]
    rows += [{"step": "4", "train/loss": "0.6", "train/log_ratios": "-1", "val/log_ratios": "-2"}]
    assert from_start(rows, "loss") == [(0, 0.7), (4, 0.6)]
    assert from_start(rows, "log_ratios") == [(0, 0.0), (4, -1.0)]
    assert from_start([*rows, {"step": "4", "train/initial/log_ratios": "-3"}], "initial/log_ratios") == [
        (0, 0),
        (4, -3),
    ]
    assert points(rows, "val/log_ratios") == [(5, -2.0)]
    assert from_start(rows, "logps/chosen") == []  # there is no curve
    assert from_start([*rows, {"step": "0", "train/loss": "0.7"}][::-1], "loss")[0] == (0, 0.7)
