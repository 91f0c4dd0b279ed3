"""Two real processes with gloo against one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_tr.data import Collator, SyntheticPairs
from lit_tr.data.formats import explicit_prompt
from lit_tr.data.tokenization import tokenize
from lit_tr.losses import KTO, Scores
from lit_tr.policy import CopyReference, PretrainedPolicy, response_log_probs

BETA = 0.1
SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import SyntheticPairs
from lit_tr.losses import KTO
from lit_tr.policy import CopyReference, PretrainedPolicy


class Moved(PreferenceModule):
    def configure_model(self):
        super().configure_model()
        torch.manual_seed(3)
        for param in self.reference.model.parameters():
            param.data += 0.05 * torch.randn_like(param)


module = Moved(PretrainedPolicy(sys.argv[1]), CopyReference(), KTO(beta=0.1), log_initial=False)
data = PreferenceDataModule(
    sys.argv[1], SyntheticPairs(2), val=SyntheticPairs(8, seed=4), batch_size=4, mismatched=True
)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
metrics = trainer.validate(module, data, verbose=False)[0]
if trainer.is_global_zero:
    print(json.dumps(metrics))
"""


@pytest.mark.slow
def test_the_kl_baseline_and_the_means_are_those_of_all_ranks(llama_dir, tokenizer, tmp_path):
    """Rank 0 holds rows 0, 2, 4, 6, rank 1 the others: the loss with the baseline of both, a mean over both."""
    (tmp_path / "ranks.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "ranks.py"), llama_dir]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    metrics = json.loads(output.splitlines()[-1])

    policy, reference = PretrainedPolicy(llama_dir).load(), CopyReference()
    reference.prepare(policy)
    torch.manual_seed(3)
    for param in reference.model.parameters():
        param.data += 0.05 * torch.randn_like(param)
    examples = [tokenize(explicit_prompt(row), tokenizer) for _, row in SyntheticPairs(8, seed=4).rows()]
    parts = []
    for rank in (0, 1):
        batch = Collator(packed=False, mismatched=True)(examples[rank::2])
        ours = batch.split(response_log_probs(policy, batch).detach())
        theirs = batch.split(reference.log_probs(policy, batch))
        parts.append([Scores(a, b, torch.ones_like(a)) for a, b in zip(ours, theirs, strict=True)])
    baselines = [mismatched.log_ratios.mean().item() for _, _, mismatched in parts]
    assert baselines[0] != pytest.approx(baselines[1], rel=0.01)
    baseline = torch.tensor(max(sum(baselines) / 2, 0))
    assert baseline > 0
    losses = [KTO(beta=BETA)(chosen, rejected, baseline).mean() for chosen, rejected, _ in parts]
    assert metrics["val/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    margins = torch.cat([chosen.log_ratios - rejected.log_ratios for chosen, rejected, _ in parts])
    assert metrics["val/rewards/margin"] == pytest.approx(BETA * margins.mean().item(), rel=1e-4)
