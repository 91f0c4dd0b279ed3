import json
from copy import deepcopy
from dataclasses import replace
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
from lit_tr.planning.ranks import Network
from lit_tr.planning.report import progress, report
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


def found_for(module, rows_path, asked, batch=None, **options):
    data = PreferenceDataModule(module.source.path, Rows(rows_path), max_length=32, **(batch or {"batch_size": 2}))
    return answer(run_of(module, **options), data, TRAINER, asked)


def printed(found, width):
    text = StringIO()
    report(found, Console(file=text, width=width))
    return text.getvalue()


def said_of(module, rows_path, flops=None, **options):
    return printed(found_for(module, rows_path, Asked(flops=flops), **options), 120)


def test_a_reference_of_ones_own_is_planned(module, write_rows, rows):
    said = said_of(module(Twins("plain"), log_initial=False), write_rows(rows[:8]), log_initial=False)
    table = said.split("With other references")[1]
    assert "0.10 MB" in _row(table, "Copy ")
    assert "0.21 MB" in _row(table, "configured: Twins")


def _row(table, start):
    return next(line for line in table.splitlines() if line.startswith(start))


@pytest.mark.parametrize("loss", [SimPO(2.0, 0.5), SFT()])
def test_a_loss_without_a_reference_counts_none(module, write_rows, rows, loss):
    path, name = write_rows(rows[:8]), type(loss).__name__
    none = found_for(module(None, loss), path, Asked(flops=1e9))
    assert list(none.loading) == [f"no reference: {name} needs none"]
    assert "initial" not in printed(none, 120)
    assert none.choices[0].flops < found_for(module(FrozenReference()), path, Asked(flops=1e9)).choices[0].flops


@pytest.fixture(scope="module")
def found(llama_dir, tmp_path_factory):
    """The answers for packs of 200 tokens on 16 devices."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [{"prompt": "a" * i, "chosen": " b c", "rejected": " c"} for i in range(1, 40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    module = PreferenceModule(PretrainedPolicy(llama_dir), CopyReference(), DPO(0.1))
    asked = Asked(20_000_000, 16, 1e9, network=Network(1e9, 1e8))
    data = PreferenceDataModule(llama_dir, Rows(str(path)), max_length=32, batch_size=None, max_tokens=200)
    return answer(planned_run(module, TRAINER, None, 16), data, TRAINER, asked)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(found, width):
    said = printed(found, width)
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    words = " ".join(said.split())
    for part in ("data.max_tokens", "on each device, packs of 200 tokens", "checkpointing off", "linear", "16"):
        assert part in words


def test_the_answer_comes_first(found):
    names = [line.split("  ")[0] for line in printed(found, 80).splitlines()]
    assert names[:4] == ["peak", "fits", "largest pack", "time"]
    assert f"{found.hours:.3g} hours" in printed(found, 80).split("checkpointing")[0]


def test_checkpointing_takes_time_and_saves_memory(found):
    off, on = found.choices
    assert (off.checkpointing, on.checkpointing) == (False, True)
    assert (off.peak, off.hours) == (found.peak, found.hours)
    assert on.peak < off.peak
    assert on.hours > off.hours
    assert off.flops < on.flops < 4 / 3 * off.flops  # layers once more, beside forward, backward and a reference


def test_flops_of_both_choices_are_said_without_a_rate(found):
    said = printed(replace(found, choices=[replace(one, hours=None) for one in found.choices]), 120)
    for one in found.choices:
        line = _row(said, f"checkpointing {'on' if one.checkpointing else 'off'}")
        assert line.rstrip().endswith(f"{one.flops:.3g} FLOPs a step")


def test_the_memory_of_a_device_of_this_machine_is_said(found):
    said = _row(printed(replace(found, asked=replace(found.asked, device="NVIDIA H200")), 120), "fits")
    assert said.removeprefix("fits").strip() == "yes, in 20.00 MB of this machine's NVIDIA H200"
    assert "this machine" not in printed(found, 120)


def test_time_is_that_of_the_asked_devices(found):
    assert [one.devices for one in found.devices] == [1, 2, 4, 8, 16]
    assert found.hours == pytest.approx(found.steps * found.devices[-1].seconds / 3600)
    assert found.devices[0].waiting == found.devices[0].sending == 0 < found.devices[-1].waiting


def test_progress_is_a_line_for_each_part_without_a_terminal(capsys):
    with progress() as say:
        say("a step")
    assert capsys.readouterr() == ("", "lit-tr: planning a step\n")
