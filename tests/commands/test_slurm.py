import pytest

from lit_tr.commands.slurm import is_queued_again, job_folder

SRUN = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "align"}


@pytest.fixture
def job(monkeypatch):
    def start(**variables):
        for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_each_job_and_each_task_of_an_array_has_a_folder(job):
    job(SLURM_JOB_ID="12", **SRUN)
    assert str(job_folder("runs")) == "runs/slurm-12"
    job(SLURM_JOB_ID="14", SLURM_ARRAY_JOB_ID="13", SLURM_ARRAY_TASK_ID="1", **SRUN)
    assert str(job_folder("runs")) == "runs/slurm-13_1"


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "12", **SRUN, "SLURM_JOB_NAME": "interactive"}])
def test_elsewhere_there_is_none(job, variables):
    job(**variables)
    assert job_folder("runs") is None
    assert not is_queued_again("runs")


def test_a_job_goes_on_from_its_own_checkpoint_and_from_no_other_job_s(job, tmp_path):
    job(SLURM_JOB_ID="12", **SRUN)
    (tmp_path / "slurm-11").mkdir()
    (tmp_path / "slurm-11/hpc_ckpt_1.ckpt").touch()
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    assert not is_queued_again(tmp_path)
    (tmp_path / "slurm-12").mkdir()
    (tmp_path / "slurm-12/hpc_ckpt_1.ckpt").touch()
    assert is_queued_again(tmp_path)
