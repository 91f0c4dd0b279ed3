from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_tr.policy import head


class Config(SimpleNamespace):
    def get_text_config(self, decoder):
        return self


class Causal(nn.Module):
    """A model of which the head alone is asked for."""

    def __init__(self, bias=False, head=None, dtype=torch.float64, **config):
        super().__init__()
        self.config = Config(vocab_size=11, **config)
        self.lm_head = head or nn.Linear(5, 11, bias=bias, dtype=dtype)

    def get_output_embeddings(self):
        return self.lm_head


class Other(nn.Linear):
    """No plain linear layer, like one with an adapter: it goes the way of any other head."""


def dense(causal, hidden, targets):
    values = hidden @ causal.lm_head.weight.T + (0 if causal.lm_head.bias is None else causal.lm_head.bias)
    values = values.float() * getattr(causal.config, "logit_scale", 1) / getattr(causal.config, "logits_scaling", 1)
    if cap := getattr(causal.config, "final_logit_softcapping", None):
        values = cap * torch.tanh(values / cap)
    return values.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def gradients(values, causal, hidden, weights):
    return torch.autograd.grad((values * weights).sum(), [hidden, *causal.parameters()])


@pytest.fixture(autouse=True)
def _three_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 3 * 11)


@pytest.mark.parametrize("kind", [nn.Linear, Other])
@pytest.mark.parametrize(
    "config", [{}, {"logit_scale": 0.3}, {"logits_scaling": 4.0}, {"final_logit_softcapping": 2.0}, {"bias": True}]
)
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_values_and_gradients_are_those_of_all_logits_at_once(kind, config, tokens):
    torch.manual_seed(tokens)
    bias = config.get("bias", False)
    causal = Causal(head=kind(5, 11, bias=bias, dtype=torch.float64), **config)
    hidden = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(11, (tokens,)), torch.randn(tokens)
    ours, theirs = head.log_probs(causal, hidden, targets), dense(causal, hidden, targets)
    torch.testing.assert_close(ours, theirs)
    both = (gradients(values, causal, hidden, weights) for values in (ours, theirs))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [nn.Linear, Other])
@pytest.mark.parametrize("config", [{}, {"logits_scaling": 4.0}, {"final_logit_softcapping": 2.0}, {"bias": True}])
@pytest.mark.parametrize("tokens", [1, 8])
def test_log_probs_and_divergences_are_those_of_all_logits_at_once(kind, config, tokens):
    torch.manual_seed(tokens)
    causal = Causal(head=kind(5, 11, bias=config.get("bias", False), dtype=torch.float64), **config)
    hidden = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    logits, targets, weights = torch.randn(tokens, 11), torch.randint(11, (tokens,)), torch.randn(tokens, 3)
    ours = head.log_probs_and_kl(causal, hidden, targets, lambda at: logits[at])
    p = torch.stack([dense(causal, hidden, torch.full_like(targets, token)) for token in range(11)], dim=1)
    q = logits.log_softmax(-1)
    taken = [one.gather(1, targets[:, None])[:, 0] for one in (p, q)]
    theirs = torch.stack([*taken, (q.exp() * (q - p)).sum(-1)], dim=1)
    torch.testing.assert_close(ours, theirs)
    both = (gradients(values, causal, hidden, weights) for values in (ours, theirs))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    causal = Causal().requires_grad_(False)
    hidden = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    head.log_probs(causal, hidden, torch.arange(4)).sum().backward()
    assert causal.lm_head.weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        values = head.log_probs(Causal(), torch.randn(4, 5, dtype=torch.float64), torch.arange(4))
    assert not values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_precision_and_returns_that_of_the_weights(dtype):
    torch.manual_seed(0)
    causal, other = Causal(dtype=dtype), Causal(head=Other(5, 11, bias=False, dtype=dtype))
    other.load_state_dict(causal.state_dict())
    hidden, targets = torch.randn(8, 5, dtype=dtype), torch.randint(11, (8,))
    found = []
    for one in (causal, other):
        given = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = head.log_probs(one, given, targets)
        values.sum().backward()
        found.append((values, given.grad, one.lm_head.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_logits_in_memory_are_bounded_by_the_device():
    assert head.chunk_rows(11, torch.device("cpu")) == 3
    assert head.chunk_rows(10**9, torch.device("cpu")) == 1
    assert head.chunk_rows(128_000, torch.device("cuda")) == 1048
