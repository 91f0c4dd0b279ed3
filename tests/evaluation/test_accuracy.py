import json
import re

import pytest
import torch
from scipy.stats import binomtest

from lit_tr.commands import main
from lit_tr.embedded import SyntheticPairs
from lit_tr.evaluation.accuracy import table
from lit_tr.evaluation.intervals import wilson


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (8, 10), (1, 1), (570, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_by_scipy(hits, count, confidence):
    found = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    assert wilson(hits, count, confidence) == pytest.approx((found.low, found.high), abs=1e-12)


def cells(lines):
    return list(zip(*(column.cells for column in lines.columns), strict=True))


def test_ties_count_half_and_each_subset_has_a_line():
    margins = torch.tensor([1.0, -0.5, 0.0, 2.0, -3.0])
    lines = table(margins, ["math", "chat", "chat", "chat", None], "against the initial policy")
    assert [row[:3] for row in cells(lines)] == [("chat", "3", "50.0%"), ("math", "1", "100.0%"), ("all", "5", "50.0%")]
    assert cells(lines)[2][3] == "{:.1%} to {:.1%}".format(*wilson(2.5, 5))
    assert lines.title == "Accuracy of the rewards, against the initial policy"


@pytest.fixture
def trained(config, write_rows):
    """A configuration with a checkpoint, and rows of three subsets, one without a name, to validate on."""
    rows = [dict(row) for _, row in SyntheticPairs(size=24, seed=8).rows()]
    for i, row in enumerate(rows):
        row["subset"] = ("chat", "safety", None)[i % 3]
    main(["fit", f"--config={config}", "--model.optimizer.lr=0.5"])
    return [f"--config={config}", "--ckpt_path=last", f"--data.val={write_rows(rows)}"]


def test_validate_prints_what_predict_tells(trained, tmp_path, capsys):
    main(["predict", *trained, f"--data.test={trained[-1].partition('=')[2]}"])
    [file] = (tmp_path / "run").rglob("predictions.0.jsonl")
    batches = [json.loads(line) for line in file.read_text().splitlines()]
    right = [(margin > 0) + 0.5 * (margin == 0) for batch in batches for margin in batch["initial/rewards/margins"]]
    capsys.readouterr()
    main(["validate", *trained])
    said = capsys.readouterr().out
    found = dict(re.findall(r"(chat|safety|all) +│ (\d+ +│ [\d.]+%)", said))
    for name, own in (("chat", right[::3]), ("safety", right[1::3]), ("all", right)):
        count, share = re.split(r" +│ ", found[name])
        assert (int(count), share) == (len(own), f"{sum(own) / len(own):.1%}")
    assert "against the initial policy" in " ".join(said.split())
    assert "calibration error" in said


def test_it_says_what_the_rewards_are_taken_against(trained, capsys):
    for options, expected in (
        (["--model.log_initial=false"], "against the reference, for the initial policy is not held"),
        (["--model.loss=SimPO", "--model.reference=null", "--update=null"], "SimPO's own, without a reference"),
    ):
        main(["validate", trained[0], trained[2], *options])
        assert expected in " ".join(capsys.readouterr().out.split())
