import pytest
import torch

from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy, response_log_probs
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference
from tests.reference.by_hand import BATCH, moved, policy_log_probs

KINDS = {
    "copy": (CopyReference, {}),
    "adapter": (AdapterReference, {"lora": LoRA(r=4, dropout=0.3)}),
    "adapter on 4 bits": (AdapterReference, {"lora": LoRA(r=4, dropout=0.3), "quantize": "nf4"}),
}


def prepared(kind, llama_dir):
    make, options = KINDS[kind]
    policy, reference = PretrainedPolicy(llama_dir, **options).load(), make()
    reference.prepare(policy)
    return policy, reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_is_the_policy_of_before_until_a_hard_update(kind, llama_dir):
    policy, reference = prepared(kind, llama_dir)
    before = policy_log_probs(policy)
    moved(policy)
    assert torch.equal(reference.log_probs(policy, BATCH), before)
    reference.update(policy, 1.0)
    assert torch.equal(reference.log_probs(policy, BATCH), policy_log_probs(policy))
    assert not torch.allclose(before, policy_log_probs(policy))


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_leaves_no_gradient_and_the_policy_in_training(kind, llama_dir):
    policy, reference = prepared(kind, llama_dir)
    flags = [(param.requires_grad, param.grad) for param in policy.parameters()]
    log_probs = reference.log_probs(policy, BATCH)
    assert not log_probs.requires_grad
    assert [(param.requires_grad, param.grad) for param in policy.parameters()] == flags
    assert all(module.training for module in policy.modules())
    assert not any(value.requires_grad for value in reference.tensors(policy))


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=4)}, {"lora": LoRA(r=4), "quantize": "nf4"}])
def test_a_frozen_reference_stays_the_start(llama_dir, options):
    policy, reference = PretrainedPolicy(llama_dir, **options).load(), FrozenReference()
    reference.prepare(policy)
    before = policy_log_probs(policy)
    moved(policy)
    torch.testing.assert_close(reference.log_probs(policy, BATCH), before)
    with pytest.raises(UserError, match="does not move"):
        reference.update(policy, 1.0)


@pytest.mark.parametrize("kind", [FrozenReference, AdapterReference])
def test_a_policy_from_a_sft_adapter_is_its_own_reference(llama_dir, tmp_path, kind):
    moved(PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()).save_pretrained(tmp_path)
    policy, reference = PretrainedPolicy(llama_dir, adapter=str(tmp_path)).load(), kind()
    reference.prepare(policy)
    sft = policy_log_probs(policy)
    moved(policy)
    assert torch.equal(reference.log_probs(policy, BATCH), sft)
    bare = PretrainedPolicy(llama_dir).load()
    assert not torch.allclose(policy_log_probs(bare), sft)


def test_the_initial_policy_and_the_reference_live_on_one_base(llama_dir, tmp_path):
    moved(PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()).save_pretrained(tmp_path)
    policy = PretrainedPolicy(llama_dir, adapter=str(tmp_path)).load()
    reference, initial = AdapterReference(), FrozenReference()
    reference.prepare(policy)
    initial.prepare(policy)
    start = policy_log_probs(policy)
    moved(policy)
    reference.update(policy, 1.0)
    assert torch.equal(initial.log_probs(policy, BATCH), start)
    assert torch.equal(reference.log_probs(policy, BATCH), policy_log_probs(policy))


def test_autocast_keeps_no_cast_without_gradient(llama_dir):
    """Scoring by the policy itself, then training it in the same autocast context, as a training step does."""
    policy = PretrainedPolicy(llama_dir).load()
    with torch.autocast("cpu", torch.bfloat16):
        policy_log_probs(policy)
        response_log_probs(policy, BATCH).sum().backward()
    assert all(param.grad is not None for param in policy.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdapterReference, {}, "needs a policy with an adapter: set model.policy.lora"),
        (CopyReference, {"lora": LoRA(r=4)}, "take AdapterReference"),
    ],
)
def test_a_reference_of_the_wrong_kind_is_refused(llama_dir, kind, options, message):
    with pytest.raises(UserError, match=message):
        kind().prepare(PretrainedPolicy(llama_dir, **options).load())
