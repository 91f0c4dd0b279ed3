import pytest

from tests.runs import fails


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train.class_path=lit_tr.data.Rows", "--data.train.path=none.jsonl"], "none.jsonl: no such file"),
        (["--model.policy.path=nobody/nothing"], "nobody/nothing: no"),
        (["--model.reference=lit_tr.reference.AdapterReference"], "AdapterReference needs a policy with an adapter"),
        (
            ["--model.reference=lit_tr.reference.WindowReference"],
            "one HardReferenceUpdate, not with SoftReferenceUpdate",
        ),
        (
            ["--model.reference=WindowReference", "--update=null"],
            "not with no update of the reference",
        ),
        (["--update.alpha=1.5"], "alpha must be in (0, 1]"),
        (["--update.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["--model.loss.beta=-1"], "beta must be above 0"),
        (["--data.format=lit_tr.data.formats.nothing"], "data.format"),
        (["--model.loss=nothing"], "model.loss"),
        (["--data.on_bad_row=maybe"], "on_bad_row"),
        (["--data.max_length=8"], "leaves no room for a prompt"),
        (["--ckpt_path=last"], "there is no whole checkpoint of this experiment below"),
        (["--ckpt_path=none.ckpt"], "none.ckpt"),
        (["--ckpt_path=README.md"], "README.md is no checkpoint"),
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
