import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import AutoModelForCausalLM

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import CPO, DPO, ORPO, SFT, TDPO1, TDPO2, SimPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, WindowReference

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(model, path, callbacks=(), **options):
    options = {**QUIET, "max_steps": 2, "enable_checkpointing": False, **options}
    trainer = Trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, PreferenceDataModule(path, SyntheticPairs(8), batch_size=2))
    return model


@pytest.mark.parametrize(
    ("loss", "reference", "message"),
    [
        (
            torch.nn.CrossEntropyLoss(),
            FrozenReference(),
            "loss must be a subclass of lit_tr.losses.base.Loss, and is",
        ),
        (DPO, FrozenReference(), "loss must be a subclass of .*Loss, and is ABCMeta"),
        (
            DPO(),
            torch.nn.Linear(1, 1),
            "reference must be a subclass of .*Reference, and is Linear",
        ),
        (DPO(), None, "DPO needs a reference"),
        (
            TDPO1(),
            WindowReference(),
            "TDPO1 needs the distributions of the reference.* WindowReference holds log-probs",
        ),
        (TDPO2(), FrozenReference(precompute=True), "or FrozenReference without precompute"),
    ],
)
def test_what_is_no_loss_or_reference_is_named(loss, reference, message):
    with pytest.raises(UserError, match=message):
        PreferenceModule("nothing", reference, loss)


@pytest.mark.parametrize("loss", [SFT(), SimPO(), ORPO(), CPO()])
def test_a_loss_without_a_reference_builds_none(llama_dir, loss):
    model = fit(PreferenceModule(llama_dir, FrozenReference(), loss, log_initial=False), llama_dir)
    assert model.reference is None
    assert not hasattr(model.policy, "peft_config")
    assert {name.split(".")[0] for name in model.state_dict()} == {"policy"}
    fit(PreferenceModule(llama_dir, None, loss), llama_dir)


def test_a_loss_without_a_reference_spends_no_pass_on_one(llama_dir, monkeypatch):
    monkeypatch.setattr(FrozenReference, "prepare", lambda *args: pytest.fail("a reference is built"))
    monkeypatch.setattr(FrozenReference, "token_log_probs", lambda *args: pytest.fail("a reference is asked"))
    fit(PreferenceModule(llama_dir, FrozenReference(), SimPO()), llama_dir)


@pytest.mark.parametrize("reference", [None, FrozenReference()])
def test_an_update_of_no_reference_is_named_before_weights_are_loaded(llama_dir, reference):
    with pytest.raises(UserError, match="'reference' .* is None, as where a loss, such as SimPO, needs none"):
        fit(PreferenceModule("no/model", reference, ORPO()), llama_dir, [SoftReferenceUpdate()])


@pytest.mark.parametrize("reference", [CopyReference(), AdapterReference(), WindowReference()])
def test_a_reference_that_moves_and_a_loss_that_needs_none_are_refused(reference):
    message = rf"ORPO needs no reference.* leave {type(reference).__name__} out \(--model.reference null\), and the up"
    with pytest.raises(UserError, match=message):
        PreferenceModule("no/model", reference, ORPO())


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([], "CopyReference will not move, for no callback updates it"),
        ([HardReferenceUpdate(every_n_steps=5)], "its first update follows step 5, and max_steps is 2"),
        ([SoftReferenceUpdate(start_step=3)], "its first update follows step 4, and max_steps is 2"),
    ],
)
def test_a_reference_that_will_not_move_is_said(llama_dir, callbacks, message):
    with pytest.warns(UserWarning, match=message):
        fit(PreferenceModule(llama_dir, CopyReference(), DPO(), log_initial=False), llama_dir, callbacks)


def test_an_average_of_weights_in_shards_is_refused(llama_dir):
    model = PreferenceModule(llama_dir, FrozenReference(), DPO())
    options = {**QUIET, "enable_checkpointing": False}
    trainer = Trainer(strategy=ModelParallelStrategy(1, 1), devices=1, callbacks=[EMAWeightAveraging()], **options)
    with pytest.raises(UserError, match="EMAWeightAveraging does not work with ModelParallelStrategy"):
        trainer.fit(model, PreferenceDataModule(llama_dir, SyntheticPairs(8), batch_size=2))


def test_a_policy_is_a_path_a_source_or_a_model(llama_dir):
    torch.manual_seed(0)
    given = AutoModelForCausalLM.from_pretrained(llama_dir)
    losses = []
    for policy in (llama_dir, PretrainedPolicy(llama_dir), given):
        model = fit(PreferenceModule(policy, CopyReference(), DPO(beta=0.5), log_initial=False), llama_dir)
        losses.append(model.trainer.callback_metrics["train/loss"].item())
    assert losses[0] == losses[1] == losses[2]
    assert model.policy is given
    with pytest.raises(UserError, match="must be a path, a PretrainedPolicy or a model, and is 3"):
        PreferenceModule(3, CopyReference(), DPO())
    frozen = AutoModelForCausalLM.from_pretrained(llama_dir).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of the policy requires a gradient"):
        fit(PreferenceModule(frozen, WindowReference(), DPO()), llama_dir, [HardReferenceUpdate()])


def test_the_folder_of_an_adapter_is_no_path_of_a_policy(llama_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="give its base as path and its folder as adapter"):
        fit(PreferenceModule(PretrainedPolicy(str(tmp_path)), CopyReference(), DPO()), llama_dir)


def test_a_policy_that_is_an_adapter_in_memory(llama_dir):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    policy = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model = fit(PreferenceModule(policy, AdapterReference(), DPO(beta=0.5)), llama_dir, [SoftReferenceUpdate()])
    assert model.trainer.callback_metrics["reference/updates"] == 2
    assert {name.split(".")[-2] for name in model.state_dict()} == {"default", "reference"}
