"""PolicyMonitor: how good the policy's samples are while it trains, and how far they are from its start."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lit_tr.errors import UserError
from lit_tr.evaluation import evaluations
from lit_tr.evaluation.held_out import Evaluation, Evaluator
from lit_tr.rewards import Reward

BOTH_FALL = (
    "chosen and rejected responses are both less likely than under the initial policy ({chosen:.1f} and {rejected:.1f} "
    "nats per response): a preference loss fixes only their difference, so probability goes to responses that are in "
    "no row (arXiv 2404.12358, 2410.08847). That is usual, and harmful where score or win rate fall as well: then take "
    "an earlier checkpoint, a larger beta or a smaller learning rate."
)
LOGGED = (
    *("score", "win_rate", "kl", "kl_log_ratio", "kl_reference", "length", "repetition", "distinct_2", "self_bleu"),
    *("accuracy", "calibration_error", "log_ratio_chosen", "log_ratio_rejected"),
)
"""The figures that are logged, as `evaluation/NAME`."""


class PolicyMonitor(Callback):
    """Samples from the policy every n optimizer steps and at the end, and evaluates it beside the initial policy.

    Logs `evaluation/score`, `evaluation/win_rate` (against the initial policy, on the same prompts), `evaluation/kl`
    (from the initial policy, in nats per response), `evaluation/length` and others, which `ModelCheckpoint` can
    `monitor` with the same `every_n_train_steps`: so the checkpoint of the best judged policy is kept. Prints a line
    each time, and writes `evaluation.jsonl` in the run's folder, with a line for the initial policy as step 0.
    `evaluation/log_ratio_chosen` and `evaluation/log_ratio_rejected` are the log-ratios of the rows' own responses to
    the initial policy: what probability left the data. When both fall, that is explained, once.

    The first rank evaluates while the others wait. The random state is restored: training goes on as without it. After
    a resume it goes on with the lines up to the checkpoint.

    Args:
        judge: scores responses: a function from a prompt and a response to a number, such as
            `lit_tr.embedded.task.GoldReward`, or a scorer with `score(candidates)`, such as a reward model or
            an ensemble of them.
        every_n_steps: optimizer steps between evaluations.
        prompts: how many of the validation prompts are sampled from, at least 2.
        max_new_tokens: most tokens of a response.
        samples: responses to each prompt.
        pairs: how many of the validation rows are scored for log-ratios, accuracy and calibration.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        judge: Reward,
        every_n_steps: int,
        prompts: int = 32,
        max_new_tokens: int = 96,
        samples: int = 1,
        pairs: int = 128,
    ) -> None:
        at_least = (
            *(("every_n_steps", every_n_steps, 1), ("prompts", prompts, 2), ("max_new_tokens", max_new_tokens, 2)),
            *(("samples", samples, 1), ("pairs", pairs, 1)),
        )
        for name, value, least in at_least:
            if value < least:
                raise UserError(f"PolicyMonitor: {name} must be at least {least}, not {value}")
        self.evaluator = Evaluator(judge, prompts, max_new_tokens, samples, pairs)
        self.every_n_steps = every_n_steps
        self._reset()

    def _reset(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self._initial_scores: list[float] = []
        self._is_explained = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier run; a checkpoint is restored later."""
        self._reset()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is something to evaluate and to compare with; what is missing is a `UserError`."""
        self.evaluator.check("PolicyMonitor", trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the initial policy, unless a checkpoint knows it."""
        self._file = Path(trainer.log_dir or trainer.default_root_dir) / evaluations.EVALUATIONS  # a collective call
        self._seen_step = trainer.global_step
        if trainer.is_global_zero:
            found = [line for line in evaluations.read(self._file) if line["step"] <= trainer.global_step]
            evaluations.write(self._file, [])
            evaluations.add(self._file, [*found, *self._lines])
        if not self._initial_scores:
            self._evaluate(trainer, pl_module, step=0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate every n optimizer steps."""
        step, before = trainer.global_step, self._seen_step
        self._seen_step = step
        if step == before or step % self.every_n_steps:
            return
        pl_module.speed.pause(pl_module.device)
        named = self._logged(trainer, pl_module, step)
        pl_module.log_dict(named, logger=False)  # for callbacks that watch a metric, whatever steps are logged
        pl_module.speed.go_on(pl_module.device)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the last step, unless that is done."""
        if self._lines[-1]["step"] < trainer.global_step:
            self._logged(trainer, pl_module, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the lines so far, and what the initial policy scored."""
        return {"lines": self._lines, "initial_scores": self._initial_scores, "is_explained": self._is_explained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the lines of a checkpoint."""
        self._lines, self._initial_scores = list(state_dict["lines"]), list(state_dict["initial_scores"])
        self._is_explained = state_dict["is_explained"]

    def _logged(self, trainer: Any, module: Any, step: int) -> dict[str, float]:
        """Evaluate the policy, and hand the figures to the loggers; return what they got."""
        figures = self._evaluate(trainer, module, step)
        named = {f"evaluation/{name}": float(figures[name]) for name in LOGGED if name in figures}
        for logger in module.loggers:
            logger.log_metrics(named, step=step - 1)
        return named

    def _evaluate(self, trainer: Any, module: Any, step: int) -> dict[str, Any]:
        """Evaluate on the first rank, write and print; return the figures, on all ranks."""
        line: dict[str, Any] = {}
        if trainer.is_global_zero:
            with isolate_rng():
                done = self.evaluator.policy(trainer, module) if step else self.evaluator.initial(trainer, module)
            if not step:
                self._initial_scores = done.scores
            line = self._line(done, step)
            evaluations.add(self._file, [line])
            print(said(line))
            self._explain(line)
        line, self._initial_scores = trainer.strategy.broadcast((line, self._initial_scores))
        self._lines = [*self._lines, line]
        return line

    def _line(self, done: Evaluation, step: int) -> dict[str, Any]:
        label = "policy" if step else "initial"
        return {"step": step, "label": label, **done.figures, **done.win_rate(self._initial_scores)}

    def _explain(self, line: dict[str, Any]) -> None:
        """Say once what it means that chosen and rejected responses have both become less likely."""
        fallen = [
            line.get(f"log_ratio_{side}", 0) + 2 * line.get(f"log_ratio_{side}_standard_error", 0) < 0
            for side in ("chosen", "rejected")
        ]
        if all(fallen) and not self._is_explained:
            print(BOTH_FALL.format(chosen=line["log_ratio_chosen"], rejected=line["log_ratio_rejected"]))
            self._is_explained = True


def said(line: dict[str, Any]) -> str:
    """Return an evaluation in one line, with standard errors and the interval of the win rate."""
    parts = [f"step {line['step']}  evaluation"]
    if "score" in line:
        parts.append(f"score {line['score']:.3f} ± {line['score_standard_error']:.3f}")
    if line["step"] and "win_rate" in line:
        low, high = line["win_rate_interval"]
        parts.append(f"win rate {line['win_rate']:.0%} ({low:.0%} to {high:.0%})")
    parts += [f"KL {line['kl']:.2f} ± {line['kl_standard_error']:.2f}", f"length {line['length']:.1f}"]
    if line.get("unscored"):
        parts.append(f"{line['unscored']} without a score")
    return "  ".join(parts)
