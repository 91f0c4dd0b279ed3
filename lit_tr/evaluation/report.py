"""A table of the policy before and after training, and the curves between."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_tr.data.batches import PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.evaluation.curves import plot_curves
from lit_tr.evaluation.generate import Generation, generate
from lit_tr.losses import Loss, Scores
from lit_tr.metrics import preference_metrics
from lit_tr.policy.logprobs import response_log_probs, scoring
from lit_tr.updates import ReferenceUpdate

Judge = Callable[[str, str], float]
LogProbs = Callable[[PairBatch], Tensor]

BATCH_SIZE = 32
PAIR_METRICS = {"rewards/margins": "preference margin", "rewards/accuracies": "preference accuracy"}


class GenerationReport(Callback):
    """Compares the policy with its start on the validation prompts at the end of training.

    Prints a table and writes `report.json`, `generations.jsonl` and `curves.png` in the run's folder. Rewards, margin
    and accuracy are taken against the initial policy. The KL divergence from it is the mean log-ratio on the policy's
    own samples, in nats per response.

    Args:
        judge: function from a prompt and a response to a score, such as `lit_tr.embedded.task.GoldReward`.
        prompts: how many of the validation prompts to sample a response to.
        max_new_tokens: most tokens of a response.
    """

    def __init__(self, judge: Judge, prompts: int = 200, max_new_tokens: int = 96) -> None:
        if min(prompts, max_new_tokens) < 2:
            raise UserError("GenerationReport: prompts and max_new_tokens must be at least 2")
        self.judge, self.prompts, self.max_new_tokens = judge, prompts, max_new_tokens

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is something to compare with.

        Raises:
            UserError: there are no validation rows, the initial policy is not kept, or weights are sharded.
        """
        if any(isinstance(param, DTensor) for param in pl_module.parameters()):
            raise UserError(
                "GenerationReport works on one rank, which holds no full model under ModelParallelStrategy: leave it "
                "out, and sample from what `lit-tr export` writes"
            )
        if "val" not in getattr(trainer.datamodule, "examples", {}):
            raise UserError("GenerationReport needs held-out prompts: set data.val")
        if getattr(pl_module, "start", None) is None:
            raise UserError("GenerationReport compares with the initial policy: set model.log_initial to true")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate, print and save, on the device and in the precision of the training."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero:
            return
        before, after, samples = self.compare(trainer, pl_module)
        updates = sum(callback.updates for callback in trainer.callbacks if isinstance(callback, ReferenceUpdate))
        report = {"before": before, "after": after, "reference updates": updates}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        (folder / "generations.jsonl").write_text("".join(self._line(sample) for sample in samples))
        for logger in trainer.loggers:
            logger.save()
        if (folder / "metrics.csv").exists():
            plot_curves(folder / "metrics.csv", folder / "curves.png")
        console = Console()
        console.print(table(report))
        console.print(f"Report, samples, curves and metrics are in {folder}", soft_wrap=True)
        console.print(f"`lit-tr report {folder}` makes a page of them", soft_wrap=True)

    def compare(self, trainer: Any, pl_module: Any) -> tuple[dict[str, float], dict[str, float], list[Generation]]:
        """Return the figures of the initial policy, those of the policy, and its samples."""
        policy, start, data = pl_module.policy, pl_module.start, trainer.datamodule
        initial = partial(start.log_probs, policy)
        evaluate = partial(self.evaluate, initial=initial, loss=pl_module.loss, data=data, device=pl_module.device)
        with trainer.precision_plugin.forward_context():
            with start.active(policy) as model:
                samples = self.sample(model, data)
            before = evaluate(samples, log_probs=initial)
            samples = self.sample(policy, data)
            return before, evaluate(samples, log_probs=partial(_log_probs, policy)), samples

    def sample(self, model: Any, data: Any) -> list[Generation]:
        """Return a model's responses to the first validation prompts."""
        prompts = [example.prompt for example in data.examples["val"][: self.prompts]]
        return generate(model, data.tokenizer, prompts, self.max_new_tokens)

    def evaluate(
        self,
        samples: list[Generation],
        log_probs: LogProbs,
        initial: LogProbs,
        loss: Loss,
        data: Any,
        device: torch.device | str = "cpu",
    ) -> dict[str, float]:
        """Return the figures of a policy on its own samples and on the validation rows."""
        judged = [self.judge(sample.prompt_text, sample.text) for sample in samples]
        own, _ = score([sample.tokenized() for sample in samples], log_probs, initial, device)
        chosen, rejected = score(data.examples["val"], log_probs, initial, device)
        given = preference_metrics(loss, chosen, rejected, paired=len(chosen.tokens) == len(rejected.tokens))
        figures = {label: given[name].mean().item() for name, label in PAIR_METRICS.items() if len(given[name])}
        return figures | {
            "gold reward": mean(judged),
            "gold reward, standard error": stdev(judged) / len(judged) ** 0.5,
            "KL to the initial policy": own.log_ratios.mean().item(),
            "response tokens": mean(len(sample.response) for sample in samples),
        }

    def _line(self, sample: Generation) -> str:
        judged = self.judge(sample.prompt_text, sample.text)
        return json.dumps({"prompt": sample.prompt_text, "response": sample.text, "score": judged}) + "\n"


def score(
    examples: list[TokenizedExample], log_probs: LogProbs, initial: LogProbs, device: torch.device | str = "cpu"
) -> tuple[Scores, Scores]:
    """Return the scores of the chosen and of the rejected responses of some examples, against the initial policy."""
    collate = Collator(packed=False)
    batches: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    for i in range(0, len(examples), BATCH_SIZE):
        batch = collate(examples[i : i + BATCH_SIZE]).to(device)
        rows = (batch.split(values.cpu()) for values in (log_probs(batch), batch.lengths, initial(batch)))
        chosen, rejected, _ = zip(*rows, strict=True)
        batches.append((chosen, rejected))
    sides = (map(torch.cat, zip(*side, strict=True)) for side in zip(*batches, strict=True))
    chosen_scores, rejected_scores = (Scores(policy, tokens, start) for policy, tokens, start in sides)
    return chosen_scores, rejected_scores


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table: a line for each figure, before and after."""
    lines = Table("", "before", "after", title="Held-out prompts")
    for name, after in report["after"].items():
        lines.add_row(name, f"{report['before'][name]:.3f}", f"{after:.3f}")
    lines.add_row("reference updates", "0", str(report["reference updates"]))
    return lines


def _log_probs(policy: nn.Module, batch: PairBatch) -> Tensor:
    with scoring(policy):
        return response_log_probs(policy, batch)
