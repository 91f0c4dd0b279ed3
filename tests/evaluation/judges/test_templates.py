import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.judges.llm import OPTIONAL, PAIR_SLOTS, SCORE_SLOTS
from lit_tr.evaluation.judges.templates import CRITERIA, FOLDER, copy_prompts, criterion, template


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("pairwise", PAIR_SLOTS),
        ("pairwise_explained", PAIR_SLOTS),
        ("score", SCORE_SLOTS),
        ("score_explained", SCORE_SLOTS),
    ],
)
def test_the_prompts_of_the_package(name, needed):
    found = template(name, needed, OPTIONAL)
    assert found.slots == needed | {"criterion"}
    [(role, text)] = found.fill({slot: f"<{slot}>" for slot in found.slots})
    assert role == "user"
    assert all(text.count(f"<{slot}>") == 1 for slot in found.slots)


def test_each_file_is_tested():
    assert template("additive", {"prompt", "response"}, set()).slots == {"prompt", "response"}
    assert {path.stem for path in FOLDER.glob("*.txt")} == {
        "additive",
        "pairwise",
        "pairwise_explained",
        "score",
        "score_explained",
    }
    assert {path.stem for path in (FOLDER / "criteria").iterdir()} == {"overall", *CRITERIA}
    assert len({criterion(name).text for name in ("overall", *CRITERIA)}) == 6


def own(folder, text):
    (folder / "mine.txt").write_text(text)
    return str(folder / "mine.txt")


def test_roles_and_slots_of_a_file_of_ones_own(tmp_path):
    found = template(
        own(tmp_path, '### system\nBe fair. {"a": 1}\n### user\n{prompt} {first}\n'), {"prompt", "first"}, set()
    )
    messages = found.fill({"prompt": "{first} and {x}", "first": "F"})
    assert messages == (("system", 'Be fair. {"a": 1}'), ("user", "{first} and {x} F"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Judge {prompt}", "begins with a line such as `### user`"),
        ("", "begins with a line"),
        ("### user\n{prompt}", r"the slot \{first\} is missing"),
        ("### user\n{prompt}{first}{answer}", r"\{answer\} is no slot; slots are \{first\}, \{prompt\}"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        template(own(tmp_path, text), {"prompt", "first"}, set())


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no prompt 'other': give one of additive, "):
        template("other", set(), set())
    with pytest.raises(UserError, match="no criterion 'beauty': give one of coherence, "):
        criterion("beauty")
    with pytest.raises(UserError, match="cannot be read"):
        criterion(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="empty"):
        criterion(own(tmp_path, "\n"))


def test_copies_can_be_changed(tmp_path):
    folder = copy_prompts(tmp_path / "prompts")
    (folder / "criteria" / "wit.txt").write_text("The measure is wit.")
    assert criterion(str(folder / "criteria" / "wit.txt")) == ("wit", "The measure is wit.")
    assert (
        template(str(folder / "pairwise.txt"), PAIR_SLOTS, OPTIONAL).messages
        == template("pairwise", PAIR_SLOTS, OPTIONAL).messages
    )
    with pytest.raises(UserError, match="there already"):
        copy_prompts(folder)
