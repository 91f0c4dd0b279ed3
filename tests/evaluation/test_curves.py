import csv

from lit_tr.evaluation.curves import plot_curves, smoothed


def test_curves_are_drawn_from_what_there_is(tmp_path):
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "train/rewards/margins", "val/loss", "reference/alpha"])
        writer.writeheader()
        writer.writerows({"step": i, "train/loss": 0.7 - i / 10, "train/rewards/margins": i} for i in range(3))
        writer.writerow({"step": 2, "val/loss": 0.5, "reference/alpha": 0.6})
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_asmoothed_curve_starts_at_the_first_value_and_moves_a_fifth_of_the_way():
    assert smoothed([(1, 1.0), (2, 2.0), (3, 2.0)]) == [(1, 1.0), (2, 1.2), (3, 1.2 + 0.2 * 0.8)]
