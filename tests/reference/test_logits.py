"""The KL divergence of references from the policy, in chunks, against all logits of each row at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.losses import TDPO1
from lit_tr.policy import LoRA, PretrainedPolicy, head
from lit_tr.policy.logprobs import scoring
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference
from lit_tr.scoring import Scorer
from tests.reference.by_hand import moved

PAIRS = [
    TokenizedExample([5, 17], [300, 41, 7, 0], [8, 0]),
    TokenizedExample(
        [9, 11, 12, 40], [3, 0], [77, 5, 6, 7, 8, 0], rejected_scored=[True, False, False, True, True, True]
    ),
]
ON_THE_HEAD = LoRA(r=4, targets=["q_proj", "lm_head"])
KINDS = {
    "copy": ({}, CopyReference),
    "copy in bfloat16, on a device": ({}, lambda: CopyReference(dtype="bfloat16", device="cpu")),
    "copy in 4 bits": ({}, lambda: CopyReference(dtype="nf4")),
    "with gradient checkpointing": ({"gradient_checkpointing": True}, CopyReference),
    "adapter": ({"lora": LoRA(r=4)}, AdapterReference),
    "adapter on the head": ({"lora": ON_THE_HEAD}, AdapterReference),
    "base under an adapter on the head": ({"lora": ON_THE_HEAD}, FrozenReference),
    "adapter on 4 bits": ({"lora": LoRA(r=4), "quantize": "nf4"}, AdapterReference),
}


@pytest.fixture(autouse=True)
def _five_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 2 * 5 * 512)


def prepared(llama_dir, kind):
    options, make = KINDS[kind]
    torch.manual_seed(0)
    policy, reference = PretrainedPolicy(llama_dir, **options).load(), make()
    reference.prepare(policy)
    return moved(policy), reference


def scores(policy, reference, packed):
    """What a loss gets of the chosen and the rejected responses."""
    batch = Collator(packed=packed)(PAIRS)
    scorer = Scorer(TDPO1())
    chosen, rejected, _ = scorer.scores(batch, *scorer._log_probs(policy, reference, batch))
    return chosen, rejected


def dense(policy, reference):
    """The same of each row by itself by the models' own forward passes, in float64: log-ratios and KL, `(4, 2)`."""
    sides = ([(one.prompt, *one.masked[side]) for one in PAIRS] for side in (0, 1))
    return torch.stack([_row(policy, reference, *row) for side in sides for row in side])


def _row(policy, reference, prompt, response, scored):
    ids = torch.tensor([prompt + response])
    with reference.active(policy) as model, scoring(model):
        q = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    p = policy(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    kept = torch.tensor(scored or [True] * len(response))
    taken = torch.tensor(response)[:, None]
    log_ratio = (p.gather(1, taken) - q.gather(1, taken))[kept].sum()
    return torch.stack([log_ratio, (q.exp() * (q - p)).sum(-1)[kept].sum()])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_explicit_logits(llama_dir, kind, packed):
    policy, reference = prepared(llama_dir, kind)
    trained = [param for param in policy.parameters() if param.requires_grad]
    found = torch.cat([torch.stack([one.log_ratios, one.kl], dim=1) for one in scores(policy, reference, packed)])
    expected, weights = dense(policy, reference), torch.linspace(-1, 2, 8).view(4, 2)
    assert (expected[:, 1] > 0.01).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)
    ours, theirs = (torch.autograd.grad((one * weights).sum(), trained) for one in (found, expected))
    scale = max(gradient.abs().max() for gradient in theirs).item()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * scale)
    assert all(module.training for module in policy.modules())


def test_a_reference_that_moves_is_compared_as_it_is_now(llama_dir):
    policy, reference = prepared(llama_dir, "copy")
    before = dense(policy, reference)
    reference.update(policy, 0.5)
    chosen, rejected = scores(policy, reference, packed=True)
    after = dense(policy, reference)
    assert (after[:, 1] < before[:, 1]).all()
    torch.testing.assert_close(torch.cat([chosen.kl, rejected.kl]).double(), after[:, 1], rtol=1e-5, atol=1e-5)
    reference.update(policy, 1.0)
    assert scores(policy, reference, packed=True)[0].kl.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["copy", "adapter on the head"])
def test_logits_are_made_again_in_the_precision_of_the_forward_pass_without_dropout(llama_dir, kind):
    policy, reference = prepared(llama_dir, kind)
    batch = Collator()(PAIRS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        at = reference.logits(policy, batch)
        first = at(slice(2, 7))
    assert torch.equal(at(slice(2, 7)), first)  # autocast is over
    assert not torch.equal(reference.logits(policy, batch)(slice(2, 7)), first)
    assert first.dtype == torch.float32


def test_autocast_comes_near_the_dense_values(llama_dir):
    policy, reference = prepared(llama_dir, "copy")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, rejected = scores(policy, reference, packed=True)
    kl = torch.cat([chosen.kl, rejected.kl])
    torch.testing.assert_close(kl.double(), dense(policy, reference)[:, 1], rtol=0.1, atol=0.05)
    kl.sum().backward()
    gradient = policy.lm_head.weight.grad.clone()
    policy.zero_grad()
    dense(policy, reference)[:, 1].sum().backward()
    assert torch.cosine_similarity(gradient.flatten(), policy.lm_head.weight.grad.flatten(), dim=0) > 0.99


def test_the_kl_of_an_evaluation_has_no_gradient(llama_dir):
    policy, reference = prepared(llama_dir, "adapter on the head")
    with torch.no_grad():
        chosen, _ = scores(policy, reference, packed=False)
    assert not chosen.kl.requires_grad


class Widest(TorchDispatchMode):
    """The most rows of logits in a tensor."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (512,) and not func.is_view:
            self.rows = max(self.rows, out.numel() // 512)
        return out


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["copy", "adapter on the head"])
def test_logits_of_few_tokens_are_in_memory_at_a_time(llama_dir, kind, packed):
    policy, reference = prepared(llama_dir, kind)
    scorer, long = Scorer(TDPO1()), [TokenizedExample([5], [300] * 60, [8] * 70)]
    scorer._splits = True  # the probe holds all logits of its rows
    batch = Collator(packed=packed)(long)
    with Widest() as seen:
        *_, kl = scorer._log_probs(policy, reference, batch)
        kl.sum().backward()
    assert seen.rows == 5
