"""How far a policy is from another model on the policy's own samples, in nats per response."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.data.batches import PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.head import chunk_rows
from lit_tr.policy.logprobs import logits_at, scoring

Active = Callable[[], AbstractContextManager[Any]]
"""Gives a model for the time of a `with`: `lambda: nullcontext(model)`, or `partial(reference.active, policy)`."""

BATCH_SIZE, PACK_TOKENS = 32, 2**14
"""Most responses in a batch, and most tokens in a pack."""


@dataclass(frozen=True)
class Divergence:
    """What samples of a policy say of its KL divergence from another model.

    The mean of either estimate over samples that were drawn at temperature 1 without truncation is without bias
    `KL(policy || other)` of a response of at most as many tokens as were allowed.

    Args:
        exact: sum over the positions of each response of the KL divergence of the next token's distributions, over
            the full vocabulary, `(responses,)`, in nats; never negative. It is the Rao-Blackwellised estimate of Amini
            et al. 2025 (arXiv 2504.10637), whose variance is never above that of the log-ratio.
        log_ratios: `log(policy / other)` of each response, `(responses,)`, in nats; the plain estimate, known as k1
            (http://joschu.net/blog/kl-approx.html).
        token_log_ratios: the same of each token, `(tokens,)` for each response. Times beta they are the implicit reward
            of each token (Rafailov et al. 2024, arXiv 2404.12358).
    """

    exact: Tensor
    log_ratios: Tensor
    token_log_ratios: list[Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean, with its error over prompts.

    Args:
        mean: the mean of the values.
        standard_error: that of prompts that were drawn with all their samples; nan of one prompt.
        prompts: their number.
    """

    mean: float
    standard_error: float
    prompts: int


def over_prompts(values: Sequence[float], prompts: Sequence[Any]) -> Estimate:
    """Return the mean of values, and its standard error over prompts: samples of one prompt are not independent.

    The standard error is the cluster-robust one (Liang and Zeger 1986, https://doi.org/10.1093/biomet/73.1.13) with the
    factor n / (n - 1) for n prompts; with one sample a prompt, or as many for each, the usual one of their means.

    Args:
        values: one for each sample.
        prompts: what names the prompt of each sample, such as its text or a tuple of its token ids.

    Examples:
        >>> over_prompts([1.0, 3.0, 6.0, 6.0], ["a", "a", "b", "b"])  # 2 and 6
        Estimate(mean=4.0, standard_error=2.0, prompts=2)
    """
    mean = fmean(values)
    residuals: dict[Any, float] = {}
    for value, prompt in zip(values, prompts, strict=True):
        residuals[prompt] = residuals.get(prompt, 0.0) + value - mean
    if (count := len(residuals)) < 2:
        return Estimate(mean, nan, count)
    squares = sum(one**2 for one in residuals.values())
    return Estimate(mean, sqrt(squares * count / (count - 1)) / len(values), count)


def divergences(
    samples: Sequence[TokenizedExample],
    policy: Active,
    others: Mapping[str, Active],
    packed: bool = False,
    told: Callable[[int], None] | None = None,
) -> dict[str, Divergence]:
    """Return the divergence of a policy from each of some models, on samples of the policy.

    Logits of the vocabulary are in memory for some tokens at a time. One call scores the policy once, however many
    others there are. All may be adapters on one base.

    Args:
        samples: prompts with responses that were sampled from the policy, as `chosen`.
        policy: gives the policy.
        others: give the models that it is compared with, by name.
        packed: pack the samples, which all of the models must be proven to take: one forward pass is of many samples,
            and none of the padding is computed.
        told: called with the number of samples of each batch once they are compared.

    Returns:
        By name, in the order of the samples.
    """
    rows: dict[str, list[Any]] = {name: [None] * len(samples) for name in others}
    with policy() as model:
        device, chunk = model.device, chunk_rows(_vocabulary(model), model.device)
    for indices in _batches(samples, chunk, packed):
        batch = Collator(packed)([samples[i] for i in indices]).to(device)
        for name, parts in _of_batch(batch, policy, others, chunk).items():
            for i, *row in zip(indices, *(part.split(batch.sizes) for part in parts), strict=True):
                rows[name][i] = row
        if told:
            told(len(indices))
    return {name: _divergence(found) for name, found in rows.items()}


def _divergence(rows: list[tuple[Tensor, Tensor]]) -> Divergence:
    exact, log_ratios = zip(*rows, strict=True)
    sums = [torch.stack([one.sum() for one in values]) for values in (exact, log_ratios)]
    return Divergence(sums[0], sums[1], list(log_ratios))


def _batches(samples: Sequence[TokenizedExample], chunk: int, packed: bool) -> Iterator[list[int]]:
    """Yield the samples of each batch, of about one length; the logits of a padded batch are all in memory."""
    order = sorted(range(len(samples)), key=lambda i: _length(samples[i]))
    batch: list[int] = []
    for i in order:
        longest, shortest = _length(samples[i]), min(len(samples[j].prompt) for j in [*batch, i])
        tokens, most = (longest, PACK_TOKENS) if packed else (longest - shortest + 1, chunk)
        if batch and ((len(batch) + 1) * tokens > most or len(batch) == BATCH_SIZE):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _length(sample: TokenizedExample) -> int:
    return len(sample.prompt) + sample.longest


def _vocabulary(model: Any) -> int:
    return causal_model(model).config.get_text_config(decoder=True).vocab_size


def _of_batch(batch: Any, policy: Active, others: Mapping[str, Active], chunk: int) -> dict[str, list[Tensor]]:
    """Return exact divergences and log-ratios of each token by name, `(tokens,)`, float64, on the CPU."""
    ours, theirs = _logits(policy, batch), {name: _logits(other, batch) for name, other in others.items()}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in others}
    for start in range(0, sum(batch.sizes), chunk):
        tokens = slice(start, start + chunk)
        p, taken = ours(tokens).log_softmax(dim=-1), batch.targets[tokens, None]
        for name, logits in theirs.items():
            found[name].append(_compared(p, logits(tokens).to(p.device).log_softmax(dim=-1), taken))
    return {name: [torch.cat(parts) for parts in zip(*chunks, strict=True)] for name, chunks in found.items()}


def _compared(p: Tensor, q: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return the KL divergence of some tokens' distributions and the log-ratio of the tokens that were sampled."""
    exact = F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
    log_ratios = (p.gather(1, taken) - q.gather(1, taken))[:, 0]
    return exact.double().cpu(), log_ratios.double().cpu()


def _logits(active: Active, batch: PairBatch) -> Callable[[slice], Tensor]:
    """Return a function that gives a model's logits at some tokens: a model that is switched is switched for each."""
    with active() as model, scoring(model):
        at = logits_at(model, batch.to(model.device))

    def called(tokens: slice) -> Tensor:
        with active() as model, scoring(model):
            return at(tokens)

    return called
