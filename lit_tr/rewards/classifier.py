"""A trained reward model as a sequence classifier of transformers."""

from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lit_tr.errors import UserError
from lit_tr.policy.logprobs import decoder

HEAD = "reward_head.weight"
"""Name of the head in the state of a `RewardModule`."""


def empty_classifier(causal: Any) -> Any:
    """Return the sequence classifier with one output of a kind of causal language model, on the meta device.

    Raises:
        UserError: transformers has none whose head is a matrix on the last hidden state.
    """
    config, model = deepcopy(decoder(causal).config), None
    config.num_labels = 1
    with suppress(ValueError), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    head = getattr(model, "score", None)
    if type(head) is not nn.Linear or head.bias is not None or head.in_features != config.hidden_size:
        raise UserError(
            f"{type(causal).__name__}: transformers has no sequence classifier of such a model with a linear head, "
            "so no reward model could be saved: begin with another kind of model, such as Llama, Qwen or Gemma 3"
        )
    return model


def sequence_classifier(causal: Any, weight: Tensor, tokenizer: Any) -> PreTrainedModel:
    """Return the sequence classifier of a causal language model whose one output is the trained head's reward.

    A classifier of transformers scores the last token that is not padding, so padding must not be what ends a response:
    a tokenizer whose padding is its end token gets another one, a new one if it has no other special token. One without
    a chat template gets one that writes texts as they are trained on: prompt, response, end token.

    Args:
        causal: the language model, which must not be used after.
        weight: the head, `(1, hidden)`.
        tokenizer: its tokenizer, which is changed.

    Raises:
        UserError: transformers has no such classifier.
    """
    model = empty_classifier(causal)
    setattr(model, model.base_model_prefix, decoder(causal))
    model.score.weight = nn.Parameter(weight)
    _lay_out(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _lay_out(tokenizer: Any) -> None:
    """Let a tokenizer have padding that ends no response, and a template."""
    end = tokenizer.eos_token
    if tokenizer.pad_token in (None, end):
        others = (one for one in (tokenizer.unk_token, tokenizer.bos_token) if one not in (None, end))
        tokenizer.add_special_tokens({"pad_token": next(others, "<|pad|>")})
    if not tokenizer.chat_template:
        begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        start = tokenizer.bos_token if begins else ""
        tokenizer.chat_template = start + "{% for m in messages %}{{ m['content'] }}{% endfor %}" + end
