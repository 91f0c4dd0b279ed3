from contextlib import nullcontext

import pytest

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.evaluation.prompts import Reader
from lit_tr.evaluation.responses import Response, read
from lit_tr.iteration import SelfInstruct
from lit_tr.iteration.instruct import written

KNOWN = [
    f"Name {number} cold rivers of the {side}." for number in ("two", "three", "four") for side in ("north", "east")
]


def quiet(what, count, done):
    return nullcontext(lambda more: None)


class Writer:
    """A policy that writes what it is told to, one text after the other, and dies where it is told `None`."""

    name, identity = "writer", {}  # noqa: RUF012

    def __init__(self, *texts, finished=True):
        self.texts, self.finished, self.asked = list(texts), finished, []

    def reader(self, sampling):
        return Reader()

    def respond(self, requests, sampling):
        for prompt, sample in requests:
            self.asked.append(prompt.shown[0]["content"])
            if (text := self.texts.pop(0)) is None:
                raise KeyboardInterrupt
            yield [Response(prompt.id, prompt.shown, text, sample, self.name, finished=self.finished)]


def write(folder, writer, count=2, earlier=(), **more):
    return SelfInstruct(**{"attempts": 2} | more).write(folder, writer, KNOWN, earlier, count, quiet)


NEW = ["Explain how a lock of a canal works.", "Write a short poem on autumn leaves."]


def test_new_prompts_are_asked_for_behind_known_ones(tmp_path):
    writer = Writer(*NEW)
    assert write(tmp_path, writer, shots=3) == NEW
    head, *tasks, last = writer.asked[0].split("\n\n")
    assert [task.partition(": ")[0] for task in tasks] == ["Task 1", "Task 2", "Task 3"]
    assert {task.partition(": ")[2] for task in tasks} < {*KNOWN}
    assert last == "Task 4:"
    assert writer.asked[0] != writer.asked[1]


def test_all_known_ones_are_shown_where_there_are_fewer_than_shots(tmp_path):
    writer = Writer(*NEW)
    write(tmp_path, writer, shots=8)
    assert all(text in writer.asked[0] for text in KNOWN)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (NEW[0], True),
        ("Add two numbers.", False),  # 3 words
        ("Add two small numbers.", True),
        ("word " * 150, True),
        ("word " * 151, False),
        ("Draw a map of the river.", False),
        ("Describe the IMAGE in a sentence.", False),
        ("Describe how one imagines a river.", True),
        ("- Name a river of the south.", False),
        ("Écris une phrase sur la mer.", False),
        ("", False),
    ],
)
def test_filters_by_words(text, fits):
    assert SelfInstruct().suits(text) is fits


@pytest.mark.parametrize(
    ("most", "kept"),
    # 6 of 7 words in their order are those of a known prompt: ROUGE-L 12 / 14
    [(0.8, []), (0.9, ["Name two cold rivers of the south."])],
)
def test_what_is_like_a_known_one_is_left_out(tmp_path, most, kept):
    writer = Writer("Name two cold rivers of the south.", NEW[0], NEW[0])
    assert write(tmp_path, writer, 3, attempts=1, most_overlap=most) == [*kept, NEW[0]]


def test_what_is_like_an_earlier_rounds_is_left_out(tmp_path):
    assert write(tmp_path, Writer(*NEW), attempts=1, earlier=[NEW[0].upper()]) == NEW[1:]


def test_more_are_asked_for_until_there_are_enough(tmp_path):
    writer = Writer("No.", NEW[0], NEW[0], NEW[1])
    assert write(tmp_path, writer) == NEW
    assert len({*writer.asked}) == 4
    assert write(tmp_path / "fewer", Writer("No.", NEW[0], "No.", "No.")) == NEW[:1]


def test_after_a_stop_no_row_is_asked_for_again(tmp_path):
    stopped = Writer(NEW[0], None)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stopped)
    assert [one.response for one in read(tmp_path / "0.jsonl")] == NEW[:1]
    with (tmp_path / "0.jsonl").open("a") as file:
        file.write('{"id": "1", "prompt": "cut sho')  # kill -9 within a line
    again = Writer(NEW[1])
    assert write(tmp_path, again) == NEW
    assert again.asked == stopped.asked[1:]
    assert write(tmp_path, Writer()) == NEW


def test_a_prompt_whose_end_is_missing_is_left_out(tmp_path):
    writer = Writer("Explain how a lock of a", f"{NEW[1]}\n\nTask 10: Explain", finished=False)
    assert write(tmp_path, writer, attempts=1) == NEW[1:]


def test_no_prompt_at_all_is_named(tmp_path):
    with pytest.raises(UserError, match="none of the 4 prompts that writer wrote passes the filters"):
        write(tmp_path, Writer(*["No."] * 4))


def test_a_model_writes_them(tmp_path):
    def by(shots):
        [policy] = open_policies([TINY], Loading("float32", device="cpu"), ["prompts of round 1"])
        how = {"shots": shots, "max_new_tokens": 24, "least_words": 1, "temperature": 1.0, "most_overlap": 1.0}
        return SelfInstruct(**how).write(tmp_path / str(shots), policy, KNOWN, [], 3, quiet)

    found = by(2)
    assert 0 < len({*found}) == len(found) <= 3
    answers = [written(one.response) for file in sorted((tmp_path / "2").glob("*.jsonl")) for one in read(file)]
    assert {*found} <= {*answers}
    assert by(2) == found


@pytest.mark.parametrize(
    "given", [{"shots": 0}, {"attempts": 0}, {"most_words": 2}, {"most_overlap": 0.0}, {"top_p": 0.0}], ids=str
)
def test_mistakes_are_named(given):
    with pytest.raises(UserError):
        SelfInstruct(**given)
