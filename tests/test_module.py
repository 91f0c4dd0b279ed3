import csv
import gc
import math
import weakref
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from transformers import BloomConfig, BloomForCausalLM

from lit_tr import (
    AdaptiveReferenceUpdate,
    HardReferenceUpdate,
    PreferenceDataModule,
    PreferenceModule,
    SoftReferenceUpdate,
)
from lit_tr.data import Example, Objects, Rows
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, KTO, SFT
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import adapter_parameters
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, WindowReference

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QLORA = {"lora": LoRA(r=4, dropout=0.1), "quantize": "nf4"}
STILL = {"lora": LoRA(r=4), "quantize": "nf4"}


class Recorded(PreferenceModule):
    """Keeps the loss of each training step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def module(path, reference=None, loss=None, lr=0.01, log_initial=True, **policy):
    torch.manual_seed(0)
    loss = loss or DPO(beta=0.5)
    return Recorded(
        PretrainedPolicy(path, **policy),
        reference or (CopyReference() if loss.needs_reference else None),
        loss,
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
    assert metrics["train/rewards/margins"] == pytest.approx(
        metrics["train/rewards/chosen"] - metrics["train/rewards/rejected"]
    )
    tokens, responses = metrics["train/tokens_per_second"], metrics["train/response_tokens_per_second"]
    assert tokens > responses > metrics["train/examples_per_second"] > 0


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
    rows, again = data(str(tmp_path)), module(str(tmp_path))
    rows.setup("fit")
    padded = "batches are padded, which takes more time and memory: the model does not take"
    with pytest.warns(UserWarning, match=padded):
        trainer = fit(model, str(tmp_path))
    with pytest.warns(UserWarning, match=padded):
        Trainer(**QUIET, max_steps=4, enable_checkpointing=False).fit(again, rows.train_dataloader())
    assert model.losses[0] == pytest.approx(math.log(2))
    assert not trainer.datamodule.packed  # its collator pads
    assert rows.packed  # the module sees packs of a loader, and pads them
    assert again.losses == model.losses


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
    for name in ("loss", "rewards/margins", "rewards/accuracies", "log_ratios", "initial/rewards/margins"):
        torch.testing.assert_close(trainer.callback_metrics[f"val/{name}"], whole[name].mean(), rtol=1e-4, atol=1e-5)


def test_the_first_batch_is_logged_before_any_step_whatever_is_logged_later(llama_dir, tmp_path):
    found = []
    for every, stage in ((1, "train"), (3, "start")):
        logger = CSVLogger(tmp_path, name=stage)
        fit(module(llama_dir), llama_dir, logger=logger, log_every_n_steps=every)
        with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        [first] = [row for row in rows if row["step"] == "0" and row.get(f"{stage}/loss")]
        found.append([float(first[f"{stage}/{name}"]) for name in ("loss", "logps/chosen", "rewards/margins")])
        assert any("start/loss" in row for row in rows) == (stage == "start")
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(math.log(2))


@pytest.mark.parametrize(("reference", "held"), [(CopyReference, 2), (WindowReference, 6)])
def test_batches_that_were_trained_on_are_let_go_where_no_checkpoint_is_saved(llama_dir, reference, held):
    class Kept(Callback):
        def __init__(self):
            self.batches, self.most = [], 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.batches.append(weakref.ref(batch.drawn.batches[batch.index]))
            gc.collect()
            self.most = max(self.most, sum(one() is not None for one in self.batches))

    kept = Kept()
    fit(module(llama_dir, reference()), llama_dir, [HardReferenceUpdate(every_n_steps=3), kept], max_steps=13)
    assert len(kept.batches) == 13
    assert kept.most <= held


def test_the_initial_policy_is_logged_beside_a_reference_that_has_moved(llama_dir):
    model = module(llama_dir)
    metrics = fit(model, llama_dir, [HardReferenceUpdate(every_n_steps=4)]).callback_metrics
    assert metrics["val/log_ratios"] == 0  # the reference is the policy
    assert metrics["val/initial/log_ratios"] != 0


def test_reference_gets_no_gradient_and_no_optimizer(llama_dir):
    model = module(llama_dir)
    trainer = fit(model, llama_dir, [SoftReferenceUpdate(every_n_steps=2)])
    optimized = {id(param) for group in trainer.optimizers[0].param_groups for param in group["params"]}
    assert optimized == {id(param) for param in model.policy.parameters()}
    assert all(param.grad is None and not param.requires_grad for param in model.reference.model.parameters())


@pytest.mark.parametrize("loss", [IPO(beta=0.5, average="mean"), KTO(), SFT()])
def test_other_losses_train_on_pairs(llama_dir, loss):
    model = module(llama_dir, loss=loss)
    fit(model, llama_dir, mismatched=loss.mismatched, max_steps=16)
    assert sum(model.losses[-4:]) < sum(model.losses[:4])


@pytest.mark.parametrize("packed", [True, False])
def test_margins_and_confidences_reach_the_loss(llama_dir, packed):
    def format(row):
        return Example(row["prompt"], row["chosen"], row["rejected"], margin=2.0, confidence=0.75)

    model = module(llama_dir, loss=DPO(beta=0.5, margin_scale=0.5))
    rows = data(llama_dir, Objects([row for _, row in SyntheticPairs(16).rows()], format=format), packed=packed)
    Trainer(**QUIET, max_steps=1, enable_checkpointing=False).fit(model, rows)
    # at the start all rewards are 0, so that the loss is that of the offset -0.5 * 2
    expected = 0.75 * math.log(1 + math.exp(1)) + 0.25 * math.log(1 + math.exp(-1))
    assert model.losses[0] == pytest.approx(expected)


def test_kto_trains_on_unpaired_rows(llama_dir, write_rows, rows):
    unpaired = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows[:9]]
    unpaired += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[9:12]]
    model = module(llama_dir, loss=KTO())
    fit(model, llama_dir, source=Rows(write_rows(unpaired)), mismatched=True)
    assert model.losses[0] == pytest.approx(0.5)  # sigmoid(0)


class Crash(Callback):
    """Stops a run within an epoch, behind some micro-batches."""

    def __init__(self, batches):
        self.batches, self.seen = batches, 0

    def on_train_batch_end(self, *args):
        self.seen += 1
        if self.seen == self.batches:
            raise RuntimeError("crash")


UPDATES = {
    "soft": lambda: SoftReferenceUpdate(every_n_steps=2),
    "hard": lambda: HardReferenceUpdate(every_n_steps=2),
    "adaptive": lambda: AdaptiveReferenceUpdate(max_kl=0.15, every_n_steps=1),
}


@pytest.mark.parametrize(
    ("batches", "accumulate"), [(3, 1), (4, 1), (5, 3)], ids=["mid-epoch", "epoch-end", "mid-accumulation"]
)
@pytest.mark.parametrize(
    ("reference", "policy", "update"),
    [
        *((CopyReference, {}, update) for update in UPDATES),
        (CopyReference, {"dtype": "bfloat16"}, "soft"),
        (partial(CopyReference, "master"), {"dtype": "bfloat16"}, "soft"),
        (partial(CopyReference, dtype="nf4"), {}, "hard"),
        *((AdapterReference, {"lora": LoRA(r=4, dropout=0.1)}, update) for update in UPDATES),
        *((AdapterReference, QLORA, update) for update in UPDATES),
        (FrozenReference, {}, None),
        (FrozenReference, QLORA, None),
    ],
)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(
    llama_dir, tmp_path, reference, policy, update, batches, accumulate
):
    """Behind a crash: the same losses, policy and reference, bit for bit. An epoch has 4 batches."""

    def run(crash=None, ckpt_path=None):
        model = module(llama_dir, reference(), **policy)
        callbacks = [UPDATES[update]()] if update else []
        folder = tmp_path / ("crashed" if crash else "whole")
        callbacks += [ModelCheckpoint(folder, save_last=True, every_n_train_steps=1), *([crash] if crash else [])]
        options = {"max_steps": 7, "accumulate_grad_batches": accumulate, "enable_checkpointing": True}
        with pytest.raises(RuntimeError, match="crash") if crash else nullcontext():
            fit(model, llama_dir, callbacks, ckpt_path=ckpt_path, **options)
        return model, callbacks[0]

    whole, ours = run()
    run(Crash(batches))
    resumed, theirs = run(ckpt_path=tmp_path / "crashed" / "last.ckpt")
    assert 0 < len(resumed.losses) < len(whole.losses)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    for (name, one), other in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    if update:
        assert 1 < ours.updates == theirs.updates


def test_a_resume_draws_the_dropout_that_the_uninterrupted_run_drew(llama_dir, tmp_path):
    """The other half of the proof: without the random state of the checkpoint, losses would differ."""
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    whole = module(llama_dir, AdapterReference(), **QLORA)
    fit(whole, llama_dir, max_steps=6)
    fit(module(llama_dir, AdapterReference(), **QLORA), llama_dir, [saved], enable_checkpointing=True, max_steps=3)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lit_tr_ranks"][0]["random_state"]["cpu"] = torch.Generator().manual_seed(9).get_state()
    torch.save(checkpoint, tmp_path / "other.ckpt")
    resumed = module(llama_dir, AdapterReference(), **QLORA)
    torch.manual_seed(9)
    fit(resumed, llama_dir, max_steps=6, ckpt_path=tmp_path / "other.ckpt")
    assert resumed.losses != whole.losses[3:]


def test_the_kl_to_the_reference_is_that_of_the_whole_vocabulary(llama_dir):
    """Against separate rows in float64: the mean over response tokens of sum p (log p - log q)."""
    model = module(llama_dir)
    model.configure_model()
    with torch.no_grad():
        for param in model.policy.parameters():
            param += 0.1 * torch.randn_like(param)
    rows = data(llama_dir)
    rows.setup("fit")
    batch = next(iter(rows.train_dataloader()))
    parts = []
    for example in rows.examples["train"][:4]:
        for response in example.responses:
            ids, first = torch.tensor([example.prompt + response]), len(example.prompt) - 1
            ours, theirs = (
                net(ids).logits[0, first:-1].double().log_softmax(-1)
                for net in (model.policy.eval(), model.reference.model)
            )
            parts.append((ours.exp() * (ours - theirs)).sum(-1))
    expected = torch.cat(parts)
    assert len(expected) <= 256
    assert model.kl_to_reference(batch).item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert model.kl_to_reference(batch.padded()).item() == pytest.approx(expected.mean().item(), rel=1e-4)
    model.reference.update(model.policy, 1.0)
    assert model.kl_to_reference(batch).item() == pytest.approx(0, abs=1e-6)


def test_an_adaptive_update_comes_when_the_bound_is_passed(llama_dir):
    class Watched(AdaptiveReferenceUpdate):
        def is_due(self, trainer, pl_module, batch):
            before = pl_module.kl_to_reference(batch).item()
            due = super().is_due(trainer, pl_module, batch)
            seen.append((before, due))
            return due

        def alpha_at(self, step):
            steps.append(step)
            return super().alpha_at(step)

    seen, steps = [], []
    fit(module(llama_dir), llama_dir, [Watched(max_kl=0.1, every_n_steps=2)], max_steps=12)
    assert [due for _, due in seen] == [kl > 0.1 for kl, _ in seen]
    assert len(seen) == 6
    assert steps == [2 * i for i, (_, due) in enumerate(seen, 1) if due]
    assert 1 <= len(steps) < 6


def test_updates_are_on_record(llama_dir, tmp_path):
    """Distances by hand, the jump as the difference of the margins that both references give the policy."""

    class Margins(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            with torch.no_grad():
                values = pl_module._evaluate(batch, None)
            self.margin = values["rewards/margins"].mean().item()
            pairs = zip(pl_module.policy.parameters(), pl_module.reference.model.parameters(), strict=True)
            self.distance = sum((p - r).double().square().sum().item() for p, r in pairs) ** 0.5

    before, after = Margins(), Margins()
    update = SoftReferenceUpdate(alpha=0.25, every_n_steps=3)
    model = module(llama_dir)
    fit(model, llama_dir, [before, update, after], max_steps=3, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    (row,) = [row for row in rows if row["reference/alpha"]]
    assert row["step"] == "2"  # as Lightning counts the third
    assert float(row["reference/distance_before"]) == pytest.approx(before.distance, rel=1e-4)
    assert float(row["reference/distance_after"]) == pytest.approx(before.distance * 0.75, rel=1e-4)
    assert float(row["reference/margin_jump"]) == pytest.approx(after.margin - before.margin, abs=1e-5)


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
    assert [len(batch["rewards/margins"]) for batch in batches] == [4, 4, 2]


class Moved(PreferenceModule):
    """Policy, reference and initial policy are three models."""

    def configure_model(self):
        super().configure_model()
        torch.manual_seed(4)
        others = [param for held in self.held if held.model for param in held.model.parameters()]
        if self.reference.adapter:
            others = [*adapter_parameters(self.policy, self.reference.adapter).values()]
        for param in [*others, *(param for param in self.policy.parameters() if param.requires_grad)]:
            param.data += 0.05 * torch.randn_like(param)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("reference", "lora"), [(CopyReference, None), (AdapterReference, LoRA(r=4))])
def test_predict_tells_the_reward_of_each_token(llama_dir, packed, reference, lora):
    model = Moved(PretrainedPolicy(llama_dir, lora=lora), reference(), DPO(beta=0.3), log_initial=True)
    rows = data(llama_dir, packed=packed)
    trainer = Trainer(**QUIET, enable_checkpointing=False)
    for batch in trainer.predict(model, rows):
        for side in ("chosen", "rejected"):
            for prefix in ("", "initial/"):
                tokens = batch[f"{prefix}token_rewards/{side}"]
                sums = torch.stack([one.sum() for one in tokens])
                torch.testing.assert_close(sums, batch[f"{prefix}rewards/{side}"], rtol=1e-4, atol=1e-4)
                assert [len(one) for one in tokens] == [len(one) for one in batch[f"tokens/{side}"]]
    # against plain forward passes: the last response of the last batch
    example = rows.examples["test"][-1]
    assert batch["tokens/rejected"][-1].tolist() == example.rejected
    ids, start = torch.tensor([example.prompt + example.rejected]), len(example.prompt) - 1

    def log_probs(active):
        with active as one, torch.no_grad():
            return one(ids).logits[0, start:-1].log_softmax(-1)[range(len(example.rejected)), example.rejected]

    ours = log_probs(nullcontext(model.policy))
    for prefix, other in (("", model.reference), ("initial/", model.initial)):
        expected = 0.3 * (ours - log_probs(other.active(model.policy)))
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(batch[f"{prefix}token_rewards/rejected"][-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"reference": AdapterReference()}, {}, "AdapterReference needs a policy with an adapter"),
        ({"reference": CopyReference(), **QLORA}, {}, "take AdapterReference"),
        ({"loss": KTO()}, {}, "set data.mismatched"),
        ({"reference": FrozenReference()}, {"callbacks": [SoftReferenceUpdate()]}, "FrozenReference does not move"),
        (
            {"reference": CopyReference(dtype="nf4")},
            {"callbacks": [SoftReferenceUpdate()]},
            "CopyReference, as it is configured, takes only hard updates of all layers",
        ),
    ],
)
def test_mistakes_are_named_before_a_step(llama_dir, model, options, message):
    with pytest.raises(UserError, match=message):
        fit(module(llama_dir, **model), llama_dir, num_sanity_val_steps=0, **options)


@pytest.mark.parametrize(
    ("model", "update", "message"),
    [
        ({"reference": AdapterReference()}, None, "AdapterReference needs a policy with an adapter"),
        ({"reference": CopyReference(), **QLORA}, None, "CopyReference would copy the whole base of an adapter"),
        ({"reference": WindowReference(), **QLORA}, HardReferenceUpdate(1), "WindowReference saves a second model"),
        ({"reference": CopyReference(dtype="nf4")}, SoftReferenceUpdate(), "takes only hard updates of all layers"),
    ],
)
def test_a_reference_and_a_policy_that_do_not_go_together_are_named_before_weights_are_loaded(
    llama_dir, monkeypatch, model, update, message
):
    monkeypatch.setattr(PretrainedPolicy, "load", lambda *args, **options: pytest.fail("weights are loaded"))
    with pytest.raises(UserError, match=message):
        fit(module(llama_dir, **model), llama_dir, callbacks=[update] if update else [])


def test_a_strategy_that_hides_weights_is_refused(llama_dir, monkeypatch):
    trainer = Trainer(**QUIET, enable_checkpointing=False)
    # Lightning has FSDPStrategy on GPUs alone, so it is put where the trainer looks for its strategy
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", FSDPStrategy())
    preferences = module(llama_dir)
    preferences.trainer = trainer
    with pytest.raises(UserError, match="FSDPStrategy flattens weights.*take trainer.strategy .*ModelParallel"):
        preferences.configure_callbacks()


def test_a_reference_that_is_to_stay_in_float32_is_not_cast(llama_dir):
    trained = module(llama_dir, AdapterReference(dtype="float32"), dtype="bfloat16", **QLORA)
    with pytest.raises(UserError, match="bf16-true would cast the reference that is to stay in float32: take bf16-mix"):
        fit(trained, llama_dir, precision="bf16-true")


def test_adapters_stay_in_float32_on_a_base_in_bfloat16(llama_dir):
    trained = module(llama_dir, AdapterReference(), dtype="bfloat16", **QLORA)
    fit(trained, llama_dir, precision="bf16-mixed", max_steps=1)
    assert {param.dtype for name, param in trained.policy.named_parameters() if "lora_" in name} == {torch.float32}
    with pytest.warns(UserWarning, match="holds adapters in torch.bfloat16, where small steps are lost"):
        fit(module(llama_dir, AdapterReference(), dtype="bfloat16", **QLORA), llama_dir, precision="bf16-true")


def test_dpo_refuses_unpaired_rows(llama_dir, write_rows):
    row = {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(UserError, match="DPO compares the two responses of a pair"):
        fit(module(llama_dir), llama_dir, source=Rows(write_rows([row] * 4)))
