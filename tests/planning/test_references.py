from collections import deque
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_tr.errors import UserError
from lit_tr.planning.references import reference_bytes
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, Reference, WindowReference, alternatives

WEIGHTS = 2 * 512 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
"""Of the random Llama: embeddings and head, two layers, norms."""
BUFFERS = 2 * 4 * 4
"""Bytes of its buffers, frequencies of the positions and the same again: float32, unless a trainer casts them."""
LINEAR = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
LORA = 2 * 4 * (2 * 2 * 32 + 2 * (32 + 16) + 3 * (32 + 64))
"""Weights of an adapter of rank 4 on all linear layers."""


def held(path, reference, alpha=None, precision="32-true", device="cuda", **options):
    return reference_bytes(reference, PretrainedPolicy(path, **options), alpha, precision, device)[1]


def test_references_of_a_full_model(llama_dir):
    assert held(llama_dir, None) == 0
    assert held(llama_dir, FrozenReference()) == 4 * WEIGHTS + BUFFERS
    assert held(llama_dir, CopyReference(), 0.5) == 4 * WEIGHTS + BUFFERS
    assert held(llama_dir, CopyReference("plain", dtype="bfloat16")) == 2 * WEIGHTS + BUFFERS // 2
    assert held(llama_dir, WindowReference(), 1.0) == 0
    nf4 = held(llama_dir, CopyReference(dtype="nf4"), 1.0)
    assert nf4 == 4 * (WEIGHTS - LINEAR) + BUFFERS + LINEAR // 2 + 4 * LINEAR // 64


@pytest.mark.parametrize(("kind", "alpha", "beside"), [
    ("low_order_bits", 0.5, 2), ("master", 0.5, 4), ("plain", 0.5, 0),
    ("low_order_bits", 1.0, 0), ("master", 1.0, 0), ("master", None, 0),
])  # fmt: skip
def test_only_soft_updates_of_bfloat16_keep_an_average(llama_dir, kind, alpha, beside):
    assert held(llama_dir, CopyReference(kind), alpha, dtype="bfloat16") == (2 + beside) * WEIGHTS + BUFFERS
    assert held(llama_dir, CopyReference(kind), alpha, "bf16-true") == (2 + beside) * WEIGHTS + BUFFERS // 2


def test_what_lies_on_another_device_is_not_counted(llama_dir):
    on_cpu = CopyReference(device="cpu")
    assert held(llama_dir, on_cpu, 0.5, dtype="bfloat16") == 0
    assert held(llama_dir, on_cpu, 0.5, dtype="bfloat16", device="cpu") == 4 * WEIGHTS + BUFFERS
    master = CopyReference("master", "cpu")
    assert held(llama_dir, master, 0.5, dtype="bfloat16") == 2 * WEIGHTS + BUFFERS


def test_references_of_an_adapter(llama_dir, tmp_path):
    options = {"lora": LoRA(r=4)}
    assert held(llama_dir, FrozenReference(), **options) == 0  # the base is the initial policy
    assert held(llama_dir, AdapterReference(), 0.5, **options) == 4 * 2 * LORA  # of twice the rank
    assert held(llama_dir, AdapterReference("factors"), 0.5, **options) == 4 * LORA
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_dir), config)
    trained.save_pretrained(tmp_path / "adapter")
    assert held(llama_dir, FrozenReference(), adapter=str(tmp_path / "adapter")) == 4 * LORA


class Own(Reference):
    """Holds two copies of the policy at once, and on the CPU the policy at each of the last updates."""

    def __init__(self, updates: int = 0, device: str = "cpu") -> None:
        self.last, self.device = deque(maxlen=updates), device

    def prepare(self, policy):
        self.copies = [deepcopy(policy).requires_grad_(False) for _ in range(2)]

    def active(self, policy):
        return nullcontext(self.copies[0])

    def update(self, policy, alpha):
        self.last.append([param.detach().clone().to(self.device) for param in policy.parameters()])
        return {"norm": torch.stack([param.norm() for param in policy.parameters()]).sum().item()}


def test_a_reference_of_ones_own_is_asked(llama_dir):
    assert held(llama_dir, Own()) == 2 * (4 * WEIGHTS + BUFFERS)
    assert held(llama_dir, Own(3), 1.0) == 2 * (4 * WEIGHTS + BUFFERS)
    assert held(llama_dir, Own(3), 1.0, device="cpu") == 2 * (4 * WEIGHTS + BUFFERS) + 3 * 4 * WEIGHTS


def test_loading_takes_what_is_made_on_the_way(llama_dir):
    reference = CopyReference("plain", dtype="bfloat16")
    most, _ = reference_bytes(reference, PretrainedPolicy(llama_dir), None, "32-true", "cuda")
    assert most == 4 * WEIGHTS + BUFFERS + 2 * 512 * 32  # a float32 copy, then one weight after the other


class Comparing(Own):
    def prepare(self, policy):
        assert torch.equal(*list(policy.parameters())[:2])


def test_a_reference_that_compares_values_is_refused(llama_dir):
    with pytest.raises(UserError, match="Comparing cannot be planned: its prepare or update asks for the values"):
        held(llama_dir, Comparing())


def test_a_reference_of_hard_updates_alone_is_refused_soft_ones(llama_dir):
    with pytest.raises(UserError, match="only hard updates of all layers"):
        held(llama_dir, WindowReference(), 0.5)


def test_the_given_reference_stays_as_it_is(llama_dir):
    reference = Own()
    held(llama_dir, reference, 1.0)
    assert not hasattr(reference, "copies")


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"lora": LoRA(r=4)}])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_all_alternatives_go_with_policy_and_updates(llama_dir, options, alpha):
    kinds = alternatives(PretrainedPolicy(llama_dir, **options), soft=alpha != 1)
    sizes = {name: held(llama_dir, one, alpha, **options) for name, one in kinds.items()}
    assert len(set(sizes.values())) > 1
    assert ("Window" in sizes) == (alpha == 1 and not options.get("lora"))
