"""Where a job of SLURM finds its own checkpoint again."""

import os
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment


def job_folder(root: str) -> Path | None:
    """Return the folder of this SLURM job among the runs; None outside of one.

    A job that is queued again keeps its number. Lightning goes on from any `hpc_ckpt_*.ckpt` in
    `trainer.default_root_dir`, so a job that shared the folder with others would go on with one of theirs.

    Args:
        root: folder of the runs.
    """
    if not SLURMEnvironment.detect():
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return Path(root) / (f"slurm-{array}_{task}" if task else f"slurm-{os.environ['SLURM_JOB_ID']}")


def is_queued_again(root: str) -> bool:
    """Whether this is a SLURM job that has saved a checkpoint before it was queued again."""
    folder = job_folder(root)
    return folder is not None and any(folder.glob("hpc_ckpt_*.ckpt"))
