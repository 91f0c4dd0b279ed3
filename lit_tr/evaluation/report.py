"""A table of the policy before and after training, and the curves between."""

import json
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

from lit_tr.errors import UserError
from lit_tr.evaluation import evaluations
from lit_tr.evaluation.curves import plot_curves
from lit_tr.evaluation.generate import Generation
from lit_tr.evaluation.held_out import Evaluation, Evaluator
from lit_tr.evaluation.local import with_token_rewards
from lit_tr.evaluation.responses import Response
from lit_tr.rewards import Reward
from lit_tr.updates import ReferenceUpdate

SHOWN = {
    "margin": "preference margin",
    "accuracy": "preference accuracy",
    "calibration_error": "calibration error of the preferences",
    "score": "gold reward",
    "score_standard_error": "gold reward, standard error",
    "win_rate": "win rate against the initial policy",
    "kl": "KL to the initial policy",
    "kl_standard_error": "KL to the initial policy, standard error",
    "length": "response tokens",
    "repetition": "repeated trigrams",
    "distinct_2": "distinct bigrams",
    "self_bleu": "self-BLEU",
}
"""What is in the table, by the names of `evaluation.jsonl`."""


class GenerationReport(Callback):
    """Compares the policy with its start on the validation prompts at the end of training.

    Prints a table and writes `report.json`, `evaluation.jsonl`, `generations.jsonl` and `curves.png` in the run's
    folder. Margin and accuracy are taken against the initial policy. The KL divergence from it is that on the policy's
    own samples, in nats per response, by the exact sum over the vocabulary at each sampled position.

    Args:
        judge: scores responses: a function from a prompt and a response to a number, such as
            `lit_tr.embedded.task.GoldReward`, or a scorer with `score(candidates)`.
        prompts: how many of the validation prompts to sample a response to.
        max_new_tokens: most tokens of a response.
    """

    def __init__(self, judge: Reward, prompts: int = 200, max_new_tokens: int = 96) -> None:
        if min(prompts, max_new_tokens) < 2:
            raise UserError("GenerationReport: prompts and max_new_tokens must be at least 2")
        self.evaluator = Evaluator(judge, prompts, max_new_tokens)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is something to compare with.

        Raises:
            UserError: there are no validation rows, the initial policy is not kept, or weights are sharded.
        """
        self.evaluator.check("GenerationReport", trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate, print and save, on the device and in the precision of the training."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero:
            return
        before, after = self.evaluate(trainer, pl_module)
        updates = sum(callback.updates for callback in trainer.callbacks if isinstance(callback, ReferenceUpdate))
        report = {"before": shown(before), "after": shown(after), "reference updates": updates}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        written = lines(after, trainer.datamodule.tokenizer.decode, pl_module.loss.beta)
        (folder / "generations.jsonl").write_text("".join(written))
        of_run = ({"step": 0, "label": "initial"}, {"step": trainer.global_step, "label": "policy"})
        found = (where | done.figures for where, done in zip(of_run, (before, after), strict=True))
        evaluations.add(folder / evaluations.EVALUATIONS, found)
        for logger in trainer.loggers:
            logger.save()
        if (folder / "metrics.csv").exists():
            plot_curves(folder / "metrics.csv", folder / "curves.png")
        console = Console()
        console.print(table(report))
        console.print(f"Report, samples, curves and metrics are in {folder}", soft_wrap=True)
        console.print(f"`lit-tr report {folder}` makes a page of them", soft_wrap=True)

    def compare(self, trainer: Any, pl_module: Any) -> tuple[dict[str, float], dict[str, float], list[Generation]]:
        """Return the figures of the initial policy and those of the policy, as in the table, and its samples."""
        before, after = self.evaluate(trainer, pl_module)
        return shown(before), shown(after), after.samples

    def evaluate(self, trainer: Any, pl_module: Any) -> tuple[Evaluation, Evaluation]:
        """Return the evaluations of the initial policy and of the policy, each with a win rate against the former."""
        both = self.evaluator.initial(trainer, pl_module), self.evaluator.policy(trainer, pl_module)
        for done in both:
            done.figures.update(done.win_rate(both[0].scores))
        return both


def shown(done: Evaluation) -> dict[str, float]:
    """Return the figures of the table by their names there."""
    return {label: done.figures[name] for name, label in SHOWN.items() if name in done.figures}


def lines(done: Evaluation, decode: Callable[[list[int]], str], beta: float) -> list[str]:
    """Return the samples of the policy as lines of JSON, with scores and their divergence from the initial policy.

    Args:
        done: the evaluation of the policy.
        decode: returns the text of some tokens.
        beta: what a token's log-ratio is multiplied by to be its implicit reward.
    """
    known = [None if isnan(score) else score for score in done.scores]
    responses = [
        Response(str(i), one.prompt_text, one.text, 0, "policy", len(one.response), one.finished, score=score)
        for i, (one, score) in enumerate(zip(done.samples, known, strict=True))
    ]
    return [one.line() + "\n" for one in with_token_rewards(responses, done.samples, done.divergence, decode, beta)]


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table: a line for each figure, before and after."""
    found = Table("", "before", "after", title="Held-out prompts")
    for name, after in report["after"].items():
        found.add_row(name, f"{report['before'].get(name, nan):.3f}", f"{after:.3f}")
    found.add_row("reference updates", "0", str(report["reference updates"]))
    return found
