"""Runs of `lit-tr`, and what they leave behind."""

import csv
from pathlib import Path

import pytest

from lit_tr.commands import main


def folder(root, number=0):
    """The folder of the first, second, ... run below a root that has metrics."""
    return sorted(Path(root).glob("20*/metrics.csv"))[number].parent


def metrics(root, number=0):
    """The rows of a run's metrics.csv."""
    return list(csv.DictReader((folder(root, number) / "metrics.csv").open()))


def fails(capsys, *args):
    """Run lit-tr with a mistake; return its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def losses(root, number=0):
    """The training losses of a run, as metrics.csv has them."""
    return [row["train/loss"] for row in metrics(root, number) if row.get("train/loss")]
