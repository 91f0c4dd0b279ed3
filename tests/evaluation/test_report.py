import json

import pytest
import torch
from lightning.pytorch import Trainer

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.errors import UserError
from lit_tr.evaluation import GenerationReport
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def fit(tmp_path, report, policy=None, reference=None, val=True, log_initial=True, steps=2):
    module = PreferenceModule(
        policy or PretrainedPolicy(TINY),
        reference or CopyReference(),
        DPO(beta=0.5),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        log_initial=log_initial,
    )
    data = PreferenceDataModule(TINY, SyntheticPairs(8), val=SyntheticPairs(6, seed=3) if val else None)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=steps,
        log_every_n_steps=1,
        callbacks=[SoftReferenceUpdate(), report],
        **QUIET,
    )
    trainer.fit(module, data)
    return module, data, tmp_path / "lightning_logs" / "version_0"


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_before_is_the_initial_policy_and_after_the_trained_one(tmp_path, lora):
    policy, reference = PretrainedPolicy(TINY, lora=lora), AdapterReference() if lora else CopyReference()
    module, data, folder = fit(tmp_path, GenerationReport(GoldReward(), prompts=4), policy, reference)
    report = json.loads((folder / "report.json").read_text())
    before, after = report["before"], report["after"]
    assert (before["preference accuracy"], before["preference margin"], before["KL to the initial policy"]) == (
        0.5,
        0,
        0,
    )
    assert after["preference margin"] != 0
    assert report["reference updates"] == 2

    samples = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    rewards = [GoldReward()(sample["prompt"], sample["response"]) for sample in samples]
    assert after["gold reward"] == pytest.approx(sum(rewards) / 4)
    assert {path.name for path in folder.iterdir()} >= {"report.json", "curves.png", "metrics.csv"}
    assert report["after"]["win rate against the initial policy"] == pytest.approx(
        sum((a > b) + 0.5 * (a == b) for a, b in zip(rewards, of_start(data), strict=True)) / 4
    )
    assert [(line["id"], line["sample"], line["policy"]) for line in samples] == [
        (str(i), 0, "policy") for i in range(4)
    ]
    assert sum(sample["kl"] for sample in samples) / 4 == pytest.approx(after["KL to the initial policy"], abs=1e-6)
    for line in samples:  # of DPO: beta times the log-ratio of each token
        assert len(line["token_rewards"]) == line["tokens"]
        assert sum(reward for _, reward in line["token_rewards"]) == pytest.approx(0.5 * line["log_ratio"], abs=1e-6)
        assert "".join(text for text, _ in line["token_rewards"]).startswith(line["response"])
    evaluated = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [(line["step"], line["label"], line["kl"]) for line in evaluated] == [
        (0, "initial", 0),
        (2, "policy", after["KL to the initial policy"]),
    ]
    # the start is computed as such: a fresh policy samples the same
    assert before["gold reward"] == pytest.approx(sum(of_start(data)) / 4)


def of_start(data):
    """The rewards of what a policy samples that was never trained."""
    fresh = GenerationReport(GoldReward(), prompts=4).evaluator.sample(PretrainedPolicy(TINY).load(), data)
    return [GoldReward()(one.prompt_text, one.text) for one in fresh]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"val": False}, "set data.val"), ({"log_initial": False}, "set model.log_initial")],
)
def test_what_is_missing_is_named_before_training(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        fit(tmp_path, GenerationReport(GoldReward()), **options)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="prompts and max_new_tokens"):
        GenerationReport(GoldReward(), prompts=1)
