"""Runs of `lit-tr`, and what they leave behind."""

import csv
from pathlib import Path

import pytest

from lit_tr.commands import main


def metrics(root, version=0):
    """The rows of a run's metrics.csv."""
    return list(csv.DictReader((Path(root) / "lightning_logs" / f"version_{version}" / "metrics.csv").open()))


def fails(capsys, *args):
    """Run lit-tr with a mistake; return its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def losses(root, version=0):
    """The training losses of a run, as metrics.csv has them."""
    return [row["train/loss"] for row in metrics(root, version) if row.get("train/loss")]
