import re
from copy import deepcopy
from io import StringIO

import pytest
from jsonargparse import Namespace
from rich.console import Console
from transformers import AutoModelForCausalLM

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.errors import UserError
from lit_tr.losses import DPO, SFT, SimPO
from lit_tr.planning.answers import Asked, answer
from lit_tr.planning.configured import planned_run
from lit_tr.planning.report import report
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference import CopyReference, FrozenReference, WindowReference

TRAINER = Namespace(
    devices="auto", num_nodes=1, precision=None, strategy="auto", accumulate_grad_batches=1, accelerator="cpu",
    max_epochs=1, max_steps=-1, log_every_n_steps=50,
)  # fmt: skip


def run_of(module, log_initial=None, callbacks=()):
    return planned_run(module, TRAINER, log_initial, None, callbacks)


@pytest.fixture
def module(llama_dir):
    def make(reference, loss=None, **options):
        return PreferenceModule(PretrainedPolicy(llama_dir, dtype="bfloat16"), reference, loss or DPO(0.1), **options)

    return make


@pytest.mark.parametrize(("callbacks", "alpha"), [
    ([], None),
    ([HardReferenceUpdate(8), object()], 1.0),
    ([HardReferenceUpdate(8), SoftReferenceUpdate(0.6)], 0.5),
    ([SoftReferenceUpdate(0.6, reference="teacher")], None),
])  # fmt: skip
def test_updates_are_those_of_the_callbacks(module, callbacks, alpha):
    assert run_of(module(CopyReference()), callbacks=callbacks).alpha == alpha


def test_soft_updates_leave_out_what_takes_hard_ones_alone(module):
    hard = run_of(module(CopyReference()), callbacks=[HardReferenceUpdate(8)]).references
    soft = run_of(module(CopyReference()), callbacks=[SoftReferenceUpdate(0.6)]).references
    assert next(iter(hard)) == next(iter(soft)) == "configured: CopyReference"
    assert [name for name in hard if name not in soft] == ["Copy in nf4", "Window"]
    assert [name for name in soft if name not in hard] == ["Copy, master weights", "Copy, plain average"]


def test_the_initial_policy_is_kept_where_the_module_keeps_it(module):
    def kept(reference, log_initial=None):
        references = run_of(module(reference, log_initial=log_initial), log_initial).references
        return {name.removeprefix("configured: "): initial is not None for name, (_, initial) in references.items()}

    assert kept(WindowReference()) == {
        "WindowReference": False, "Frozen": False, "Copy": True, "Copy in nf4": True, "Window": False,
    }  # fmt: skip
    assert kept(CopyReference(), True)["Window"]
    assert not any(kept(CopyReference(), False).values())


def test_a_model_in_memory_is_refused(llama_dir):
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with pytest.raises(UserError, match="model in memory cannot be planned: give policy as a path"):
        run_of(PreferenceModule(model, FrozenReference(), DPO(0.1)))


class Twins(CopyReference):
    def prepare(self, policy):
        super().prepare(policy)
        self.other = deepcopy(self.model)


def said_of(module, rows_path, flops=None, **options):
    data = PreferenceDataModule(module.source.path, Rows(rows_path), batch_size=2, max_length=32)
    text = StringIO()
    report(answer(run_of(module, **options), data, TRAINER, Asked(flops=flops)), Console(file=text, width=200))
    return text.getvalue()


def held_by(said, kind):
    """What the table of references says that a kind holds."""
    (line,) = (line for line in said.splitlines() if re.match(rf"{kind}  ", line))
    return re.split(r"\s{2,}", line)[1]


def test_a_reference_of_ones_own_is_planned(module, write_rows, rows):
    said = said_of(module(Twins("plain"), log_initial=False), write_rows(rows[:8]), log_initial=False)
    assert held_by(said, "Copy") == "0.10 MB"
    assert held_by(said, "configured: Twins") == "0.21 MB"


@pytest.mark.parametrize("loss", [SimPO(2.0, 0.5), SFT()])
def test_a_loss_without_a_reference_counts_none(module, write_rows, rows, loss):
    path, name = write_rows(rows[:8]), type(loss).__name__
    said = said_of(module(CopyReference(), loss), path, flops=1e9)
    assert f"no reference: {name} needs none" in said
    assert "Frozen" not in said
    assert "initial" not in said
    frozen = said_of(module(FrozenReference()), path, flops=1e9)

    def flops(text):
        return float(re.search(r"a step +(\S+) FLOPs", text)[1])

    assert flops(said) < flops(frozen)
