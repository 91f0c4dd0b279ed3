"""How a policy of a run does on held-out prompts and pairs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import isnan, nan
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_tr.console.counted import SILENT, CountedProgress
from lit_tr.data.batches import PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.evaluation.calibration import calibration_error
from lit_tr.evaluation.generate import Generation, generate
from lit_tr.evaluation.intervals import wilson
from lit_tr.evaluation.kl import Active, Divergence, divergences, over_prompts
from lit_tr.evaluation.texts import distinct, repetition, self_bleu, words
from lit_tr.losses import Loss, Scores
from lit_tr.metrics import preference_metrics
from lit_tr.policy.logprobs import response_log_probs, scoring
from lit_tr.rewards import Candidate, Reward, as_scorer

LogProbs = Callable[[PairBatch], Tensor]

BATCH_SIZE = 8


@dataclass(frozen=True)
class Evaluation:
    """What a policy said, and how it did.

    Args:
        samples: responses that were sampled from it, those of a prompt together.
        scores: the judge's score of each; nan where it gave none.
        divergence: from the initial policy, on these samples.
        figures: the figures of a line of `evaluation.jsonl`, by name.
    """

    samples: list[Generation]
    scores: list[float]
    divergence: Divergence
    figures: dict[str, Any]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """What names the prompt of each sample."""
        return [tuple(sample.prompt) for sample in self.samples]

    def win_rate(self, other: Sequence[float]) -> dict[str, Any]:
        """Return the win rate against another policy, with its interval, as the function `win_rate` does.

        Args:
            other: scores of the other policy's samples of the same prompts, in the same order.
        """
        return win_rate(self.scores, other, self.prompts)


def win_rate(scores: Sequence[float], other: Sequence[float], prompts: Sequence[Any]) -> dict[str, Any]:
    """Return the share of samples with a higher score than another policy's, ties 1/2, and its 95 % interval.

    The interval is Wilson's, over prompts: samples of one prompt count as one. Empty where no sample has both scores.

    Args:
        scores: of the samples; nan where there is none.
        other: of the other policy's samples of the same prompts, in the same order.
        prompts: what names the prompt of each.
    """
    pairs = zip(scores, other, prompts, strict=True)
    wins = [((a > b) + 0.5 * (a == b), prompt) for a, b, prompt in pairs if not isnan(a - b)]
    if not wins:
        return {}
    rate = over_prompts(*zip(*wins, strict=True))
    return {"win_rate": rate.mean, "win_rate_interval": list(wilson(rate.mean * rate.prompts, rate.prompts))}


@dataclass(frozen=True)
class Evaluator:
    """Evaluates policies of a run on its validation rows, on one rank.

    Args:
        judge: scores responses.
        prompts: how many of the validation prompts are sampled from, at least 2.
        max_new_tokens: most tokens of a response.
        samples: responses to each prompt.
        pairs: how many of the validation rows are scored; None for all.
    """

    judge: Reward
    prompts: int
    max_new_tokens: int
    samples: int = 1
    pairs: int | None = None

    def check(self, name: str, trainer: Any, module: Any) -> None:
        """Check, for a callback of some name, that there is something to evaluate and to compare with.

        Raises:
            UserError: there are no validation rows, the initial policy is not kept, or weights are sharded.
        """
        if any(isinstance(param, DTensor) for param in module.parameters()):
            raise UserError(
                f"{name} works on one rank, which holds no full model under ModelParallelStrategy: leave it "
                "out, and sample from what `lit-tr export` writes"
            )
        if "val" not in getattr(trainer.datamodule, "examples", {}):
            raise UserError(f"{name} needs held-out prompts: set data.val")
        if getattr(module, "start", None) is None:
            raise UserError(f"{name} compares with the initial policy: set model.log_initial to true")
        with module.start.active(module.policy):
            pass  # a UserError where it holds no model
        if not find_spec("sacrebleu"):
            rank_zero_info(f"{name}: self-BLEU is left out; pip install 'lit-tr[evaluation]' brings it")

    def initial(self, trainer: Any, module: Any) -> Evaluation:
        """Return the evaluation of the initial policy."""
        start = partial(module.start.active, module.policy)
        return self(trainer, module, start, {"initial": start})

    def policy(self, trainer: Any, module: Any) -> Evaluation:
        """Return the evaluation of the policy, its divergence from the reference with it where that holds a model."""
        others = {"initial": partial(module.start.active, module.policy)}
        if module.reference is not None and module.reference is not module.start and _holds_model(module):
            others["reference"] = partial(module.reference.active, module.policy)
        return self(trainer, module, lambda: nullcontext(module.policy), others)

    def __call__(self, trainer: Any, module: Any, policy: Active, others: Mapping[str, Active]) -> Evaluation:
        """Return the evaluation of a policy, on the device and in the precision of the training.

        Args:
            trainer: the trainer.
            module: the `PreferenceModule`.
            policy: gives the policy.
            others: give the models that its divergence is measured from: `initial`, and perhaps `reference`.
        """
        data = trainer.datamodule
        packed = bool(getattr(data, "packed", False))  # since the fit began only where the policy takes packs
        rows = data.examples["val"][: self.pairs]
        total = 2 * self.samples * min(self.prompts, len(data.examples["val"])) + len(rows)  # sampled, compared, scored
        with CountedProgress("evaluation", total, what="examples", after=SILENT) as progress:
            with trainer.precision_plugin.forward_context():
                with policy() as model:
                    samples = self.sample(model, data, progress.add)
                tokenized = [sample.tokenized() for sample in samples]
                found = divergences(tokenized, policy, others, packed, progress.add)
                ours, theirs = partial(log_probs_of, policy), partial(log_probs_of, others["initial"])
                pairs = score(rows, ours, theirs, module.device, packed, progress.add)
            scores = judged(self.judge, samples)
        prompts = [tuple(sample.prompt) for sample in samples]
        figures = {"prompts": len({*prompts}), "samples": self.samples, **_distances(found, prompts)}
        figures |= {**_quality(scores, prompts), **_texts(samples), **of_pairs(module.loss, *pairs)}
        return Evaluation(samples, scores, found["initial"], figures)

    def sample(self, model: Any, data: Any, told: Callable[[int], None] | None = None) -> list[Generation]:
        """Return a model's responses to the first validation prompts; `told` as of `generate`."""
        rows = data.examples["val"][: self.prompts]
        prompts = [example.prompt for example in rows for _ in range(self.samples)]
        return generate(model, data.tokenizer, prompts, self.max_new_tokens, told=told)


def judged(judge: Reward, samples: Sequence[Generation]) -> list[float]:
    """Return a judge's scores of some samples; nan where it has none."""
    candidates = [Candidate(sample.prompt_text, sample.text) for sample in samples]
    return [float(one) for one in as_scorer(judge).score(candidates)]


def score(
    examples: Sequence[TokenizedExample],
    log_probs: LogProbs,
    initial: LogProbs,
    device: torch.device | str = "cpu",
    packed: bool = False,
    told: Callable[[int], None] | None = None,
) -> tuple[Scores, Scores]:
    """Return the scores of the chosen and of the rejected responses of some examples, against the initial policy."""
    collate = Collator(packed=packed)
    batches: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    for i in range(0, len(examples), BATCH_SIZE):
        batch = collate(examples[i : i + BATCH_SIZE]).to(device)
        rows = (batch.split(values.cpu()) for values in (log_probs(batch), batch.lengths, initial(batch)))
        chosen, rejected, _ = zip(*rows, strict=True)
        batches.append((chosen, rejected))
        if told:
            told(len(examples[i : i + BATCH_SIZE]))
    sides = (map(torch.cat, zip(*side, strict=True)) for side in zip(*batches, strict=True))
    chosen_scores, rejected_scores = (Scores(policy, tokens, start) for policy, tokens, start in sides)
    return chosen_scores, rejected_scores


def no_reference(batch: PairBatch) -> Tensor:
    """Return zeros in the place of a reference's log-probs, `(responses,)`."""
    return torch.zeros(len(batch.lengths))


def of_pairs(loss: Loss, chosen: Scores, rejected: Scores) -> dict[str, float]:
    """Return what the rows' own responses say: log-ratios to the initial policy, and the implicit reward of pairs."""
    figures: dict[str, float] = {}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if count := len(side.tokens):
            figures[f"log_ratio_{name}"] = side.log_ratios.mean().item()
            error = side.log_ratios.std().item() / count**0.5 if count > 1 else nan
            figures[f"log_ratio_{name}_standard_error"] = error
    given = preference_metrics(loss, chosen, rejected, paired=len(chosen.tokens) == len(rejected.tokens))
    if len(margins := given["rewards/margins"]):
        figures |= {"margin": margins.mean().item(), "accuracy": given["rewards/accuracies"].mean().item()}
        figures["calibration_error"] = calibration_error(margins)
    return figures


def _distances(found: Mapping[str, Divergence], prompts: list[Any]) -> dict[str, float]:
    exact = over_prompts(found["initial"].exact.tolist(), prompts)
    plain = over_prompts(found["initial"].log_ratios.tolist(), prompts)
    figures = {"kl": exact.mean, "kl_standard_error": exact.standard_error}
    figures |= {"kl_log_ratio": plain.mean, "kl_log_ratio_standard_error": plain.standard_error}
    if "reference" in found:
        figures["kl_reference"] = over_prompts(found["reference"].exact.tolist(), prompts).mean
    return figures


def _quality(scores: list[float], prompts: list[Any]) -> dict[str, Any]:
    given = [(value, prompt) for value, prompt in zip(scores, prompts, strict=True) if not isnan(value)]
    missing = {"unscored": len(scores) - len(given)} if len(given) < len(scores) else {}
    if not given:
        return missing
    found = over_prompts(*zip(*given, strict=True))
    return {"score": found.mean, "score_standard_error": found.standard_error, **missing}


def _texts(samples: Sequence[Generation]) -> dict[str, float]:
    texts = [sample.text for sample in samples]
    split = [words(text) for text in texts]
    figures = {
        "length": fmean(len(sample.response) for sample in samples),
        "repetition": fmean(map(repetition, split)),
        "distinct_1": distinct(split, 1),
        "distinct_2": distinct(split, 2),
    }
    return figures | ({"self_bleu": self_bleu(texts)} if find_spec("sacrebleu") else {})


def _holds_model(module: Any) -> bool:
    """Return whether the reference can be sampled and scored anywhere, and not on some batches alone."""
    try:
        with module.reference.active(module.policy):
            return True
    except UserError:
        return False


def log_probs_of(active: Active, batch: PairBatch) -> Tensor:
    """Return the log-prob of each response of a batch under a model that is switched on for it, `(responses,)`."""
    with active() as model, scoring(model):
        return response_log_probs(model, batch)
