import os

import pytest

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands import main
from tests.runs import fails, metrics


def test_a_checkpoint_that_was_cut_short_is_passed_over(config, tmp_path, capsys):
    main(["fit", f"--config={config}", "--trainer.max_steps=3"])
    whole = next((tmp_path / "run").rglob("last.ckpt"))
    torn = whole.parent / "torn.ckpt"
    torn.write_bytes(whole.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="torn.ckpt was cut short"):
        main(["fit", f"--config={config}", "--trainer.max_steps=5", "--ckpt_path=last"])
    assert int(metrics(tmp_path / "run", 1)[-1]["step"]) == 4
    assert "was cut short" in fails(capsys, "fit", f"--config={config}", f"--ckpt_path={torn}")


def test_a_folder_of_shards_that_was_cut_short_is_passed_over(tmp_path):
    def written(path, times):
        path.mkdir()
        for name, time in times.items():
            (path / name).touch()
            os.utime(path / name, (time, time))
        os.utime(path, (max(times.values()),) * 2)

    whole = {"__0_0.distcp": 100, "__1_0.distcp": 101, ".metadata": 102, "meta.pt": 103}
    written(tmp_path / "whole.ckpt", whole)
    written(tmp_path / "first.ckpt", {"__0_0.distcp": 200})
    written(tmp_path / "again.ckpt", {**whole, "__0_0.distcp": 300})  # killed when it was written over
    written(tmp_path / "late.ckpt", {**whole, "__0_0.distcp": 300, "__1_0.distcp": 301, ".metadata": 302})
    with pytest.warns(UserWarning, match="was cut short"):
        assert [*complete_checkpoints(tmp_path)] == [tmp_path / "whole.ckpt"]
