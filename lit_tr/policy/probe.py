"""Proof that a model computes packs as it computes rows one by one."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tr.data.batches import PackedBatch, PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.attention import PACKABLE
from lit_tr.policy.logprobs import (
    accepted,
    chunked_logits,
    decoder,
    scoring,
    token_log_probs,
    token_log_probs_and_kl,
    vocabulary_log_probs,
)

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 0.2}
"""Largest KL divergence for round-off at a response token, in nats.

Measured on SmolLM2-135M, on NF4 too, and a random Llama, 3 probes each: at most 5e-7 in float32 (TF32 has the round-off
of float16), 3e-4 in float16, 0.065 in bfloat16; with wrong positions or a mask that lets responses see each other 0.64
and more.
"""
MIN_TOLERANCE = 0.05
"""Least tolerance for models with less round-off, as a share of the largest.

The median of a response is at most 0.004 nats in bfloat16 on SmolLM2-135M, with NF4 and without, 4 probes each; padding
the rows changes 0.001 to 0.005 nats there, and the two rows of one pair alone by chance nothing at all.
"""
MAX_LIMIT = 8192
"""Longest window, chunk or top-k, in tokens, that is probed."""
LIMIT_NAMES = re.compile(r"^(?!max_).*(window|chunk|topk|block_size|local)")
"""Names of configured lengths beyond which a model computes differently."""
RESPONSE_LENGTHS = (5, 20, 9, 3)
"""Tokens of the chosen and the rejected responses of the probe's two pairs."""
UNCHANGED = [*range(5), *range(34, 37)]
"""Indices of the first chosen and the last rejected response's tokens, which stay when the others change."""
MARGIN = 32
"""Tokens by which a prompt exceeds the longest limit."""


def why_not_packed(model: Any, longest: int | None = None) -> str | None:
    """Return the reason why a model's batches must be padded, or None if its packs are proven.

    Up to round-off, two pairs in one pack must give the next-token distributions that the model gives with its own
    attention for the four rows one by one. Their length exceeds each sliding window, attention chunk and top-k that the
    configuration names. And other tokens in one response must not change another response's log-probs at all; if
    kernels sum in another order for other tokens (an expert gets more of them), their derivative must be 0.

    The model's modes and gradients and the global random state are restored.

    Args:
        model: a causal language model with Hugging Face's interface, with an adapter or without.
        longest: most tokens of a prompt with a response in the data, if known: a longer window never acts, and is not
            probed.
    """
    with _probing(model):
        reason = _attempt(_objection, model, longest)
        doubts = reason and _attempt(_doubts_of_padding, model)
        return f"{reason}; padded rows: {doubts}" if doubts else reason


def why_not_split(model: Any) -> str | None:
    """Return the reason why a model's logits are not those of its decoder and head one after the other, or None.

    Padded rows of a probe must get the log-probs that the model's own forward pass gives, up to round-off: some models
    scale their logits in other ways than lit_tr knows. Packs are proven with it by `why_not_packed`.

    Args:
        model: a causal language model with Hugging Face's interface, with an adapter or without.
    """
    with _probing(model):
        return _attempt(_split, model)


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), scoring(model):
        torch.manual_seed(0)  # a model that draws numbers draws the same on all ranks
        yield


def _split(model: nn.Module) -> str | None:
    batch = Collator(packed=False)(_pairs(model, MARGIN)[0]).to(causal_model(model).device)
    own, found = token_log_probs(model, batch), token_log_probs_and_kl(model, batch, chunked_logits(model, batch))
    difference = (found[:, :2] - own[:, None]).abs().mean().item()
    if difference <= TOLERANCE.get(_precision(model), max(TOLERANCE.values())):
        return None
    return f"its logits are not its head's of the last hidden states: log-probs differ by {difference:.2g} nats"


def _attempt(find: Callable[..., str | None], *args: Any) -> str | None:
    try:
        return find(*args)
    except Exception as error:  # whatever a model raises, the run goes on with padded rows
        return f"the model does not take them ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def _objection(model: nn.Module, longest: int | None) -> str | None:
    causal = causal_model(model)
    text = causal.config.get_text_config(decoder=True)
    if text._attn_implementation not in PACKABLE:
        return (
            f"packs are computed for attention {' and '.join(PACKABLE)}, and the model has {text._attn_implementation}"
        )
    if "position_ids" not in signature(decoder(causal).forward).parameters:
        return "the model does not take position_ids"
    bound = min(filter(None, (longest, getattr(text, "max_position_embeddings", None))), default=1024)
    limits = {name: value for name, value in _limits(text).items() if value < bound}  # others never act
    for name, value in limits.items():
        if value > MAX_LIMIT:
            return f"its {name} of {value} is longer than the {MAX_LIMIT} tokens that are tried, and rows may be longer"
    return _difference(model, max(min(max(limits.values(), default=0) + MARGIN, bound - max(RESPONSE_LENGTHS)), 8))


def _limits(config: Any) -> dict[str, int]:
    """Return the lengths, in tokens, that limit what a token sees, by their names in a configuration."""
    named = {name: value for name, value in config.to_dict().items() if LIMIT_NAMES.search(name)}
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # a longer row changes the frequencies of all rows of its batch
        named["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
    return {name: value for name, value in named.items() if isinstance(value, int)}


def _difference(model: nn.Module, length: int) -> str | None:
    """Return what is wrong with packs whose longest prompt has this length, or None."""
    pairs, others = _pairs(model, length)
    packed, moved = (_log_probs(model, Collator()(some)) for some in (pairs, others))
    largest = TOLERANCE.get(_precision(model), max(TOLERANCE.values()))
    change = _divergence(packed[UNCHANGED], moved[UNCHANGED]).max().item()
    if not torch.equal(packed[UNCHANGED], moved[UNCHANGED]) and (not change <= largest or _depends(model)):
        return f"other tokens in one response move the distributions of another one's, by {change:.2g} nats"
    divergence = _median(_divergence(packed, _rows(model, pairs)), RESPONSE_LENGTHS)
    tolerance = min(max(10 * _round_off(model, pairs), MIN_TOLERANCE * largest), largest)
    if divergence <= tolerance:
        return None
    return f"packs and rows one by one diverge by {divergence:.2g} nats at a token, where round-off is {tolerance:.2g}"


def _doubts_of_padding(model: nn.Module) -> str | None:
    tolerance = TOLERANCE.get(_precision(model), max(TOLERANCE.values()))
    if (divergence := _round_off(model, _pairs(model, MARGIN)[0])) <= tolerance:
        return None
    return f"diverge from rows one by one by {divergence:.2g} nats at a token"


def _precision(model: nn.Module) -> torch.dtype:
    causal = causal_model(model)
    kind = causal.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else causal.dtype


def _pairs(model: nn.Module, length: int) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
    """Return two pairs, and the same with other tokens in the first rejected and the last chosen response."""
    size = causal_model(model).config.get_text_config(decoder=True).vocab_size
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:  # special tokens lie at the ends of a vocabulary
        return torch.randint(size // 4, max(size * 3 // 4, 1), (count,), generator=draw).tolist()

    first, last = (
        TokenizedExample(ids(prompt), ids(RESPONSE_LENGTHS[i]), ids(RESPONSE_LENGTHS[i + 2]))
        for i, prompt in enumerate((1, length))
    )
    others = [replace(first, rejected=ids(RESPONSE_LENGTHS[2])), replace(last, chosen=ids(RESPONSE_LENGTHS[1]))]
    return [first, last], others


def _log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Return the log-probs of the full vocabulary at the response tokens of a batch, `(tokens, vocabulary)`."""
    batch = batch.to(causal_model(model).device)
    return vocabulary_log_probs(model, batch, torch.arange(int(batch.lengths.sum()), device=batch.lengths.device))


def _rows(model: nn.Module, pairs: Sequence[TokenizedExample]) -> Tensor:
    """Return the same by the model's own forward pass, row by row, without lit_tr's attention or torch.compile."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    with torch.compiler.set_stance("force_eager"):
        return torch.cat([_row(model, prompt, response) for prompt, response in rows])


def _row(model: nn.Module, prompt: list[int], response: Any) -> Tensor:
    count = len(response) + 1
    ids = torch.tensor([prompt + response], device=causal_model(model).device)
    logits = model(input_ids=ids, **accepted(model, use_cache=False, logits_to_keep=count)).logits
    return logits[0, -count:-1].float().log_softmax(dim=-1)


def _divergence(log_probs: Tensor, others: Tensor) -> Tensor:
    """Return the KL divergence at each token, `(tokens,)`, in nats."""
    return F.kl_div(log_probs, others, log_target=True, reduction="none").sum(dim=-1)


def _median(values: Tensor, lengths: Sequence[int]) -> float:
    """Return the largest median of a response: a router's other choice at one token does not count."""
    return max(response.median().item() for response in values.split(list(lengths)))


def _round_off(model: nn.Module, pairs: Sequence[TokenizedExample]) -> float:
    """Return the mean divergence of padded rows from the same rows one by one, in nats per token."""
    return _divergence(_log_probs(model, Collator(packed=False)(pairs)), _rows(model, pairs)).mean().item()


def _depends(model: nn.Module) -> bool:
    """Return whether the log-probs of the unchanged responses depend on the embeddings of the others."""
    batch, other = (cast(PackedBatch, Collator()(pairs)) for pairs in _pairs(model, MARGIN))
    embedded: list[Tensor] = []
    embeddings = causal_model(model).get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: embedded.append(output.requires_grad_()))
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(_log_probs(model, batch)[UNCHANGED].sum(), embedded)
    finally:
        hook.remove()
    return bool(gradient[0, (batch.input_ids != other.input_ids)[0].to(gradient.device)].any())
