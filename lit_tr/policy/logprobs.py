"""Log-probs of the responses of a batch under a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tr.data.batches import PackedBatch, PairBatch
from lit_tr.policy.adapters import causal_model, has_adapter
from lit_tr.policy.attention import placeholder_mask
from lit_tr.policy.head import log_probs, log_probs_and_kl, logits
from lit_tr.policy.modules import modules_within
from lit_tr.policy.sharding import gathers, is_sharded


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off, and restore the mode of each module."""
    trained = [module for module in (model, *modules_within(model)) if module.training]
    try:
        for module in trained:
            vars(module)["training"] = False
        with torch.no_grad():
            yield
    finally:
        for module in trained:
            vars(module)["training"] = True
        # autocast caches its casts; those made without gradient would cut the gradient of a later forward pass
        torch.clear_autocast_cache()


@gathers
def token_log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Return the log-prob of each scored token, response after response, `(scored tokens,)`, float32, in nats.

    Args:
        model: a causal language model of Hugging Face's interface; for a packed batch one that passes `why_not_packed`.
        batch: prompts and responses.
    """
    if isinstance(batch, PackedBatch):
        causal = causal_model(model)
        return log_probs(causal, _before(causal, batch), batch.targets)
    logits, targets = _padded_logits(model, batch)
    return -F.cross_entropy(logits, targets, reduction="none")


@gathers
def token_log_probs_and_kl(model: nn.Module, batch: Any, reference: Callable[[slice], Tensor]) -> Tensor:
    """Return log-probs of each scored token under a model and a reference, and the KL divergence of the reference.

    Logits are made some tokens at a time, of a padded batch too.

    Args:
        model: one that passes `why_not_split` for a padded batch, and `why_not_packed` for a packed one.
        batch: prompts and responses.
        reference: gives the reference's logits at a slice of the scored tokens, `(tokens, vocabulary)`, as
            `chunked_logits` does.

    Returns:
        `(scored tokens, 3)`, float32, in nats: the log-prob of each token; that under the reference; and the divergence
        of the distributions that they are from, `KL(reference || model)`.
    """
    causal = causal_model(model)
    return log_probs_and_kl(causal, _before(causal, batch), batch.targets, reference)


@gathers
def chunked_logits(model: nn.Module, batch: PairBatch) -> Callable[[slice], Tensor]:
    """Return a function from a slice of the scored tokens to the logits before them, `(tokens, vocabulary)`, float32.

    Only hidden states are held, and a call makes the logits of its tokens: a model whose adapter was switched must be
    switched again for it. Of a sharded model without an adapter a copy of the gathered head is held; with one the
    weights must be gathered for each call.

    Args:
        model: as for `token_log_probs_and_kl`.
        batch: prompts and responses.
    """
    causal = causal_model(model)
    hidden, output = _before(causal, batch), causal.get_output_embeddings()
    if is_sharded(model) and not has_adapter(model):
        output = deepcopy(output)
    return lambda tokens: logits(causal, hidden[tokens], output)


def response_log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Return the log-prob of each response, `(responses,)`, float32, in nats summed over its scored tokens."""
    return sum_by_response(batch, token_log_probs(model, batch))


def sum_by_response(batch: PairBatch, values: Tensor) -> Tensor:
    """Return the sum of the values of the scored tokens of each response, `(responses,)`."""
    # a check of the lengths would wait for the device
    sums = torch.segment_reduce(values.double(), "sum", lengths=batch.lengths, unsafe=True)
    return sums.to(values.dtype)


@gathers
def last_hidden(model: nn.Module, batch: Any) -> Tensor:
    """Return the decoder's last hidden state at the last token of each response, `(responses, hidden)`.

    Args:
        model: a causal language model of Hugging Face's interface; for a packed batch one that passes `why_not_packed`.
        batch: prompts and responses.
    """
    return _hidden(causal_model(model), batch).index_select(0, batch.ends)


@gathers
def vocabulary_log_probs(model: nn.Module, batch: PairBatch, tokens: Tensor) -> Tensor:
    """Return the log-probs of the full vocabulary at some response tokens, `(tokens, vocabulary)`, float32.

    Args:
        model: as for `response_log_probs`.
        batch: prompts and responses.
        tokens: indices among the scored tokens, response after response, `(tokens,)`.
    """
    if isinstance(batch, PackedBatch):
        causal = causal_model(model)
        return logits(causal, _hidden(causal, batch)[batch.predictors[tokens]]).log_softmax(dim=-1)
    return _padded_logits(model, batch)[0][tokens].log_softmax(dim=-1)


def logits_at(model: nn.Module, batch: PairBatch) -> Callable[[slice], Tensor]:
    """Return a function from a slice of the scored tokens to the logits before them, `(tokens, vocabulary)`, float32.

    Of a pack only hidden states are held, and a call makes the logits of its tokens: a model whose adapter was switched
    must be switched again for it. Of a padded batch all logits are held. The weights must not be sharded.

    Args:
        model: as for `response_log_probs`.
        batch: prompts and responses.
    """
    if isinstance(batch, PackedBatch):
        return chunked_logits(model, batch)
    return _padded_logits(model, batch)[0].__getitem__


def _padded_logits(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the logits before each response token, `(response tokens, vocabulary)`, and the tokens."""
    columns, tokens = batch.columns, batch.input_ids.shape[1]
    options = accepted(model, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=columns)
    logits = model(input_ids=batch.input_ids, **options).logits
    if "logits_to_keep" not in options:
        logits = logits[:, columns]
    rows, at = batch.predictors // tokens, torch.searchsorted(columns, batch.predictors % tokens)
    return logits[rows, at].float(), batch.targets


def accepted(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return the options that a causal language model's forward takes by name."""
    taken = signature(causal_model(model).forward).parameters
    return {name: value for name, value in options.items() if name in taken}


def decoder(causal: Any) -> Any:
    """Return the decoder of a causal language model: the model without its head."""
    # Llama 4 has no attribute of the name of its base_model_prefix
    return causal.model if causal.base_model is causal else causal.base_model


def _before(causal: Any, batch: Any) -> Tensor:
    """Return the last hidden states that predict the scored tokens, `(scored tokens, hidden)`."""
    return _hidden(causal, batch).index_select(0, batch.predictors)


def _hidden(causal: Any, batch: Any) -> Tensor:
    """Return the last hidden states of all tokens, row after row, `(tokens, hidden)`."""
    options: dict[str, Any] = {"use_cache": False}
    if isinstance(batch, PackedBatch):
        options |= {"position_ids": batch.packing.positions[None], "packing": batch.packing}
        options["attention_mask"] = placeholder_mask(batch.input_ids)
    else:
        options["attention_mask"] = batch.attention_mask
    output = decoder(causal)(input_ids=batch.input_ids, **options)
    return output.last_hidden_state.flatten(0, 1)
