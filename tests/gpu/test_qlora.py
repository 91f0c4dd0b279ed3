"""A QLoRA run: resumed, compiled, and what its reference updates write."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import POLICY_ADAPTER, lora_factors
from lit_tr.policy.logprobs import response_log_probs, scoring
from lit_tr.policy.probe import why_not_packed
from lit_tr.reference import AdapterReference

ALPHA = 0.6


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory, tokenizer):
    """Folder of a random Llama with heads of a size that FlexAttention takes."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    size = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(**size, **special, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        self.values.append(outputs["loss"].item())


def fit(path, device, *callbacks, steps=4, ckpt_path=None, **policy):
    """Train, with an update at each step; return the module and its losses."""
    torch.manual_seed(0)
    module = PreferenceModule(
        PretrainedPolicy(path, dtype="bfloat16", quantize="nf4", lora=LoRA(), **policy),
        AdapterReference(),
        DPO(beta=0.5),
        optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3),
        log_initial=False,
    )
    losses = Losses()
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision="bf16-mixed",
        max_steps=steps,
        callbacks=[SoftReferenceUpdate(alpha=ALPHA, every_n_steps=1), losses, *callbacks],
        enable_checkpointing=bool(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PreferenceDataModule(path, SyntheticPairs(32), batch_size=4, seed=3), ckpt_path=ckpt_path)
    module.policy.to(device)
    assert why_not_packed(module.policy) is None
    return module, losses.values


def adapters(module):
    return {name: param.detach().cpu() for name, param in module.policy.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("checkpointing", [True, "selective", False], ids=["all", "selective", "none"])
def test_a_resumed_run_ends_in_the_same_bits(checkpointing, llama_dir, tmp_path, device, record):
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole, losses = fit(llama_dir, device, saved, gradient_checkpointing=checkpointing)
    resumed, others = fit(llama_dir, device, ckpt_path=tmp_path / "step=2.ckpt", gradient_checkpointing=checkpointing)
    ours, theirs = adapters(resumed), adapters(whole)
    assert ours.keys() == theirs.keys()
    record(largest_difference=max(float((ours[name] - theirs[name]).abs().max()) for name in ours))
    assert others == losses[2:]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def dense(factors):
    return factors.scaling * factors.b.double() @ factors.a.double()


def test_a_soft_update_is_the_average_of_the_weights(llama_dir, device, record):
    module, _ = fit(llama_dir, device)
    policy, reference = module.policy, module.reference
    for name, param in policy.named_parameters():
        if "lora_" in name:
            param.data.normal_(std=0.1)  # more than the reference's rank can hold of both
    before = lora_factors(policy, POLICY_ADAPTER, reference.adapter)
    wanted = {name: ALPHA * dense(ours) + (1 - ALPHA) * dense(theirs) for name, (ours, theirs) in before.items()}
    said = float(reference.update(policy, ALPHA)["relative_error"])
    after = {name: dense(one) for name, (one,) in lora_factors(policy, reference.adapter).items()}
    lost = sum((after[name] - one).square().sum() for name, one in wanted.items())
    error = float((lost / sum(one.square().sum() for one in wanted.values())).sqrt())
    record(relative_error=error, said=said)
    assert error == pytest.approx(said, rel=1e-3)
    assert said > 1e-2


def test_after_a_hard_update_both_say_the_same(llama_dir, device, record):
    module, _ = fit(llama_dir, device)
    data = PreferenceDataModule(llama_dir, SyntheticPairs(8, seed=9), batch_size=8)
    data.setup("fit")
    batch = next(iter(data.train_dataloader())).to(device)

    def difference():
        with torch.autocast(device, dtype=torch.bfloat16), scoring(module.policy):
            theirs = module.reference.log_probs(module.policy, batch)
            return float((response_log_probs(module.policy, batch) - theirs).abs().max())

    before = difference()
    module.reference.update(module.policy, 1.0)
    after = difference()
    record(nats_before=before, nats_after=after)
    assert after < 0.05 < before


def test_compiled_layers_train_as_the_others(llama_dir, record):
    """NF4, LoRA, two adapters in turn and checkpointing: no layer falls back to eager, or it would be an error."""
    _, plain = fit(llama_dir, "cuda", gradient_checkpointing=True)
    graphs = counters["stats"]["unique_graphs"]
    _, compiled = fit(llama_dir, "cuda", gradient_checkpointing=True, compile=True)
    record(graphs=counters["stats"]["unique_graphs"] - graphs)
    assert compiled == pytest.approx(plain, rel=0.02)
