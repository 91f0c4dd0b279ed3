import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import RandomDataset
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lit_tr import AdaptiveReferenceUpdate, CosineReferenceUpdate, HardReferenceUpdate, SoftReferenceUpdate
from lit_tr.errors import UserError


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
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", callbacks=callback, **{**quiet, "max_steps": 6, **options})
    trainer.fit(module)
    return module


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
        super()._update(trainer, pl_module, batch, step)


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


class Bfloat16(Distillation):
    def __init__(self):
        super().__init__()
        self.teacher.to(torch.bfloat16)


class Rounded(Distillation):
    def __init__(self):
        super().__init__()
        self.teacher.to(torch.bfloat16).to(torch.float32)


def test_a_foreign_reference_in_bfloat16_is_averaged_as_float32_would_also_over_a_resume(tmp_path):
    def update():
        return SoftReferenceUpdate(alpha=0.002, policy="student", reference="teacher")

    whole, first = fit(update(), Bfloat16(), max_steps=48), update()
    exact = fit(update(), Rounded(), max_steps=48)
    fit([first, ModelCheckpoint(tmp_path, save_last=True)], Bfloat16(), enable_checkpointing=True, max_steps=24)
    resumed = Bfloat16()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="cpu", callbacks=update(), max_steps=48, **quiet).fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(resumed.teacher.weight, whole.teacher.weight)
    assert torch.equal(whole.teacher.weight, exact.teacher.weight.bfloat16())


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
        (lambda: SoftReferenceUpdate(start_step=-1), "start_step must not be negative"),
        (lambda: SoftReferenceUpdate(layers={"a": -1.0}), "the factor of layers 'a' must not be negative"),
        (lambda: CosineReferenceUpdate(0.5, 0.1, steps=0), "steps must be at least 1"),
        (lambda: CosineReferenceUpdate(0.5, 2.0, steps=5), r"alpha must be in \(0, 1\], not 2.0"),
        (lambda: AdaptiveReferenceUpdate(max_kl=0.0), "max_kl must be above 0"),
        (
            lambda: fit(AdaptiveReferenceUpdate(1.0, policy="student", reference="teacher")),
            "Distillation has no method kl_to_reference",
        ),
        (lambda: HardReferenceUpdate(every_n_steps=0), "every_n_steps must be at least 1, not 0"),
        (lambda: fit(SoftReferenceUpdate()), "policy='policy', but Distillation has no such attribute"),
        (lambda: fit(SoftReferenceUpdate(policy="student", reference="seen")), "is no torch module"),
        (lambda: fit(SoftReferenceUpdate(policy="student", reference="wide"), Wide()), r"has the shape \(2, 4\)"),
    ],
)
def test_mistakes_are_named_before_training(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Wide(Distillation):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(5, 2)
