import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands import main, score
from lit_tr.commands.fit import RUN_OPTIONS
from lit_tr.commands.help import page
from lit_tr.commands.mistakes import message, unwritable
from lit_tr.commands.parsing import option_names
from lit_tr.errors import UserError
from tests.runs import fails, losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data.train.class_path=lit_tr.data.Rows", "--data.train.path=none.jsonl"],
            "none.jsonl: there is no such file",
        ),
        (["--model.policy.path=nobody/nothing"], "nobody/nothing: no"),
        (["--model.reference=lit_tr.reference.AdapterReference"], "AdapterReference needs a policy with an adapter"),
        (
            ["--model.reference=lit_tr.reference.WindowReference"],
            "takes only hard updates of all layers: take HardReferenceUpdate",
        ),
        (
            ["--model.reference=WindowReference", "--update=null"],
            "not with no update of the reference",
        ),
        (["--update.alpha=1.5"], "alpha must be in (0, 1]"),
        (["--update.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["--model.loss.beta=-1"], "beta must be above 0"),
        (["--data.train.format=lit_tr.data.formats.nothing"], "data.train"),
        (["--model.loss=nothing"], "model.loss"),
        (["--data.max_bad_rows=-1"], "max_bad_rows"),
        (["--data.max_length=8"], "leaves no room for a prompt"),
        (["--ckpt_path=last"], "there is no complete checkpoint of this experiment below"),
        (["--ckpt_path=none.ckpt"], "none.ckpt"),
        (["--ckpt_path=README.md"], "README.md is not a checkpoint"),
        (["--trainer.val_check_interval=1000"], "val_check_interval"),
        (["--trainer.strategy=nothing"], "strategy"),
        (["--model.optimizer.lr=-1"], "learning rate"),
        (["--model.policy.lora.r=0", "--model.reference=lit_tr.reference.AdapterReference"], "r must be at least 1"),
        (["--data.mismatched=true"], "mismatched"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(config, capsys, options, message):
    error = fails(capsys, "fit", f"--config={config}", *options)
    assert message in error
    assert "Traceback" not in error


def test_a_row_is_named_on_the_command_line(config, capsys, write_rows):
    path = write_rows(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    )
    error = fails(capsys, "fit", f"--config={config}", "--data.train=lit_tr.data.Rows", f"--data.train.path={path}")
    assert f"{path}, row 1: chosen and rejected are equal" in error


@pytest.mark.parametrize("option", ["--data.train=none.jsonl", "--model.reference=AdapterReference"])
def test_a_start_that_fails_leaves_no_folder(config, tmp_path, capsys, option):
    kept = tmp_path / "run" / "2026-01-01_00-00-00"  # of another start
    kept.mkdir(parents=True)
    fails(capsys, "fit", f"--config={config}", option)
    assert [*(tmp_path / "run").iterdir()] == [kept]


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; a function sets its size."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    yield path, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
    subprocess.run(["umount", "--lazy", path], check=True)


def each_step(config, root):
    """Options of a run that saves at each step and keeps all."""
    saved = {"every_n_train_steps": 1, "save_top_k": -1, "save_on_exception": True}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saved}]
    overlay = Path(config).parent / "saved.yaml"
    trainer = {"default_root_dir": str(root), "callbacks": callbacks, "limit_val_batches": 0}
    overlay.write_text(yaml.dump({"trainer": trainer}))
    return [f"--config={config}", f"--config={overlay}"]


def step(path):
    return int(path.stem.rpartition("=")[2])


def test_a_full_disk_is_one_message_and_the_run_goes_on_from_its_last_whole_checkpoint(config, disk, capsys):
    root, remount = disk
    options = [*each_step(config, root), "--trainer.max_steps=8"]
    error = fails(capsys, "fit", *options)
    assert f"lit-tr: {root}" in error
    assert "No space left on device; make room" in error
    assert "Traceback" not in error
    with pytest.warns(UserWarning, match="was cut short"):  # what the full disk has left
        steps = max(step(path) for path in complete_checkpoints(root))
    assert 0 < steps < 8
    remount("size=64m")
    with pytest.warns(UserWarning, match="was cut short"):
        main(["fit", *options, "--ckpt_path=last"])
    assert max(map(step, root.rglob("*.ckpt"))) == 8
    assert len(losses(root, 1)) == 8


def test_a_folder_that_cannot_be_written_is_named(config, disk, capsys):
    root, remount = disk
    remount("ro")
    error = fails(capsys, "fit", *each_step(config, root))
    assert error.startswith(f"lit-tr: {root}/20")
    assert "Read-only file system" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_checkpoint_that_may_not_get_so_large(config, tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); import runpy; "
    command = [sys.executable, "-c", f"{limited}runpy.run_module('lit_tr', run_name='__main__')", "fit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, f"--config={config}"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert f"lit-tr: {tmp_path / 'run'}: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a", None, "b"), "b: Disk quota exceeded; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; make room"),
        (UserError("mistaken"), "mistaken"),
        (ValueError("odd"), "odd (for the place in the code, set LIT_TR_TRACEBACK=1)"),
        (RuntimeError("bug"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),  # of which the run's folder is said elsewhere
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), None),
    ],
)
def test_what_is_said_of_an_error(error, said):
    text = message(error)
    assert text == said or text.startswith(said)


def test_what_an_error_comes_from_is_said():
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = UserError("mistaken")
    assert message(wrapped) == "mistaken"
    assert unwritable(OSError(errno.ENOSPC, "full"), "folder").startswith("folder: full; make room")
    assert unwritable(OSError(errno.EIO, "broken"), "folder") is None


MISTAKES = {  # options beside --config, and what is said of them
    "--model.loss=DPOO": "--model.loss: there is no DPOO among Loss\n  did you mean DPO",
    "--model.loss=KT0": "did you mean KTO",
    "--model.loss.bta=1": "--model.loss.bta: DPO has no argument 'bta'\n  did you mean beta?\n  there are average",
    "--model.loss.beta=x": "--model.loss.beta: expected float, not 'x'",
    "--model.loss.beta=-1": "beta must be above 0, not -1",
    "--model.los.beta=1": "--model.los.beta: PreferenceModule has no argument 'los'\n  did you mean loss?",
    "--model.reference=FrozenRef": "--model.reference: there is no FrozenRef among Reference\n  did you mean FrozenRef",
    "--model.reference=null": "PreferenceModule: DPO needs a reference",
    "--model.optimizer=AdamX": "--model.optimizer: there is no AdamX among Optimizer\n  did you mean Adam",
    "--model.optimizer=torch.optim.AdamX": "no attribute 'AdamX'\n  did you mean torch.optim.Adam",
    "--model.optimizer=torch.optimm.Adam": "no attribute 'optimm'\n  did you mean torch.optim ",
    "--model.optimizer.lrr=1": "--model.optimizer.lrr: ",
    "--model.policy.quantise=nf4": "--model.policy.quantise: PretrainedPolicy has no argument 'quantise'\n  did you",
    "--model.policy.quantize=int3": "--model.policy.quantize: there is no 'int3'\n  there are nf4",
    "--model.policy.quantize=nf4": "4-bit weights cannot be trained; give lora or adapter",
    "--model.policy.attention=flash_attention_2": "is not installed: pip install flash-attn, or take another attention",
    "--model.policy.path=nowhere": "nowhere: no tokenizer in this folder",
    "--update=SoftUpdate": "--update: there is no SoftUpdate among ReferenceUpdate\n  did you mean SoftReferenceUpdate",
    "--update.alpah=1": "--update.alpah: SoftReferenceUpdate has no argument 'alpah'\n  did you mean alpha?",
    "--update.alpha=1.5": "alpha must be in (0, 1], not 1.5",
    "--update.every_n_steps=0": "every_n_steps must be at least 1, not 0",
    "--data.batchsize=3": "there is no option --data.batchsize\n  did you mean --data.batch_size",
    "--data.batch_size=x": "--data.batch_size: expected int, not 'x'",
    "--data.batch_size=0": "batch_size must be at least 1, not 0",
    "--data.max_tokens=64": "give batch_size or max_tokens, and null for the other one",
    "--data.turns=some": "--data.turns: there is no 'some'\n  there are last, all",
    "--data.train=none.jsonl": "none.jsonl: there is no such file",
    "--trainer.max_steps=x": "--trainer.max_steps: expected int, not 'x'",
    "--trainer.precision=fp16": "--trainer.precision: there is no 'fp16'\n  did you mean bf16",
    "--trainer.strategy=deepspeed": "deepspeed",
    "--trainer.callbacks+=EarlyStop": "--trainer.callbacks: there is no EarlyStop among Callback\n  did you mean",
    "--logger=tensorboard": "--logger tensorboard needs a package that is not installed: pip install tensorboard\n",
    "--logger=wandb": "--logger wandb needs a package that is not installed: pip install wandb\n",
    "--logger=mlflow": "--logger mlflow needs a package that is not installed: pip install mlflow\n",
    "--nothing=1": "there is no option --nothing",
    "quickstart": "quickstart belongs to no option; a configuration is given by --config quickstart",
    "--ckpt_path=none.ckpt": "--ckpt_path: there is no checkpoint none.ckpt",
}


@pytest.mark.parametrize(("option", "said"), MISTAKES.items())
def test_a_mistake_gets_a_few_lines_with_what_to_do(config, capsys, option, said):
    error = fails(capsys, "fit", f"--config={config}", option)
    assert error.startswith("lit-tr: ")
    assert said in error
    assert len(error.splitlines()) <= 5
    assert not any(word in error for word in ("usage", "Traceback", "Union", "Namespace"))


@pytest.mark.parametrize(
    "options",
    [
        ["--data.train=nobody/there"],
        ["--model.policy.path=nobody/there"],
        ["--model.policy.adapter=nobody/there", "--model.reference=AdapterReference"],
    ],
)
def test_a_hub_that_does_not_answer_gets_one_line(config, no_hub, capsys, options):
    *_, line = fails(capsys, "fit", f"--config={config}", *options).splitlines()  # after what is said of the rows
    assert f"nobody/there is no folder and not in the cache, and {no_hub} does not answer: give a folder" in line


IN_A_FILE = {  # what a file holds, and what is said of it
    "trainer: {max_epoch: 1}": "there is no option --trainer.max_epoch\n  did you mean --trainer.max_epochs",
    "data: {batchsize: 4}": "there is no option --data.batchsize\n  did you mean --data.batch_size",
    "model: {loss: {class_path: lit_tr.losses.DPOO}}": "there is no lit_tr.losses.DPOO among Loss\n  did you mean DPO",
    "model: {loss: {class_path: lit_tr.loses.DPO}}": "there is no lit_tr.loses.DPO among Loss\n  did you mean DPO",
    "model: {optimizer: {class_path: torch.optim.AdamX}}": "did you mean torch.optim.Adam",
    "model: {policy: {quantise: nf4}}": "PretrainedPolicy has no argument 'quantise'\n  did you mean quantize?",
    "model: {loss: {\n  a": "overlay.yaml, line 2: expected ",
}


@pytest.mark.parametrize("verb", ["fit", "plan"])
@pytest.mark.parametrize(("content", "said"), IN_A_FILE.items())
def test_a_mistake_in_a_file_gets_the_same(config, tmp_path, capsys, verb, content, said):
    path = tmp_path / "overlay.yaml"
    path.write_text(content)
    assert said in fails(capsys, verb, f"--config={config}", f"--config={path}")


@pytest.mark.parametrize("verb", [["score"], ["generate"], ["iterate"], ["data", "inspect"]])
def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path, capsys, verb):
    path = tmp_path / "bad.yaml"
    path.write_text("reward: {\n  a")
    assert f"--config: {path}, line 2: expected " in fails(capsys, *verb, f"--config={path}")


def test_an_option_is_missed_in_the_class_that_was_meant(tmp_path, capsys):
    path = tmp_path / "alone.yaml"
    path.write_text("model: {policy: {path: P, quantise: nf4}, loss: DPO}\ndata: {train: x.jsonl}")
    assert "PretrainedPolicy has no argument 'quantise'" in fails(capsys, "fit", f"--config={path}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "--config=quickstart", "--memry=1"], "there is no option --memry\n  did you mean --memory"),
        (["judge", "a", "b", "--reward-modl=x"], "there is no option --reward-modl\n  did you mean --reward-model"),
        (["report", "runs", "--outptu=x"], "there is no option --outptu\n  did you mean --output"),
        (["configs", "--hlep"], "there is no option --hlep\n  did you mean --help"),
        (["score", "--rewrd=x"], "there is no option --rewrd\n  did you mean --reward or --reward.help?"),
        (["report"], "RUN must be given"),
        (["validate"], "give a configuration: --config FILE"),
        (["fit", "--config=base/tr_dpo", "--config=models/smollm2_1.7b"], "--data.train must be given: a file"),
    ],
)
def test_verbs_say_in_one_message_what_is_missing_or_not_there(args, said, capsys):
    error = fails(capsys, *args)
    assert error.startswith(f"lit-tr: {said}")
    assert "usage" not in error


def test_words_of_a_help_that_are_no_options_are_not_offered():
    offered = {*option_names(page("fit", RUN_OPTIONS)), *option_names(score.parser().format_help())}
    assert {"--name", "--model.loss.divergence", "--reward", "--output"} <= offered
    assert not {"--option", "--reward.NAME"} & offered


def test_no_configuration_and_one_that_is_not_there(capsys):
    assert "--config NAME of one that ships with lit_tr, such as quickstart" in fails(capsys, "fit")
    error = fails(capsys, "fit", "--config=quickstrat")
    assert "there is no file quickstrat" in error
    assert "did you mean quickstart?" in error
