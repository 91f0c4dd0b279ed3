import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.judgements import Judgement, join, judge_all, read, write
from lit_tr.evaluation.judges import ByScore, FunctionScorer
from lit_tr.evaluation.responses import Response


def responses(*keys, text="answer"):
    return [Response(f"{one}", f"prompt {one}", f"{text} {one}.{sample}", sample) for one, sample in keys]


def test_pairs_are_joined_by_prompt_and_sample():
    a = responses((1, 0), (1, 1), (2, 0), (3, 0))
    b = responses((3, 0), (1, 1), (1, 0), (4, 0), text="other")
    found = join(a, b)
    assert [(one.id, one.sample, one.response_a, one.response_b) for one in found.pairs] == [
        ("1", 0, "answer 1.0", "other 1.0"),
        ("1", 1, "answer 1.1", "other 1.1"),
        ("3", 0, "answer 3.0", "other 3.0"),
    ]
    assert (found.only_a, found.only_b) == (1, 1)


def test_what_does_not_go_together_is_named():
    with pytest.raises(UserError, match="no id and sample is in both"):
        join(responses((1, 0)), responses((2, 0)))
    with pytest.raises(UserError, match="id '1' names one prompt in the first file and another one"):
        join([Response("1", "a", "x")], [Response("1", "b", "x")])


def test_judgements_come_back_from_their_file(tmp_path):
    pairs = join(responses((1, 0), (2, 0)), responses((1, 0), (2, 0), text="o")).pairs
    judge = ByScore(FunctionScorer(lambda prompt, response: len(response), "length"))
    written = judge_all(judge, pairs, "detail")
    write(tmp_path / "judgements.jsonl", written)
    found = read(tmp_path)
    assert [(one.id, one.preference, one.criterion, one.judge) for one in found] == [
        ("1", 1.0, "detail", "length"),
        ("2", 1.0, "detail", "length"),
    ]
    assert [list(one.orders) for one in found] == [[1.0, None]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["judgements.jsonl"]
    assert isinstance(written[0], Judgement)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "file.jsonl:2: this is no judgement"),
        ("[1]", "file.jsonl:2: this is no judgement"),
        ('{"id": "1"}', "file.jsonl:2: this is no judgement"),
        ('{"id": "1", "preference": 2, "response_a": "", "response_b": ""}', r"must be null or in \[0, 1\]"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, says):
    path = tmp_path / "file.jsonl"
    path.write_text('{"id": "0", "preference": null, "response_a": "", "response_b": ""}\n' + line + "\n")
    with pytest.raises(UserError, match=says):
        read(path)
    with pytest.raises(UserError, match="no file of judgements"):
        read(tmp_path / "none")
