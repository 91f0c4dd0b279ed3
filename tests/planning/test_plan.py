import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig

from lit_tr.data import Collator
from lit_tr.errors import UserError
from lit_tr.planning.dry_run import Step, optimizer_costs
from lit_tr.planning.plan import Lengths, Memory, Plan, Run, parse_bytes
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, WindowReference

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
PUBLISHED = {
    "Llama 3 8B": (
        LlamaConfig(**LLAMA, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
        8_030_261_248,
    ),
    "Llama 3 70B": (
        LlamaConfig(**LLAMA, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
        70_553_706_496,
    ),
    "Pythia 12B": (
        GPTNeoXConfig(
            vocab_size=50688, hidden_size=5120, intermediate_size=20480, num_hidden_layers=36, num_attention_heads=40
        ),
        11_846_072_320,
    ),
}


def plan_of(path, **options):
    names = ("alpha", "precision", "devices", "sharded", "optimizer", "cpu", "needs_kl")
    run = {name: options.pop(name) for name in names if name in options}
    return Plan(Run(PretrainedPolicy(path, **options), **run))


@pytest.fixture
def bare(tmp_path, llama_dir):
    """The configuration of the random Llama, in a folder without weights."""
    LlamaConfig.from_pretrained(llama_dir).save_pretrained(tmp_path / "bare")
    return str(tmp_path / "bare")


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_published_models(name, tmp_path):
    config, parameters = PUBLISHED[name]
    config.save_pretrained(tmp_path)
    plan = plan_of(str(tmp_path), dtype="bfloat16")
    assert plan.parameters == parameters
    assert plan.weights == pytest.approx(2 * parameters, rel=1e-4)  # and the buffers of the positions


def test_four_bits_of_llama_8b(tmp_path):
    PUBLISHED["Llama 3 8B"][0].save_pretrained(tmp_path)
    plan = plan_of(str(tmp_path), dtype="bfloat16", quantize="nf4", lora=LoRA(r=16))
    ends = 2 * 128256 * 4096  # embeddings and output head
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    lora = 32 * 16 * (2 * 2 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    held = plan.between_steps(AdapterReference(), FrozenReference())
    assert held.weights == pytest.approx(2 * ends + linear * (0.5 + 1 / 64 + 4 / 64 / 256), rel=1e-3)
    assert held.adapters == 4 * lora  # in float32, as PEFT trains them
    assert held.optimizer == 8 * lora
    assert held.reference == 8 * lora  # of twice the rank
    assert held.initial == 0  # the new adapter switched off
    sharded = plan_of(
        str(tmp_path), dtype="bfloat16", quantize="nf4", lora=LoRA(r=16), devices=4, sharded=True
    ).between_steps(AdapterReference())
    scales = linear * (1 / 64 + 4 / 64 / 256)  # of 64 weights, and theirs: not sharded
    assert sharded.weights == pytest.approx((held.weights - scales) / 4 + scales, rel=1e-3)


def test_weights_in_the_trainers_precision(bare):
    assert plan_of(bare, precision="bf16-true").weights == pytest.approx(plan_of(bare).weights / 2, rel=1e-2)


def test_devices_shard_or_copy(bare):
    alone, copied, sharded = (
        plan_of(bare, devices=devices, sharded=sharded) for devices, sharded in ((1, False), (4, False), (4, True))
    )
    both = CopyReference(), FrozenReference()
    one, copy, shard = (plan.between_steps(*both) for plan in (alone, copied, sharded))
    assert one.initial == one.weights
    assert copy == Memory(**{**vars(one), "buckets": alone.trained})
    assert shard.weights == -(-one.weights // 4)
    assert shard.optimizer == -(-one.optimizer // 4)
    assert 0 < shard.buckets < 2 * one.weights
    assert sharded.while_loading(*both) == 2 * one.weights  # the first copy has left host memory
    assert sharded.while_loading(CopyReference()) == 2 * one.weights
    assert sharded.while_loading(WindowReference()) == one.weights


@pytest.mark.parametrize(
    ("make", "state"),
    [(torch.optim.AdamW, 2.0), (torch.optim.SGD, 0.0), (lambda params: torch.optim.SGD(params, momentum=0.9), 1.0)],
)
def test_an_optimizer_is_asked_what_it_holds(make, state):
    assert optimizer_costs(make, foreach=False)[0] == state


def test_the_peak_is_in_the_backward_pass_or_in_the_step(bare):
    plan = plan_of(bare)
    held = Memory(weights=10)
    wide = Step(activations=10**9, logits=5, gradients=3, forward=0, flops=0)
    assert plan.at_peak(held, wide).total == 10 + 10**9 + 5 + 3
    narrow = plan.at_peak(held, Step(activations=1, logits=0, gradients=0, forward=0, flops=0))
    assert narrow.gradients == plan.trained


def test_a_step_computes_what_a_llama_needs(bare):
    plan = plan_of(bare, cpu=True)
    tokens, responses = 2 * (8 + 2 * 8), 2 * 2 * 8
    step = plan.step(Collator()(Lengths(8, 8).examples(2)))
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # weights of two layers
    attention = 2 * 2 * (4 * 24 * 24 * 32)  # layers, groups
    forward = 2 * (linear * tokens + 512 * 32 * responses) + attention
    assert step.forward == pytest.approx(forward, rel=1e-3)  # angles of rotations: some releases multiply matrices
    # the backward pass: twice each product, and the logits once more
    again = 2 * 512 * 32 * responses
    assert step.flops == pytest.approx(3 * step.forward + again + attention / 2, rel=0.01)


@pytest.mark.parametrize("packed", [True, False])
def test_divergences_take_the_head_of_a_reference_once_more_each_way(bare, packed):
    batch = Collator(packed)(Lengths(8, 8).examples(2))
    plain, both = (plan_of(bare, cpu=True, needs_kl=kl).step(batch) for kl in (False, True))
    reference = 2 * 512 * 32 * 2 * 2 * 8
    again = 0 if packed else reference  # of padded rows the policy's logits are made again, too
    assert both.forward - plain.forward == reference
    assert both.flops - plain.flops == 2 * reference + again
    assert both.logits > plain.logits


def test_checkpointing_takes_less_memory_and_more_time(bare):
    batch = Collator()(Lengths(40, 40).examples(4))
    plain, again = (plan_of(bare, gradient_checkpointing=on).step(batch) for on in (False, True))
    assert again.peak < plain.peak
    assert again.flops > plain.flops


def test_selective_checkpointing_takes_less_memory_and_no_more_products(tmp_path):
    LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    batch = Collator()(Lengths(40, 40).examples(16))
    plain, selective, whole = (
        plan_of(str(tmp_path), gradient_checkpointing=on).step(batch) for on in (False, "selective", True)
    )
    assert whole.peak < selective.peak < plain.peak
    assert selective.flops == plain.flops < whole.flops


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=4), "quantize": "nf4"}])
def test_the_largest_pack_fits_and_a_larger_one_does_not(bare, options):
    plan = plan_of(bare, **options)
    held, lengths, collator = plan.between_steps(FrozenReference()), Lengths(20, 200), Collator()
    most = plan.largest_pack(held, lengths, collator, 50_000_000)

    def peak(tokens):
        return plan.at_peak(held, plan.step(collator(lengths.pack(tokens, collator)))).total

    assert peak(most) <= 50_000_000 < peak(int(most * 1.05))
    assert plan.largest_pack(held, lengths, collator, 1000) == 0


def test_a_pack_is_filled():
    collator = Collator()
    for tokens in (150, 300, 1000):
        filled = sum(map(collator.tokens, Lengths(10, 50).pack(tokens, collator)))
        assert tokens - 2 <= filled <= tokens


@pytest.mark.parametrize(("text", "size"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("1.5G", 1_500_000_000)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_what_is_no_size_is_refused():
    with pytest.raises(UserError, match="80GiB"):
        parse_bytes("eighty")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match="no configuration of a causal language model"):
        plan_of(str(tmp_path))
