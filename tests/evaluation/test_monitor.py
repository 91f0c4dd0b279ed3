import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.errors import UserError
from lit_tr.evaluation import PolicyMonitor
from lit_tr.evaluation.monitor import said
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def monitor(every=2, **options):
    return PolicyMonitor(GoldReward(), every, **{"prompts": 6, "max_new_tokens": 24, "pairs": 8, **options})


def module(lora=None, reference=None, lr=0.1, **options):
    reference = reference or (AdapterReference() if lora else CopyReference())
    policy = PretrainedPolicy(TINY, lora=lora)
    return PreferenceModule(policy, reference, DPO(beta=0.1), lambda params: torch.optim.SGD(params, lr=lr), **options)


def fit(folder, callbacks, model=None, steps=4, ckpt_path=None, seed=5, **options):
    torch.manual_seed(seed)
    data = PreferenceDataModule(TINY, SyntheticPairs(32), val=SyntheticPairs(8, seed=3), batch_size=4)
    trainer = Trainer(
        logger=CSVLogger(folder, name="", version="run"),
        max_steps=steps,
        log_every_n_steps=1,
        callbacks=[SoftReferenceUpdate(every_n_steps=2), *callbacks],
        **{"enable_checkpointing": False, **QUIET, **options},
    )
    trainer.fit(model or module(), data, ckpt_path=ckpt_path)
    return trainer


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "run" / "evaluation.jsonl").read_text().splitlines()]


def rows(folder):
    return list(csv.DictReader((Path(folder) / "run" / "metrics.csv").open()))


def losses(folder):
    return [row["train/loss"] for row in rows(folder) if row.get("train/loss")]


@pytest.mark.parametrize("lora", [None, LoRA(r=4, dropout=0.5)])
def test_training_is_the_same_with_and_without_it(tmp_path, lora):
    """Dropout draws from the random state that sampling has to leave alone."""
    for name, callbacks in (("with", [monitor(1)]), ("without", [])):
        fit(tmp_path / name, callbacks, module(lora))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(losses(tmp_path / "with")) == 4


def test_the_start_of_the_run_is_said_before_it(tmp_path, capsys):
    fit(tmp_path, [monitor()], steps=1, enable_model_summary=True)
    said = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said.index("policy") < said.index("folder") < said.index("step 0")


def test_it_writes_logs_and_says_what_it_measures(tmp_path, capsys):
    trainer = fit(tmp_path, [monitor(2)])
    found = lines(tmp_path)
    assert [(line["step"], line["label"]) for line in found] == [(0, "initial"), (2, "policy"), (4, "policy")]
    start, _, end = found
    assert (start["kl"], start["kl_log_ratio"], start["accuracy"], start["win_rate"]) == (0, 0, 0.5, 0.5)
    assert (start["log_ratio_chosen"], start["calibration_error"]) == (0, 0)
    assert end["kl"] > 0
    assert 0 < end["kl_reference"] < end["kl"]
    assert end["win_rate_interval"][0] <= end["win_rate"] <= end["win_rate_interval"][1]
    assert (end["prompts"], end["samples"]) == (6, 1)
    assert not torch.tensor([value for value in end.values() if isinstance(value, float)]).isnan().any()
    logged = [row for row in rows(tmp_path) if row.get("evaluation/score")]
    assert [(int(row["step"]), float(row["evaluation/score"])) for row in logged] == [
        (1, pytest.approx(found[1]["score"])),
        (3, pytest.approx(end["score"])),
    ]
    assert trainer.callback_metrics["evaluation/kl"].item() == pytest.approx(end["kl"])
    said_lines = [line for line in capsys.readouterr().out.splitlines() if "evaluation  score" in line]
    assert said_lines == [said(line) for line in found]


def test_several_samples_of_a_prompt_count_as_one(tmp_path):
    fit(tmp_path, [monitor(2, samples=3)], steps=2)
    end = lines(tmp_path)[-1]
    assert (end["prompts"], end["samples"]) == (6, 3)
    low, high = end["win_rate_interval"]
    assert high - low > 0.4  # of 6 prompts, not of 18 samples


@pytest.mark.parametrize("at", [2, 3])
def test_a_resume_goes_on_without_repeating_lines(tmp_path, at):
    """In a new folder, and in the folder of a run that went on after the checkpoint."""
    saved = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    fit(tmp_path / "whole", [monitor(2), saved], steps=6, enable_checkpointing=True)
    whole = lines(tmp_path / "whole")
    checkpoint = tmp_path / "checkpoints" / f"step={at}.ckpt"
    for folder in ("new", "whole"):
        fit(tmp_path / folder, [monitor(2)], steps=6, ckpt_path=checkpoint, seed=9)
        assert lines(tmp_path / folder) == whole
    assert [line["step"] for line in whole] == [0, 2, 4, 6]


class Interrupted(Callback):
    """Ctrl-C at the end of a step."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.at:
            raise KeyboardInterrupt


def test_the_last_step_is_evaluated_once_whether_or_not_it_is_a_multiple(tmp_path):
    for steps, expected in ((3, [0, 2, 3]), (4, [0, 2, 4])):
        fit(tmp_path / str(steps), [monitor(2)], steps=steps)
        assert [line["step"] for line in lines(tmp_path / str(steps))] == expected
        logged = [int(row["step"]) + 1 for row in rows(tmp_path / str(steps)) if row.get("evaluation/score")]
        assert logged == expected[1:]
    assert lines(tmp_path / "3")[:2] == lines(tmp_path / "4")[:2]


def test_a_run_that_was_interrupted_evaluates_its_last_step_when_it_gets_there(tmp_path):
    fit(tmp_path / "whole", [monitor(2)], steps=5)
    saved = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    with pytest.raises(SystemExit):
        fit(tmp_path / "part", [monitor(2), Interrupted(3), saved], steps=5, enable_checkpointing=True)
    assert [line["step"] for line in lines(tmp_path / "part")] == [0, 2]
    for _ in range(2):  # the second time there is nothing left to do
        fit(tmp_path / "part", [monitor(2), saved], steps=5, ckpt_path=saved.last_model_path, enable_checkpointing=True)
        assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [0, 2, 4, 5]


def test_the_checkpoint_of_the_best_judged_policy_is_kept(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="evaluation/score", mode="max", every_n_train_steps=1)
    fit(tmp_path, [monitor(1), best], module(lr=0.5), steps=5, enable_checkpointing=True)
    found = {line["step"]: line["score"] for line in lines(tmp_path) if line["step"]}
    assert best.best_model_score.item() == pytest.approx(max(found.values()))
    step = torch.load(best.best_model_path, weights_only=False)["global_step"]
    assert found[step] == max(found.values())


class Pushed(PolicyMonitor):
    """Makes all tokens but one less likely before each evaluation."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        with torch.no_grad():
            pl_module.policy.model.embed_tokens.weight[7] *= 3
        super().on_train_batch_end(trainer, pl_module, *args)


def test_it_explains_once_when_both_responses_lose_probability(tmp_path, capsys):
    fit(tmp_path / "falls", [Pushed(GoldReward(), 1, prompts=4, max_new_tokens=8)])
    assert all(line["log_ratio_chosen"] < 0 for line in lines(tmp_path / "falls")[1:])
    assert capsys.readouterr().out.count("are both less likely than under the initial policy (-") == 1


class Lengths:
    """A scorer that has no score for the first response."""

    name = "lengths"

    def score(self, candidates):
        return [float("nan"), *(float(len(one.response)) for one in candidates[1:])]


def test_a_scorer_scores_all_at_once_and_what_it_leaves_out_is_counted(tmp_path, capsys):
    fit(tmp_path, [PolicyMonitor(Lengths(), 2, prompts=4, max_new_tokens=8)], steps=2)
    assert [line["unscored"] for line in lines(tmp_path)] == [1, 1]
    assert "1 without a score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"log_initial": False}, "PolicyMonitor compares with the initial policy: set model.log_initial"),
        ({"reference": FrozenReference(precompute=True)}, "it holds no model"),
    ],
)
def test_what_is_missing_is_named_before_training(tmp_path, model, message):
    data = PreferenceDataModule(TINY, SyntheticPairs(8), val=SyntheticPairs(8, seed=3))
    trainer = Trainer(default_root_dir=tmp_path, max_steps=1, callbacks=[monitor()], **QUIET)
    with pytest.raises(UserError, match=message):
        trainer.fit(module(**model), data)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="every_n_steps must be at least 1, not 0"):
        monitor(0)
    with pytest.raises(UserError, match="prompts must be at least 2"):
        monitor(prompts=1)


RANKS = """
import sys
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.evaluation import PolicyMonitor
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

best = ModelCheckpoint(sys.argv[1], monitor="evaluation/score", mode="max", every_n_train_steps=2)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=2, default_root_dir=sys.argv[1],
    callbacks=[PolicyMonitor(GoldReward(), 2, prompts=4, max_new_tokens=8), best], enable_progress_bar=False,
)
data = PreferenceDataModule(TINY, SyntheticPairs(16), val=SyntheticPairs(4, seed=3), batch_size=4)
trainer.fit(PreferenceModule(PretrainedPolicy(TINY), CopyReference(), DPO()), data)
with open(f"{sys.argv[1]}/score.{trainer.global_rank}", "w") as file:
    file.write(str(trainer.callback_metrics["evaluation/score"].item()))
"""


@pytest.mark.slow
def test_one_rank_evaluates_and_all_know_the_figures(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "ranks.py"), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    [file] = tmp_path.rglob("evaluation.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in found] == [0, 2]
    assert out.count("evaluation  score") == 2
    scores = [float((tmp_path / f"score.{rank}").read_text()) for rank in (0, 1)]
    assert scores == pytest.approx([found[1]["score"]] * 2)


def test_an_evaluation_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_tr.evaluation.held_out.SILENT", 0.0)
    fit(tmp_path, [monitor(every=4, prompts=5)])
    found = [line.partition(" examples")[0] for line in capsys.readouterr().out.splitlines() if "examples" in line]
    assert found == [f"evaluation  {done}" for done in ("5/18", "18/18")] * 2  # 5 sampled and compared, 8 scored
