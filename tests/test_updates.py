import csv

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import RandomDataset
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lit_tr import (
    AdaptiveReferenceUpdate,
    CosineReferenceUpdate,
    HardReferenceUpdate,
    PreferenceDataModule,
    PreferenceModule,
    SoftReferenceUpdate,
)
from lit_tr.data import Rows
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, KTO, SimPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Distillation(LightningModule):
    """A module that knows nothing of lit_tr: a student and a teacher that follows it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(4, 2)
        self.teacher = nn.Linear(4, 2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.teacher.weight.detach().clone())
        return (self.student(batch) ** 2).mean()

    def train_dataloader(self):
        return DataLoader(RandomDataset(4, 24), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


def fit(callback, module=None, **options):
    module = module or Distillation()
    trainer = Trainer(**{**QUIET, "callbacks": callback, "max_steps": 6, "enable_checkpointing": False, **options})
    trainer.fit(module)
    return module


def preferences(path, reference=None, loss=None, **policy):
    torch.manual_seed(0)
    loss = loss or DPO(beta=0.5)
    return PreferenceModule(
        PretrainedPolicy(path, **policy), reference, loss, lambda params: torch.optim.SGD(params, lr=0.05)
    )


def align(callbacks, model, path, source=None, mismatched=False, ckpt_path=None, **options):
    trainer = Trainer(**{**QUIET, "callbacks": callbacks, "max_steps": 4, "enable_checkpointing": False, **options})
    rows = PreferenceDataModule(path, source or SyntheticPairs(16), batch_size=4, shuffle=False, mismatched=mismatched)
    trainer.fit(model, rows, ckpt_path=ckpt_path)
    return rows


class Recorder(HardReferenceUpdate):
    """Records the step and the policy at each update."""

    def __init__(self, **options):
        super().__init__(policy="student", reference="teacher", **options)
        self.steps, self.policies = [], []

    def alpha_at(self, step):
        self.steps.append(step)
        return super().alpha_at(step)

    def _update(self, trainer, pl_module, batch, step):
        self.policies.append(pl_module.student.weight.detach().clone())
        return super()._update(trainer, pl_module, batch, step)


def test_soft_update_of_a_foreign_module_by_hand():
    module = Distillation()
    weights = []
    module.on_train_batch_end = lambda *_: weights.append(module.student.weight.detach().clone())
    expected = module.teacher.weight.detach().clone()
    fit(SoftReferenceUpdate(alpha=0.25, policy="student", reference="teacher"), module)
    for weight in weights:
        expected = 0.25 * weight + 0.75 * expected
    torch.testing.assert_close(module.teacher.weight.detach(), expected)


def test_hard_update_is_a_copy_at_every_third_step_and_nothing_before():
    callback = Recorder(every_n_steps=3)
    module = Distillation()
    start = module.teacher.weight.detach().clone()
    fit(callback, module)
    assert callback.steps == [3, 6]
    assert all(torch.equal(seen, start) for seen in module.seen[:3])
    assert all(torch.equal(seen, callback.policies[0]) for seen in module.seen[3:])
    assert torch.equal(module.teacher.weight, module.student.weight)
    assert module.teacher.weight.grad is None


def test_the_next_update_is_known():
    update = HardReferenceUpdate(every_n_steps=5)
    assert [update.next_update(step) for step in (0, 1, 4, 5, 9, 10)] == [5, 5, 5, 10, 10, 15]
    late = HardReferenceUpdate(every_n_steps=5, start_step=7)
    assert [late.next_update(step) for step in (0, 5, 7, 10)] == [10, 10, 10, 15]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_updates_count_optimizer_steps_whatever_the_accumulation(accumulate):
    """12 batches an epoch and 5 of 8: the flush of gradients at the epoch's end is a step as well."""
    callback = Recorder(every_n_steps=2)
    module = fit(callback, accumulate_grad_batches=accumulate)
    assert callback.steps == [2, 4, 6]
    changes = [
        i for i, (a, b) in enumerate(zip(module.seen, module.seen[1:], strict=False), 1) if not torch.equal(a, b)
    ]
    assert changes == [2 * accumulate, 4 * accumulate]


def test_the_flush_at_an_epochs_end_is_a_step():
    callback = Recorder(every_n_steps=1)
    fit(callback, accumulate_grad_batches=5, limit_train_batches=7, max_steps=-1, max_epochs=2)
    assert callback.steps == [1, 2, 3, 4]  # 5 batches, then 2, in each epoch


@pytest.mark.parametrize("overflow_at", [0, 1])
def test_a_step_that_the_gradient_scaler_skips_is_none(overflow_at):
    class Overflow(Distillation):
        def on_before_optimizer_step(self, optimizer):
            if self.global_step == overflow_at:
                self.student.weight.grad.fill_(float("inf"))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).float()

    class Scaled(MixedPrecision):
        def optimizer_step(self, optimizer, model, closure, **kwargs):
            closure()
            model.on_before_optimizer_step(optimizer)
            self.scaler.step(optimizer)
            self.scaler.update()

    callback = Recorder(every_n_steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    fit(callback, Overflow(), plugins=Scaled("16-mixed", "cpu", scaler))
    assert callback.steps == [2, 4]  # 6 attempts, 5 steps


def test_steps_of_several_optimizers_pass_multiples():
    """With two optimizers the step count grows by 2 a batch: 2, 4, 6, ... passes 3, 9 between and meets 6, 12."""

    class Two(Distillation):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([param], lr=0.1) for param in self.student.parameters()]

    callback = Recorder(every_n_steps=3)
    fit(callback, Two(), max_steps=12)
    assert callback.steps == [4, 6, 10, 12]


def test_nothing_moves_during_the_burn_in():
    callback = Recorder(every_n_steps=2, start_step=3)
    fit(callback, max_steps=8)
    assert callback.steps == [4, 6, 8]


def test_cosine_by_hand():
    update = CosineReferenceUpdate(0.9, 0.1, steps=4)
    # 0.1 + 0.8 * (1 + cos) / 2 at an eighth turn, a quarter, three eighths, a half, and beyond
    root = 0.5**0.5
    expected = [0.1 + 0.4 * (1 + root), 0.5, 0.1 + 0.4 * (1 - root), 0.1, 0.1]
    assert [update.alpha_at(step) for step in (1, 2, 3, 4, 9)] == pytest.approx(expected)


def test_layers_move_at_rates_of_their_own():
    module = Distillation()
    start = {name: param.detach().clone() for name, param in module.teacher.named_parameters()}
    module.on_train_start = lambda: None
    fit(
        SoftReferenceUpdate(
            alpha=0.5, layers={"^bias$": 0.5, "b": 9.0, "weight": 0.0}, policy="student", reference="teacher"
        ),
        module,
        max_steps=1,
    )
    assert torch.equal(module.teacher.weight, start["weight"])
    torch.testing.assert_close(module.teacher.bias, 0.25 * module.student.bias + 0.75 * start["bias"])


def in_half(dtype, then=None):
    module = Distillation()
    module.teacher.to(dtype).to(then or dtype)
    module.train_dataloader = lambda: DataLoader(RandomDataset(4, 2), batch_size=2)  # a resume would shift batches
    return module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_is_averaged_as_float32_would_also_over_a_resume(tmp_path, dtype):
    def update():
        return SoftReferenceUpdate(alpha=0.002, policy="student", reference="teacher")

    whole, first = fit(update(), in_half(dtype), max_steps=48), update()
    exact = fit(update(), in_half(dtype, torch.float32), max_steps=48)
    fit([first, ModelCheckpoint(tmp_path, save_last=True)], in_half(dtype), enable_checkpointing=True, max_steps=24)
    resumed = in_half(dtype)
    trainer = Trainer(**QUIET, callbacks=update(), max_steps=48, enable_checkpointing=False)
    trainer.fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(resumed.teacher.weight, whole.teacher.weight)
    assert torch.equal(whole.teacher.weight, exact.teacher.weight.to(dtype))


def test_hard_updates_of_a_module_keep_nothing():
    update = HardReferenceUpdate(1, policy="student", reference="teacher")
    fit(update, in_half(torch.bfloat16))
    assert update.updates == 6
    assert update.state_dict()["averaged"] == {}


def test_a_module_says_what_becomes_of_its_buffers():
    class Normed(Distillation):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))

        def training_step(self, batch, batch_idx):
            return (self.student(batch) ** 2).mean()

    module = Normed()
    fit(SoftReferenceUpdate(0.25, policy="student", reference="teacher", buffers="average"), module, max_steps=1)
    ours, theirs = module.student[0], module.teacher[0]
    torch.testing.assert_close(theirs.running_mean, 0.25 * ours.running_mean)  # it was 0
    assert ours.running_mean.abs().min() > 0
    assert theirs.num_batches_tracked == 1


def test_an_adaptive_update_asks_the_module_for_its_divergence():
    class Measured(Distillation):
        def kl_to_reference(self, batch):
            return (self.student.weight - self.teacher.weight).norm()

    far = Measured()
    bound = (far.student.weight - far.teacher.weight).norm().item() / 2
    fit(AdaptiveReferenceUpdate(bound, every_n_steps=1, policy="student", reference="teacher"), far, max_steps=1)
    assert torch.equal(far.teacher.weight, far.student.weight)
    near, start = Measured(), Measured().teacher.weight
    fit(AdaptiveReferenceUpdate(bound * 9, every_n_steps=1, policy="student", reference="teacher"), near, max_steps=1)
    assert torch.equal(near.teacher.weight, start)


def test_two_pairs_of_modules_have_counters_of_their_own(tmp_path):
    class Four(Distillation):
        def __init__(self):
            super().__init__()
            self.slow = nn.Linear(4, 2)

    def updates():
        return [
            SoftReferenceUpdate(0.5, every_n_steps=n, policy="student", reference=name)
            for n, name in ((1, "teacher"), (2, "slow"))
        ]

    fit([*updates(), ModelCheckpoint(tmp_path, save_last=True)], Four(), enable_checkpointing=True)
    resumed = updates()
    trainer = Trainer(accelerator="cpu", callbacks=[*resumed], max_steps=8, logger=False, enable_checkpointing=False)
    trainer.fit(Four(), ckpt_path=tmp_path / "last.ckpt")
    assert [update.updates for update in resumed] == [8, 4]


def test_a_callback_added_at_a_resume_does_not_update_before_the_next_step(tmp_path):
    fit(ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True, max_steps=4)
    callback = Recorder(every_n_steps=2)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callback,
        max_steps=6,
        accumulate_grad_batches=3,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Distillation(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.steps == [6]


def test_a_checkpoint_of_a_step_holds_the_reference_of_that_step(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit([checkpoints, Recorder(every_n_steps=2)], enable_checkpointing=True, max_steps=4)
    for step in (2, 4):
        weights = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(weights["teacher.weight"], weights["student.weight"])


def test_counters_survive_a_resume(tmp_path):
    first = Recorder(every_n_steps=3)
    fit([first, ModelCheckpoint(tmp_path, save_last=True)], enable_checkpointing=True, max_steps=4)
    second = Recorder(every_n_steps=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", callbacks=second, max_steps=9, enable_checkpointing=False, **quiet).fit(
        Distillation(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert first.steps == [3]
    assert second.steps == [6, 9]
    assert second.updates == 3


def test_through_trainer_callbacks_in_yaml(tmp_path):
    config = {
        "class_path": "lit_tr.SoftReferenceUpdate",
        "init_args": {"alpha": 0.01, "policy": "student", "reference": "teacher"},
    }
    (tmp_path / "config.yaml").write_text(yaml.dump({"trainer": {"callbacks": [config], "max_steps": 1}}))
    cli = LightningCLI(Distillation, run=False, args=["--config", str(tmp_path / "config.yaml")])
    callback = cli.trainer.callbacks[0]
    assert (callback.alpha, callback.every_n_steps, callback.reference) == (0.01, 1, "teacher")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftReferenceUpdate(alpha=0), r"alpha must be in \(0, 1\], not 0"),
        (lambda: SoftReferenceUpdate(alpha=1.5), r"alpha must be in \(0, 1\]"),
        (lambda: SoftReferenceUpdate(start_step=-1), "start_step must be at least 0, not -1"),
        (lambda: SoftReferenceUpdate(layers={"a": -1.0}), "the factor of layers 'a' must not be negative"),
        (lambda: SoftReferenceUpdate(buffers="blend"), "buffers must be copy, average or leave, not 'blend'"),
        (lambda: CosineReferenceUpdate(0.5, 0.1, steps=0), "steps must be at least 1"),
        (lambda: CosineReferenceUpdate(0.5, 2.0, steps=5), r"alpha must be in \[0, 1\], not 2.0"),
        (lambda: CosineReferenceUpdate(0.0, 0.0, steps=5), "0 would never move the reference"),
        (lambda: AdaptiveReferenceUpdate(max_kl=0.0), "max_kl must be above 0"),
        (
            lambda: fit(AdaptiveReferenceUpdate(1.0, policy="student", reference="teacher")),
            "Distillation has no method kl_to_reference",
        ),
        (lambda: HardReferenceUpdate(every_n_steps=0), "every_n_steps must be at least 1, not 0"),
        (lambda: fit(SoftReferenceUpdate()), "policy='policy', but Distillation has no such attribute"),
        (lambda: fit(SoftReferenceUpdate(policy="student", reference="seen")), "is neither a torch module nor a refer"),
        (lambda: fit(SoftReferenceUpdate(policy="student", reference="wide"), Wide()), r"has the shape \(2, 4\)"),
        (
            lambda: fit(SoftReferenceUpdate(layers={"bias": 0.5, "head": 0}, policy="student", reference="teacher")),
            "layers 'head' is found in no name of a parameter of 'student' that the reference follows, such as weight",
        ),
    ],
)
def test_mistakes_are_named_before_training(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Wide(Distillation):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(5, 2)


@pytest.mark.parametrize(
    ("model", "update", "message"),
    [
        (
            {"loss": SimPO()},
            {},
            "'reference' of PreferenceModule is None, as where a loss, such as SimPO, needs none",
        ),
        ({"reference": CopyReference()}, {"buffers": "leave"}, "'reference' of PreferenceModule is a CopyReference"),
    ],
)
def test_mistakes_with_a_reference_are_named_before_weights_are_loaded(llama_dir, model, update, message):
    with pytest.raises(UserError, match=message):
        align(HardReferenceUpdate(1, **update), preferences("no/model", **model), llama_dir)


@pytest.mark.parametrize(
    ("lora", "layers", "message"),
    [
        (None, {"lora_A": 0.5}, "layers 'lora_A' is found in no name of a parameter of 'policy'"),
        (LoRA(r=2), {"lora_A.reference": 0.5}, "layers 'lora_A.reference' is found in no name"),
        (LoRA(r=2), {"embed_tokens": 0.5}, "layers 'embed_tokens' is found in no name"),
        (LoRA(r=2), {"lora_A": 0.5}, "q_proj.lora_A.default.weight has another alpha than its B"),
        (LoRA(r=2), {"lora_A": 8.0}, "q_proj.lora_A.default.weight has another alpha than its B"),
    ],
)
def test_layers_that_no_reference_can_follow_are_named_before_a_step(llama_dir, lora, layers, message):
    model = preferences(llama_dir, AdapterReference() if lora else CopyReference(), lora=lora)
    with pytest.raises(UserError, match=message):
        align(SoftReferenceUpdate(0.5, layers=layers), model, llama_dir)


def test_a_hard_update_with_rates_is_none_of_all_layers(llama_dir):
    update = HardReferenceUpdate(1, layers={"lm_head": 0.5})
    with pytest.raises(UserError, match="takes only hard updates of all layers: take HardReferenceUpdate without lay"):
        align(update, preferences(llama_dir, CopyReference(dtype="nf4")), llama_dir)


@pytest.mark.parametrize("average", [None, "weight_space", "factors"])
def test_layers_are_named_as_the_policys_parameters_whatever_the_reference(llama_dir, average):
    """Those of the first layer follow all the way, and the others stay."""
    lora = LoRA(r=2) if average else None
    model = preferences(llama_dir, AdapterReference(average) if average else CopyReference(), lora=lora)
    layers = {r"layers\.0\.\S+default" if average else r"layers\.0\.": 2.0, "": 0.0}

    class Before(SoftReferenceUpdate):
        def alpha_at(self, step):
            seen.update({name: value.clone() for name, value in values().items()})
            return super().alpha_at(step)

    def values():
        reference = dict(model.policy.named_parameters()) if average else dict(model.reference.model.named_parameters())
        return {name: value for name, value in reference.items() if not average or ".reference." in name}

    seen = {}
    align(Before(0.5, layers=layers), model, llama_dir, max_steps=1)
    ours = dict(model.policy.named_parameters())
    for name, value in values().items():
        if "layers.0." in name and average != "weight_space":
            assert torch.equal(value, ours[name.replace(".reference.", ".default.")]), name
        elif "layers.0." not in name:
            assert torch.equal(value, seen[name]), name
    assert any(not torch.equal(value, seen[name]) for name, value in values().items())


class Followed(SoftReferenceUpdate):
    """Averages by hand, in float32, as torch.lerp does."""

    def _update(self, trainer, pl_module, batch, step):
        policy, reference = pl_module.policy, pl_module.reference.model
        if not hasattr(self, "exact"):
            self.exact = {name: param.detach().float() for name, param in reference.named_parameters()}
            self.start = {name: param.detach().clone() for name, param in reference.named_parameters()}
        for name, param in policy.named_parameters():
            self.exact[name] = torch.lerp(self.exact[name], param.detach().float(), self.alpha)
        return super()._update(trainer, pl_module, batch, step)


def average_of(reference, name):
    """The average in float32, made of what the reference holds."""
    param, kept = reference.model.get_parameter(name), reference.averaged.of(name)
    if kept is None or kept.dtype == torch.float32:
        return param if kept is None else kept
    return ((param.view(torch.int16).int() << 16) + kept).view(torch.float32)


@pytest.mark.parametrize(
    ("reference", "precision"),
    [
        ({}, "bf16-true"),
        ({"average": "master"}, "bf16-true"),
        ({"dtype": "float32"}, "bf16-true"),
        ({"dtype": "float16"}, "32-true"),
        ({"dtype": "bfloat16", "device": "cpu"}, "bf16-mixed"),
    ],
)
def test_small_steps_are_kept_in_the_precision_that_a_trainer_casts_to(llama_dir, tmp_path, reference, precision):
    """And a run that goes on from a checkpoint makes them as the one that was never stopped, bit for bit."""

    def run(steps, ckpt_path=None, saved=()):
        model, update = preferences(llama_dir, CopyReference(**reference), dtype="float32"), Followed(0.01)
        options = {"max_steps": steps, "precision": precision, "enable_checkpointing": bool(saved)}
        align([update, *saved], model, llama_dir, ckpt_path=ckpt_path, **options)
        return model, update

    whole, update = run(6)
    for name, param in whole.reference.model.named_parameters():
        assert torch.equal(average_of(whole.reference, name), update.exact[name]), name
        torch.testing.assert_close(param, update.exact[name].to(param), rtol=torch.finfo(param.dtype).eps, atol=0)
    assert any(not torch.equal(param, update.start[name]) for name, param in whole.reference.model.named_parameters())
    run(3, saved=[ModelCheckpoint(tmp_path, save_last=True)])
    resumed, _ = run(6, ckpt_path=tmp_path / "last.ckpt")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any("averaged" in name for name in ours) == (reference.get("dtype") != "float32")


def test_states_of_two_modules_are_inverse_also_where_one_has_an_average(llama_dir):
    options = {"dtype": "bfloat16"}
    one, other = (preferences(llama_dir, CopyReference(), **options) for _ in range(2))
    align(SoftReferenceUpdate(0.01), one, llama_dir)
    other.configure_model()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    other.load_state_dict(one.state_dict())
    assert list(other.state_dict()) == list(one.state_dict())
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())
    assert other.state_dict().keys() > before.keys()
    other.load_state_dict(before)
    assert other.state_dict().keys() == before.keys()


def test_hard_updates_of_a_copy_keep_no_average(llama_dir):
    model = preferences(llama_dir, CopyReference(), dtype="bfloat16")
    align(HardReferenceUpdate(1), model, llama_dir)
    assert not any("averaged" in name for name in model.state_dict())
    align(SoftReferenceUpdate(0.5), model, llama_dir)
    assert any("averaged" in name for name in model.state_dict())
    align(HardReferenceUpdate(1), model, llama_dir)
    assert not any("averaged" in name for name in model.state_dict())


def test_the_kl_of_kto_is_that_of_the_own_responses(llama_dir):
    """Against separate rows in float64; those with a borrowed response are not measured."""
    model = preferences(llama_dir, CopyReference(), KTO())
    model.configure_model()
    with torch.no_grad():
        for param in model.policy.parameters():
            param += 0.1 * torch.randn_like(param)
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(16), batch_size=4, shuffle=False, mismatched=True)
    rows.setup("fit")
    batch, parts = next(iter(rows.train_dataloader())), []
    assert batch.mismatched
    for example in rows.examples["train"][:4]:
        for response in example.responses:
            ids, first = torch.tensor([example.prompt + response]), len(example.prompt) - 1
            ours, theirs = (
                net.double()(ids).logits[0, first:-1].log_softmax(-1)
                for net in (model.policy.eval(), model.reference.model)
            )
            parts.append((ours.exp() * (ours - theirs)).sum(-1))
    model.policy.float(), model.reference.model.float()
    expected = torch.cat(parts)
    assert len(expected) <= 256
    assert model.kl_to_reference(batch).item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert model.kl_to_reference(batch.padded()).item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_under_mixed_precision_kl_and_margin_are_measured_in_it(llama_dir, tmp_path):
    class Watched(AdaptiveReferenceUpdate):
        def is_due(self, trainer, pl_module, batch):
            measured = pl_module.kl_to_reference(batch).item()
            with torch.autocast("cpu", torch.bfloat16):
                kl, tokens = pl_module.reference.kl(pl_module.policy, batch)
            measures.append((measured, (kl / tokens).item()))
            return super().is_due(trainer, pl_module, batch)

    class Seen(Watched):
        def on_train_batch_end(self, trainer, pl_module, *args):
            models = (pl_module.policy, pl_module.reference.model)
            layers = [model.model.layers[0].mlp.up_proj for model in models]
            hooks = [layer.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype)) for layer in layers]
            super().on_train_batch_end(trainer, pl_module, *args)
            for hook in hooks:
                hook.remove()

    dtypes, measures = [], []
    options = {"precision": "bf16-mixed", "logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    align(Seen(1e-9, every_n_steps=1), preferences(llama_dir, CopyReference()), llama_dir, **options)
    assert [one for one, _ in measures] == [other for _, other in measures]
    assert all(one > 0 for one, _ in measures)
    assert set(dtypes) == {torch.bfloat16}
    assert len(dtypes) == 4 * (3 * 2 + 2 * 2)  # three KLs by both models, and two margins


def rows_of(folder):
    (path,) = folder.rglob("metrics.csv")
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize(("every", "log_every"), [(2, 1), (1, 2)])
def test_an_update_is_logged_with_the_loss_of_its_step_and_only_there(llama_dir, tmp_path, every, log_every):
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": log_every}
    align(SoftReferenceUpdate(0.5, every), preferences(llama_dir, CopyReference()), llama_dir, **options)
    after = [row for row in rows_of(tmp_path) if not row.get("start/loss")]  # the first batch is before any step
    rows = [(int(row["step"]), bool(row["train/loss"]), row["reference/alpha"]) for row in after]
    expected = {1: [(0, True, ""), (1, True, "0.5"), (2, True, ""), (3, True, "0.5")]}
    expected[2] = [(0, False, "0.5"), (1, True, "0.5"), (2, False, "0.5"), (3, True, "0.5")]
    assert sorted(rows) == expected[log_every]


def test_a_callback_begins_anew_in_another_fit(llama_dir, tmp_path):
    update = SoftReferenceUpdate(0.5, every_n_steps=2)
    for run in ("first", "second"):
        options = {"logger": CSVLogger(tmp_path / run), "log_every_n_steps": 4}
        align(update, preferences(llama_dir, CopyReference()), llama_dir, **options)
        rows = rows_of(tmp_path / run)
        assert [row["reference/distance_before"] > "" for row in rows if row["reference/alpha"]] == [False, True]
        assert update.updates == 2


@pytest.mark.parametrize(("every", "log_every", "expected"), [(1, 4, [3, 7]), (3, 4, [2, 5]), (2, 1, [1, 3, 5, 7])])
def test_what_costs_more_is_measured_at_the_last_update_up_to_a_logged_step(
    llama_dir, tmp_path, every, log_every, expected
):
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": log_every, "max_steps": 8}
    align(SoftReferenceUpdate(0.5, every), preferences(llama_dir, CopyReference()), llama_dir, **options)
    assert [int(row["step"]) for row in rows_of(tmp_path) if row["reference/distance_before"]] == expected


def test_a_trainer_that_fits_again_goes_on_counting():
    update = Recorder(every_n_steps=4)
    trainer = Trainer(**QUIET, callbacks=update, max_steps=6, enable_checkpointing=False)
    module = Distillation()
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 9
    trainer.fit(module)
    assert update.steps == [4, 8]
    assert update.updates == 2


def test_unpaired_rows_have_no_margin_that_could_jump(llama_dir, tmp_path, write_rows, rows):
    unpaired = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows[:9]]
    unpaired += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[9:16]]
    model = preferences(llama_dir, CopyReference(), KTO())
    options = {"source": Rows(write_rows(unpaired)), "mismatched": True, "logger": CSVLogger(tmp_path)}
    align(SoftReferenceUpdate(0.5), model, llama_dir, log_every_n_steps=1, **options)
    for row in rows_of(tmp_path):
        assert float(row["reference/distance_before"]) > float(row["reference/distance_after"]) > 0
        assert "reference/margin_jump" not in row


def test_a_schedule_may_end_at_0_where_updates_change_nothing():
    """As BYOL's, whose tau goes from 0.996 to 1 (arXiv 2006.07733, Sec. 3.2)."""
    update = CosineReferenceUpdate(0.004, 0.0, steps=4, policy="student", reference="teacher")
    root = 0.5**0.5
    expected = [0.002 * (1 + root), 0.002, 0.002 * (1 - root), 0.0, 0.0]
    assert [update.alpha_at(step) for step in (1, 2, 3, 4, 9)] == pytest.approx(expected)
    module = fit(update, max_steps=8)
    assert update.updates == 8
    assert not torch.equal(module.seen[3], module.seen[0])
    assert all(torch.equal(seen, module.teacher.weight) for seen in module.seen[4:])
