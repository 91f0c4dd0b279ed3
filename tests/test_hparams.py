import json
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from transformers import AutoModelForCausalLM

from lit_tr import PreferenceModule
from lit_tr.errors import UserError
from lit_tr.hparams import describe, instantiate
from lit_tr.losses import DPO, IPO, AlphaDivergence
from lit_tr.losses.base import Loss
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import FrozenReference, WindowReference


class Speed(Enum):
    fast = 1


@dataclass(frozen=True)
class Weighted(DPO):
    """A dataclass on top of another one."""

    weights: tuple[float, ...] = (1.0,)
    speed: Speed = Speed.fast
    folder: Path | None = None


class Plain(Loss):
    """A class that keeps its arguments."""

    def __init__(self, inner: Loss, beta: float = 0.2):
        self.inner, self.beta = inner, beta

    def __call__(self, *args):
        return self.inner(*args)


class Forgetful(Plain):
    """A class that does not keep all of them."""

    def __init__(self, inner: Loss, times: int = 2, **options):
        super().__init__(inner, **options)


class Mine(PreferenceModule):
    """A subclass with an argument of its own."""

    def __init__(self, *args, bonus: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.bonus = bonus


class Closed(PreferenceModule):
    """A subclass that makes what a module needs itself."""

    def __init__(self, path: str, beta: float):
        super().__init__(PretrainedPolicy(path), FrozenReference(), DPO(beta=beta))


def saved(module, path):
    """Save a module as Lightning does; what is kept must be plain."""
    kept = dict(module.hparams)
    json.dumps(kept)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": kept, "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def built(policy, *args, make=PreferenceModule, **kwargs):
    module = make(policy, *args, **kwargs)
    module.configure_model()
    return module


def again(module, tmp_path, make=PreferenceModule, **given):
    path = saved(module, tmp_path / "some.ckpt")
    with warnings.catch_warnings(action="ignore"):  # keys that are missing, until state dicts are strict
        loaded = make.load_from_checkpoint(path, weights_only=True, **given)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    return loaded


def test_a_module_of_python_is_made_again_from_its_checkpoint(llama_dir, tmp_path):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=3, targets=["q_proj"]))
    loss = Weighted(beta=0.3, weights=(0.5, 2.0), folder=tmp_path, divergence=AlphaDivergence(0.25))
    optimizer = partial(torch.optim.SGD, lr=numpy.float64(0.25))
    schedule = partial(ReduceLROnPlateau, monitor="val/loss")
    module = built(policy, FrozenReference(), loss, optimizer, schedule, log_initial=False)
    loaded = again(module, tmp_path)
    assert (loaded.source, loaded.loss) == (policy, loss)
    assert type(loaded.reference) is FrozenReference
    assert loaded.initial is None
    made = loaded.optimizer([nn.Parameter(torch.zeros(1))])
    assert (type(made), made.defaults["lr"]) == (torch.optim.SGD, 0.25)
    assert loaded.lr_scheduler(made).monitor == "val/loss"


def test_references_without_arguments_and_optimizers_as_classes(llama_dir, tmp_path):
    loaded = again(built(PretrainedPolicy(llama_dir), WindowReference(), IPO(), torch.optim.Adam), tmp_path)
    assert type(loaded.reference) is WindowReference
    assert type(loaded.optimizer([nn.Parameter(torch.zeros(1))])) is torch.optim.Adam


def test_what_holds_another_object(llama_dir, tmp_path):
    loaded = again(built(PretrainedPolicy(llama_dir), FrozenReference(), Plain(IPO(beta=0.7), beta=0.4)), tmp_path)
    assert (loaded.loss.inner, loaded.loss.beta) == (IPO(beta=0.7), 0.4)


def test_an_optimizer_that_cannot_be_written_down_is_left_out(llama_dir, tmp_path):
    options = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1), "lr_scheduler": lambda optimizer: None}
    module = built(PretrainedPolicy(llama_dir), FrozenReference(), DPO(), **options)
    assert not {"optimizer", "lr_scheduler"} & {*module.hparams}
    assert again(module, tmp_path).loss == DPO()


def test_a_policy_in_memory_is_given_again(llama_dir, tmp_path):
    module = built(PretrainedPolicy(llama_dir), FrozenReference(), DPO(beta=0.3))
    module.hparams["policy"] = describe_policy(AutoModelForCausalLM.from_pretrained(llama_dir))
    assert module.hparams["policy"] is None
    with pytest.raises(UserError, match=r"a model in memory: give it to load_from_checkpoint\(..., policy=model\)"):
        again(module, tmp_path)
    source = PretrainedPolicy(llama_dir)
    loaded = again(module, tmp_path, policy=source)
    assert loaded.source is source
    assert loaded.loss.beta == 0.3


def describe_policy(model):
    return PreferenceModule(model, FrozenReference(), DPO()).hparams["policy"]


def test_objects_take_the_place_of_what_a_checkpoint_says(llama_dir, tmp_path):
    reference, loss = FrozenReference(), IPO(beta=0.9)
    module = built(PretrainedPolicy(llama_dir), FrozenReference(), DPO())
    loaded = again(module, tmp_path, reference=reference, loss=loss, log_initial=False)
    assert loaded.reference is reference
    assert loaded.loss is loss


@pytest.mark.parametrize("by_position", [True, False])
def test_a_subclass_with_arguments_of_its_own(llama_dir, tmp_path, by_position):
    parts = {"policy": PretrainedPolicy(llama_dir), "reference": FrozenReference(), "loss": DPO(beta=0.3)}
    module = Mine(*parts.values(), bonus=2.0) if by_position else Mine(**parts, bonus=2.0)
    module.configure_model()
    loaded = again(module, tmp_path, Mine)
    assert (type(loaded), loaded.bonus, loaded.loss.beta) == (Mine, 2.0, 0.3)


def test_a_subclass_that_makes_its_policy_itself(llama_dir, tmp_path):
    module = Closed(llama_dir, 0.4)
    module.configure_model()
    assert again(module, tmp_path, Closed).loss.beta == 0.4
    assert module.hparams["reference"]["class_path"].endswith("FrozenReference")  # which an export asks for


def test_an_argument_that_is_not_kept_is_named_at_loading(llama_dir, tmp_path):
    module = built(PretrainedPolicy(llama_dir), FrozenReference(), Forgetful(DPO(), times=3))
    message = r"does not say its loss: Forgetful does not keep its argument times as self.times; give loss=\.\.\."
    with pytest.raises(UserError, match=message):
        again(module, tmp_path)
    assert again(module, tmp_path, loss=DPO(beta=0.6)).loss.beta == 0.6


def test_a_class_that_no_import_finds_is_named_at_loading(llama_dir, tmp_path):
    class Local(DPO):
        pass

    with pytest.raises(UserError, match=r"does not say its loss: .*Local.* is not found by an import"):
        again(built(PretrainedPolicy(llama_dir), FrozenReference(), Local()), tmp_path)


def test_a_model_among_the_other_arguments_is_to_be_given(llama_dir, tmp_path):
    class WithTeacher(Mine):
        def __init__(self, teacher: nn.Module, **kwargs):
            super().__init__(**kwargs)

    parts = {"policy": PretrainedPolicy(llama_dir), "reference": FrozenReference(), "loss": DPO()}
    kept = dict(WithTeacher(nn.Linear(2, 2), **parts).hparams)
    with pytest.raises(UserError, match=r"does not say its teacher: it was a model in memory; give teacher=\.\.\."):
        instantiate(WithTeacher, kept)
    assert instantiate(WithTeacher, {**kept, "teacher": nn.Linear(2, 2)}).loss == DPO()


def test_hyper_parameters_that_cannot_be_read(llama_dir):
    kept = dict(PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(), DPO()).hparams)
    kept["loss"]["init_args"]["nonsense"] = 1
    with pytest.raises(UserError, match=r"hyper-parameters cannot be read (.|\n)*nonsense"):
        instantiate(PreferenceModule, kept)


def test_only_frames_of_the_module_itself_are_read(llama_dir):
    class Maker:
        def __init__(self, seed):
            self.module = PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(), DPO())

    assert "seed" not in Maker(3).module.hparams
    assert describe(nn.Identity()) == {
        "_class_path": "torch.nn.modules.linear.Identity",
        "_instantiator": "lit_tr.hparams.instantiate",
    }
