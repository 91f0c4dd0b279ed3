"""Compiled layers: what stays compiled, and what is said of the rest. Traced as for a GPU, run by torch's eager."""

import pytest
import torch
from torch._dynamo.utils import counters

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy import LoRA, PretrainedPolicy, compiled, loading
from lit_tr.policy.adapters import adapter_parameters, adapter_switched, add_adapter_copy
from lit_tr.policy.logprobs import response_log_probs, scoring


@pytest.fixture(autouse=True)
def traced_anew(monkeypatch):
    torch._dynamo.reset()
    compiled.fallbacks()
    given = compiled.options
    monkeypatch.setattr(loading, "options", lambda: {**given(), "backend": "eager"})
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def batch(pairs):
    ids = torch.randint(3, 500, (100 * pairs,), generator=torch.Generator().manual_seed(pairs)).tolist()
    return Collator()(
        [
            TokenizedExample(ids[: 20 + i], ids[50 : 59 + i], ids[70 : 75 + 2 * i])
            for i, ids in enumerate(ids[100 * i :] for i in range(pairs))
        ]
    )


def step(policy, pairs):
    """Score by the reference, the initial policy and the policy; return the policy's, and graphs after each."""
    counts = []
    for name in ("reference", None):
        with adapter_switched(policy, name) as other, scoring(other):
            response_log_probs(other, batch(pairs))
        counts.append(graphs())
    log_probs = response_log_probs(policy, batch(pairs))
    log_probs.sum().backward()
    return log_probs.detach(), [*counts, graphs()]


@pytest.mark.slow
def test_a_4bit_policy_with_checkpointed_layers_and_switched_adapters_stays_compiled(llama_dir):
    options = {"quantize": "nf4", "lora": LoRA(r=4), "gradient_checkpointing": True}
    policy, plain = (PretrainedPolicy(llama_dir, **options, compile=compile).load() for compile in (True, False))
    for one in (policy, plain):
        torch.manual_seed(0)
        for param in adapter_parameters(one).values():
            param.data.normal_(std=0.1)
        add_adapter_copy(one, "reference")
    (ours, counts), (theirs, _) = step(policy, 2), step(plain, 2)
    torch.testing.assert_close(ours, theirs)
    for param, other in zip(policy.parameters(), plain.parameters(), strict=True):
        assert (param.grad is None) == (other.grad is None)
        if param.grad is not None:
            torch.testing.assert_close(param.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert 0 < counts[0] < counts[1] < counts[2]  # the pass with gradients is compiled too
    for pairs in (3, 1):
        assert step(policy, pairs)[1][2] == counts[2]  # of whatever size
    assert compiled.fallbacks() is None


def test_what_passes_the_limit_is_named_once(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "LIMIT", 2)

    def count_letters(tensor, text):
        return tensor * len(text)

    with torch._dynamo.config.patch(recompile_limit=2):
        function = torch.compile(count_letters, **compiled.options(), backend="eager")
        assert [function(torch.ones(()), "x" * i).item() for i in range(2)] == [0, 1]
        assert compiled.fallbacks() is None
        assert [function(torch.ones(()), "x" * i).item() for i in range(5)] == [0, 1, 2, 3, 4]
    said = compiled.fallbacks()
    assert said.startswith("'count_letters' (")
    assert "test_compiled.py" in said
    assert "more than 2 variants" in said
    assert compiled.fallbacks() is None
    assert not [one for one in caplog.records if one.levelname == "WARNING"]  # torch's own lines
