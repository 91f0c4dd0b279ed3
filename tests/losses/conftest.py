from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.losses.examples import computed, drawn


class Table(nn.Module):
    """A model whose log-probs of tokens are those of a table, as TRL's fused head gives them."""

    def __init__(self, sides, of):
        super().__init__()
        self.sides, self.of = sides, of

    def forward(self, input_ids, **options):
        rows = [getattr(side, self.of) / side.tokens for side in self.sides]
        log_probs = torch.cat(rows)[:, None] * _mask(self.sides)[:, 1:]
        none = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=none, mean_logits=none, is_top1=none.bool())


def _mask(sides):
    """Return which tokens are those of a response, `(chosen + rejected, prompt of 1 + longest)`."""
    tokens = torch.cat([side.tokens for side in sides])
    return (torch.arange(33) > 0) & (torch.arange(33) <= tokens[:, None])


class AgainstTRL:
    """Compares values and gradients with those of TRL's DPOTrainer, pair by pair."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __call__(self, loss, kind, beta, **options):
        ours = computed(loss, *drawn())
        theirs = [computed(lambda *pair: self.value(kind, beta, options, pair), *pair) for pair in self.pairs()]
        for one, expected in zip(ours, zip(*theirs, strict=True), strict=True):
            torch.testing.assert_close(one, torch.cat(expected), rtol=1e-5, atol=1e-5)

    def pairs(self):
        from lit_tr.losses import Scores

        columns = [list(zip(side.policy, side.tokens, side.reference, strict=True)) for side in drawn()]
        for rows in zip(*columns, strict=True):
            yield [Scores(*(value[None] for value in row)) for row in rows]

    def value(self, kind, beta, options, pair):
        sides, trainer = pair[:2], self.trainer
        trainer.loss_types, trainer.beta, trainer.ref_model = [kind], beta, Table(sides, "reference")
        trainer.label_smoothing = options.get("label_smoothing", 0.0)
        trainer.f_divergence_type = options.get("f_divergence_type", "reverse_kl")
        trainer.f_alpha_divergence_coef = options.get("f_alpha_divergence_coef", 0.5)
        mask = _mask(sides).long()
        inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
        return trainer.compute_loss(Table(sides, "policy"), inputs)[None]


@pytest.fixture(scope="session")
def trl(llama_dir, tmp_path_factory):
    """A comparison with TRL's own code: `trl(loss, "hinge", beta)`."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    options = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    trainer = DPOTrainer(
        model=llama_dir,
        args=DPOConfig(tmp_path_factory.mktemp("trl"), discopop_tau=0.5, **options),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
        processing_class=AutoTokenizer.from_pretrained(llama_dir),
    )
    return AgainstTRL(trainer)
