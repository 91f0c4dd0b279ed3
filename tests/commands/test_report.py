import pytest

from lit_tr.commands import main
from tests.evaluation.page.folders import evaluated, lines, response, run
from tests.runs import fails, folder


def test_the_page_of_one_run_lies_in_its_folder_and_of_several_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "r", [evaluated(0, 0.0, 1.0), evaluated(8, 2.0, 3.0)], metrics=False)
    prompt = "Describe a cold river."
    rows = [response(i, " It is icy." * k, "r-initial", k, prompt=prompt) for i in range(2) for k in range(2)]
    lines(tmp_path / "s/initial.jsonl", rows)
    main(["report", "r"])
    assert "Report: r/report.html\nPictures: r/report_*.png (1)\n" in capsys.readouterr().out
    main(["report", "r", "s", "--judge", "lit_tr.embedded.task.GoldReward"])
    assert "best of N samples of the initial policy" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report_frontier_score.png").exists()


@pytest.mark.slow
def test_a_short_run_of_the_quickstart_has_its_report(tmp_path, capsys):
    options = ["--trainer.max_steps=4", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    small = ["--data.train.size=64", "--data.val.size=16", "--update.every_n_steps=2"]
    main(["fit", "--config=quickstart", f"--trainer.default_root_dir={tmp_path}", *options, *small])
    made = folder(tmp_path)
    assert f"lit-tr report {made}" in capsys.readouterr().out
    main(["report", str(made)])
    html = (made / "report.html").read_text()
    assert "TR-DPO, soft (alpha 0.6, every 2), beta 0.3" in html
    assert "Jump of the reward margin" in html
    assert (made / "report_margin_jump.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none"], "RUN none: there is no such folder"),
        (["."], "RUN .: neither a run nor judgements nor responses"),
        ([".", "--output", "page.pdf"], "--output page.pdf: the report is one HTML file"),
        ([".", "--prompts", "0"], "--prompts 0: at least 1"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "report", *args)
