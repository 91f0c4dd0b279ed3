import json

from lit_tr.data import Objects
from lit_tr.evaluation.exchange import write_formats
from lit_tr.evaluation.prompts import Reader, read_prompts
from lit_tr.evaluation.responses import Response

ROWS = [{"uid": "u1", "prompt": " Name a river. "}, {"uid": "u2", "prompt": "Und einen Fluß?"}]


def written(tmp_path, *formats, tokens=3):
    prompts = read_prompts(Objects(ROWS), Reader()).found
    responses = [
        Response(one.id, one.shown, f"r{one.id}{sample}", sample, "mine", tokens, True)
        for one in prompts
        for sample in (0, 1)
    ]
    return write_formats(formats, responses, prompts, tmp_path / "mine.jsonl")


def test_alpaca_eval_has_the_instruction_as_the_row_has_it_and_a_file_for_each_sample(tmp_path):
    files = written(tmp_path, "alpaca_eval")
    assert [str(file.relative_to(tmp_path)) for file in files] == ["alpaca_eval/mine.json", "alpaca_eval/mine-1.json"]
    assert json.loads(files[0].read_text()) == [
        {"dataset": "lit_tr", "instruction": " Name a river. ", "output": "ru10", "generator": "mine"},
        {"dataset": "lit_tr", "instruction": "Und einen Fluß?", "output": "ru20", "generator": "mine"},
    ]
    assert [row["generator"] for row in json.loads(files[1].read_text())] == ["mine-1", "mine-1"]


def test_arena_hard_finds_questions_by_uid_and_models_by_the_name_of_the_file(tmp_path):
    """As gen_judgment.py of v2.0 reads them: `messages[-1].content.answer`, `model`, `uid`."""
    files = written(tmp_path, "arena_hard")
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert files[0].name == "mine.jsonl"
    assert {row["model"] for row in rows} == {files[0].stem}
    answers = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows}
    assert answers == {"u1": "ru10", "u2": "ru20"}
    assert rows[0]["messages"][0] == {"role": "user", "content": " Name a river. "}
    assert len({row["ans_id"] for row in rows}) == 2


def test_arena_hard_of_the_first_version(tmp_path):
    """As gen_judgment.py of v0.1 reads them: `choices[0].turns[i].content`, `model_id`, `question_id`."""
    rows = [json.loads(line) for line in written(tmp_path, "arena_hard_v01")[0].read_text().splitlines()]
    assert [(row["question_id"], row["model_id"]) for row in rows] == [("u1", "mine"), ("u2", "mine")]
    assert [turn["content"] for turn in rows[0]["choices"][0]["turns"]] == ["ru10"]


def test_a_length_that_a_server_did_not_say_is_left_out(tmp_path):
    """A token_len that is null would stop show_result.py."""
    for tokens, expected in ((None, {}), (3, {"token_len": 3})):
        first, second = (
            json.loads(written(tmp_path, one, tokens=tokens)[0].read_text().splitlines()[0])
            for one in ("arena_hard", "arena_hard_v01")
        )
        assert first["metadata"] == expected
        assert second["choices"][0]["turns"][0] == {"content": "ru10", **expected}
