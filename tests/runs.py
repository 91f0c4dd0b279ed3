"""What runs of `lit-tr` leave behind."""

import csv
from pathlib import Path


def metrics(root, version=0):
    """The rows of a run's metrics.csv."""
    return list(csv.DictReader((Path(root) / "lightning_logs" / f"version_{version}" / "metrics.csv").open()))
