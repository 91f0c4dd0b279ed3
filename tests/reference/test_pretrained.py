import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import FrozenReference, PretrainedReference

QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"enable_checkpointing": False, "max_steps": 2},
}


@pytest.fixture(scope="module")
def other(llama_dir, tmp_path_factory):
    """A model of the same shape as the policy's with other weights."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with torch.no_grad():
        for param in model.parameters():
            param += 0.1 * torch.randn_like(param)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(llama_dir).save_pretrained(folder)
    return str(folder)


def fit(path, reference, callbacks=(), log_initial=None, **policy):
    torch.manual_seed(0)
    module = PreferenceModule(
        PretrainedPolicy(path, **policy),
        reference,
        DPO(beta=0.5),
        lambda params: torch.optim.SGD(params, lr=0.05),
        log_initial=log_initial,
    )
    rows = PreferenceDataModule(path, SyntheticPairs(8), val=SyntheticPairs(4, seed=8), batch_size=4)
    trainer = Trainer(callbacks=[*callbacks], **QUIET)
    trainer.fit(module, rows)
    return module


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_the_policy_is_compared_with_the_other_model(llama_dir, other, lora):
    module = fit(llama_dir, PretrainedReference(PretrainedPolicy(other)), lora=lora, log_initial=True)
    [batch] = module.trainer.datamodule.val_dataloader()
    alone = PretrainedPolicy(other).load()
    expected = FrozenReference()
    expected.prepare(alone)
    found = module.reference.log_probs(module.policy, batch)
    torch.testing.assert_close(found, expected.log_probs(alone, batch))
    start = module.initial.log_probs(module.policy, batch)
    assert (found - start).abs().min() > 0.1
    assert not any("reference" in name for name in module.state_dict())


def test_the_base_of_an_adapter_is_no_second_model(llama_dir):
    reference = PretrainedReference(PretrainedPolicy(llama_dir))
    module = fit(llama_dir, reference, lora=LoRA(r=4))
    assert reference.model is None
    [batch] = module.trainer.datamodule.val_dataloader()
    start = PretrainedPolicy(llama_dir).load()
    plain = FrozenReference()
    plain.prepare(start)
    torch.testing.assert_close(reference.log_probs(module.policy, batch), plain.log_probs(start, batch))


def test_it_does_not_move(llama_dir, other):
    with pytest.raises(UserError, match="PretrainedReference does not move"):
        fit(llama_dir, PretrainedReference(PretrainedPolicy(other)), [HardReferenceUpdate(every_n_steps=1)])


def test_another_vocabulary_is_refused(llama_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a vocabulary of \d+ tokens and .* give a model with the policy's tokeni"):
        fit(llama_dir, PretrainedReference(PretrainedPolicy(str(tmp_path))))
