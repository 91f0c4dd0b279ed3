import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import BloomConfig, BloomForCausalLM

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows, SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, KTO, SFT
from lit_tr.policy import AdapterReference, CopyReference, FrozenReference, LoRA, PretrainedPolicy

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QLORA = {"lora": LoRA(r=4, dropout=0.1), "quantize": "nf4"}
STILL = {
    "lora": LoRA(r=4),
    "quantize": "nf4",
}  # without dropout: no checkpoint holds the random state that it draws from


class Recorded(PreferenceModule):
    """Keeps the loss of each training step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def module(path, reference=None, loss=None, lr=0.01, log_initial=True, **policy):
    torch.manual_seed(0)
    return Recorded(
        PretrainedPolicy(path, **policy),
        reference or CopyReference(),
        loss or DPO(beta=0.5),
        optimizer=lambda params: torch.optim.AdamW(params, lr=lr),
        log_initial=log_initial,
    )


def data(path, source=None, **options):
    options = {"batch_size": 4, "shuffle": False, **options}
    return PreferenceDataModule(path, source or SyntheticPairs(16), val=SyntheticPairs(10, seed=8), **options)


def fit(model, path, callbacks=(), source=None, mismatched=False, ckpt_path=None, **options):
    options = {**QUIET, "max_steps": 4, "enable_checkpointing": False, **options}
    trainer = Trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, data(path, source, mismatched=mismatched), ckpt_path=ckpt_path)
    return trainer


def test_the_first_dpo_loss_is_log_2_and_a_small_task_is_learnt(llama_dir):
    model = module(llama_dir)
    trainer = fit(model, llama_dir, max_steps=12)
    assert model.losses[0] == pytest.approx(math.log(2))
    assert model.losses[-4:] < [0.3] * 4  # 16 pairs seen three times
    metrics = trainer.callback_metrics
    assert metrics["train/rewards/margin"] == pytest.approx(
        metrics["train/rewards/chosen"] - metrics["train/rewards/rejected"]
    )
    assert metrics["train/response_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("loss", "reference", "policy"),
    [
        (DPO(beta=0.5), CopyReference, {}),
        (KTO(), CopyReference, {}),
        (DPO(beta=0.5), AdapterReference, STILL),
        (DPO(beta=0.5), CopyReference, {"gradient_checkpointing": True}),
        pytest.param(DPO(beta=0.5), CopyReference, {"compile": True}, marks=pytest.mark.slow),
        pytest.param(DPO(beta=0.5), AdapterReference, {"compile": True, **STILL}, marks=pytest.mark.slow),
    ],
)
def test_packed_and_padded_batches_train_alike(llama_dir, loss, reference, policy):
    losses = {}
    for packed in (True, False):
        model = module(llama_dir, reference(), loss, **policy)
        rows = data(llama_dir, mismatched=loss.mismatched, packed=packed)
        options = {**QUIET, "enable_checkpointing": False, "max_steps": 6}
        Trainer(callbacks=[SoftReferenceUpdate(every_n_steps=2)], **options).fit(model, rows)
        losses[packed] = model.losses
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_a_model_that_takes_no_packs_is_trained_on_padded_rows_with_a_warning(tmp_path, tokenizer):
    config = BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = module(str(tmp_path))
    with pytest.warns(
        UserWarning, match="batches are padded, which takes more time and memory: the model does not take"
    ):
        fit(model, str(tmp_path))
    assert model.losses[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [DPO(beta=0.5), SFT()])
@pytest.mark.parametrize(
    ("options", "accumulate"),
    [({"batch_size": 4}, 2), ({"batch_size": 2}, 4), ({"max_tokens": 300}, 9)],  # 4 and 2; 2, 2, 2 and a flush; packs
)
def test_a_step_is_the_mean_over_pairs_however_they_are_packed(llama_dir, loss, options, accumulate):
    def trained(options, accumulate):
        model = module(llama_dir, loss=loss)
        model.optimizer = lambda params: torch.optim.SGD(params, lr=0.1)
        trainer = Trainer(**QUIET, enable_checkpointing=False, max_epochs=1, accumulate_grad_batches=accumulate)
        trainer.fit(model, data(llama_dir, SyntheticPairs(6), **options))
        assert trainer.global_step == 1
        return dict(model.policy.named_parameters())

    whole = trained({"batch_size": 6}, 1)
    for name, param in trained({"batch_size": None, **options}, accumulate).items():
        torch.testing.assert_close(param, whole[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_free_in_the_next_forward_pass(llama_dir):
    class Watched(Recorded):
        def training_step(self, batch, batch_idx):
            assert all(param.grad is None for param in self.policy.parameters())
            return super().training_step(batch, batch_idx)

    model = Watched(PretrainedPolicy(llama_dir), CopyReference(), DPO())
    assert fit(model, llama_dir).global_step == 4


def test_validation_is_the_mean_over_pairs_of_uneven_batches(llama_dir):
    model = module(llama_dir)
    trainer = fit(model, llama_dir)
    whole = Trainer(**QUIET, enable_checkpointing=False).predict(model, data(llama_dir, batch_size=10))[0]
    for name in ("loss", "rewards/margin", "rewards/accuracy", "log_ratio", "initial/rewards/margin"):
        torch.testing.assert_close(trainer.callback_metrics[f"val/{name}"], whole[name].mean(), rtol=1e-4, atol=1e-5)


def test_the_initial_policy_is_logged_beside_a_reference_that_has_moved(llama_dir):
    model = module(llama_dir)
    metrics = fit(model, llama_dir, [HardReferenceUpdate(every_n_steps=4)]).callback_metrics
    assert metrics["val/log_ratio"] == 0  # the reference is the policy
    assert metrics["val/initial/log_ratio"] != 0


def test_reference_gets_no_gradient_and_no_optimizer(llama_dir):
    model = module(llama_dir)
    trainer = fit(model, llama_dir, [SoftReferenceUpdate(every_n_steps=2)])
    optimized = {id(param) for group in trainer.optimizers[0].param_groups for param in group["params"]}
    assert optimized == {id(param) for param in model.policy.parameters()}
    assert all(param.grad is None and not param.requires_grad for param in model.reference.parameters())


@pytest.mark.parametrize("loss", [IPO(beta=0.5, average="mean"), KTO(), SFT()])
def test_other_losses_train_on_pairs(llama_dir, loss):
    model = module(llama_dir, loss=loss)
    fit(model, llama_dir, mismatched=loss.mismatched, max_steps=16)
    assert sum(model.losses[-4:]) < sum(model.losses[:4])


def test_kto_trains_on_unpaired_rows(llama_dir, write_rows, rows):
    unpaired = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows[:9]]
    unpaired += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[9:12]]
    model = module(llama_dir, loss=KTO())
    fit(model, llama_dir, source=Rows(write_rows(unpaired)), mismatched=True)
    assert model.losses[0] == pytest.approx(0.5)  # sigmoid(0)


def test_kl_baseline_is_the_mean_of_mismatched_rows_and_never_negative(llama_dir):
    from lit_tr.losses import Scores

    model = module(llama_dir, loss=KTO())
    tokens = torch.tensor([1, 1])
    up = Scores(torch.tensor([3.0, -1.0], requires_grad=True), torch.zeros(2), tokens)
    assert model._kl_baseline(up).item() == 1.0
    assert not model._kl_baseline(up).requires_grad
    assert model._kl_baseline(Scores(torch.tensor([-3.0, 1.0]), torch.zeros(2), tokens)).item() == 0.0
    assert model._kl_baseline(Scores(torch.zeros(0), torch.zeros(0), torch.zeros(0))).item() == 0.0


@pytest.mark.parametrize(
    ("reference", "policy"),
    [(CopyReference, {}), (FrozenReference, {}), (AdapterReference, STILL), (FrozenReference, STILL)],
)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(llama_dir, tmp_path, reference, policy):
    """From the middle of an epoch: the same losses, policy and reference, bit for bit."""

    def run(steps, ckpt_path=None):
        model = module(llama_dir, reference(), **policy)
        update = [SoftReferenceUpdate(every_n_steps=2)] if reference.moves else []
        saved = ModelCheckpoint(tmp_path / str(steps), save_last=True, every_n_train_steps=1)
        fit(model, llama_dir, [*update, saved], max_steps=steps, enable_checkpointing=True, ckpt_path=ckpt_path)
        return model

    whole = run(6)
    run(3)
    resumed = run(6, ckpt_path=tmp_path / "3" / "last.ckpt")
    assert resumed.losses == whole.losses[3:]
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_qlora_checkpoint_holds_adapters_and_no_base(llama_dir, tmp_path):
    model = module(llama_dir, AdapterReference(), **QLORA)
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(model, llama_dir, [SoftReferenceUpdate(every_n_steps=2), saved], enable_checkpointing=True)
    keys = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"].keys()
    assert {key.split(".")[-2] for key in keys} == {"default", "reference"}

    restored = module(llama_dir, AdapterReference(), **QLORA)
    fit(restored, llama_dir, ckpt_path=tmp_path / "last.ckpt")  # at its last step already
    for name, param in model.policy.named_parameters():
        assert torch.equal(param, restored.policy.get_parameter(name))


def test_a_checkpoint_of_another_reference_is_refused(llama_dir, tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(module(llama_dir, FrozenReference()), llama_dir, [saved], enable_checkpointing=True)
    with pytest.raises(UserError, match="of another policy or kind of reference"):
        fit(module(llama_dir, CopyReference()), llama_dir, ckpt_path=tmp_path / "last.ckpt", max_steps=8)


def test_frozen_copies_are_not_in_a_checkpoint(llama_dir, tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(module(llama_dir, CopyReference()), llama_dir, [saved], enable_checkpointing=True)
    keys = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"].keys()
    assert {key.split(".")[0] for key in keys} == {"policy", "reference"}


def test_predict_gives_each_example(llama_dir):
    model = module(llama_dir)
    batches = Trainer(**QUIET, enable_checkpointing=False).predict(model, data(llama_dir))
    assert [len(batch["rewards/margin"]) for batch in batches] == [4, 4, 2]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"reference": AdapterReference()}, {}, "AdapterReference needs a policy with an adapter"),
        ({"reference": CopyReference(), **QLORA}, {}, "take AdapterReference"),
        ({"loss": KTO()}, {}, "set data.mismatched"),
        ({"reference": FrozenReference()}, {"callbacks": [SoftReferenceUpdate()]}, "FrozenReference does not move"),
    ],
)
def test_mistakes_are_named_before_a_step(llama_dir, model, options, message):
    with pytest.raises(UserError, match=message):
        fit(module(llama_dir, **model), llama_dir, num_sanity_val_steps=0, **options)


def test_dpo_refuses_unpaired_rows(llama_dir, write_rows):
    row = {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(UserError, match="DPO compares the two responses of a pair"):
        fit(module(llama_dir), llama_dir, source=Rows(write_rows([row] * 4)))
