"""What a run in Python prints: nothing but what is known here, of lit_tr and of Lightning."""

import re
import subprocess
import sys

SCRIPT = """
from lightning.pytorch import Trainer
from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference

policy = PretrainedPolicy(TINY, dtype="bfloat16", quantize="nf4", lora=LoRA(r=4), gradient_checkpointing=True)
module = PreferenceModule(policy, AdapterReference(), DPO(beta=0.1))
data = PreferenceDataModule(TINY, SyntheticPairs(8), SyntheticPairs(4, held_out=True), batch_size=4)
update = SoftReferenceUpdate(alpha=0.6, every_n_steps=2)
Trainer(max_steps=4, precision="bf16-mixed", log_every_n_steps=1, callbacks=[update]).fit(module, data)
"""
OUT = (
    r"(policy|reference|loss|memory|data|steps|folder) {2,}\S.*",
    r"(finished|reached|files|checkpoint) {2,}\S.*",
    r"step \d/4  loss .*  left \d:\d\d",
    r"step \d  validation  loss .*",
    r"step \d  reference updated \(\d so far\)",
)
ERR = (
    r"(GPU|TPU) available: .*",
    r"Using bfloat16 Automatic Mixed Precision \(AMP\)",
    r"`Trainer\.fit` stopped: `max_steps=4` reached\.",
    r"data\.val: the prompts of \d+ of 4 examples are in data\.train too, .*",
)


def test_a_run_in_python_prints_what_is_known(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text, known in ((done.stdout, OUT), (done.stderr, ERR)):
        assert [line for line in text.splitlines() if not any(re.fullmatch(one, line) for one in known)] == []
    assert sum(line.startswith("step ") and "left" in line for line in done.stdout.splitlines()) == 4
    assert [line.split()[0] for line in done.stdout.splitlines()[-4:]] == ["finished", "reached", "files", "checkpoint"]
