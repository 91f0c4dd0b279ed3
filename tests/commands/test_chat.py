import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from lit_tr.commands import main
from lit_tr.commands.chat import Conversation
from lit_tr.evaluation.policies import Checkpoint, open_policies
from lit_tr.evaluation.sampling import Sampling
from tests.commands.test_export import train

FAST = ["--max_new_tokens", "8"]
SAMPLING = Sampling(max_new_tokens=8)
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(llama_dir, tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), llama_dir)


@pytest.fixture
def talk(checkpoint):
    """A conversation with a checkpoint's policy whose tokenizer has a chat template, and what it prints."""
    saved, screen = Checkpoint(checkpoint), io.StringIO()
    policies = {name: saved.policy(name) for name in ("policy", "reference", "initial")}
    for one in policies.values():
        one.tokenizer.chat_template = TEMPLATE
    given = {name: lambda one=one: one for name, one in policies.items()}
    return Conversation(given, "policy", SAMPLING, "Be short.", Console(file=screen, width=100)), screen


def typed(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_answers_stand_in_a_pipe(monkeypatch, capsys):
    typed(monkeypatch, "Describe a cold river.", "", "/quit", "never")
    main(["chat", "embedded:tiny", "--max_new_tokens", "60"])
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert len(shown.out.splitlines()) == 1
    assert "each line is a prompt of its own" in shown.err


def test_the_reference_and_the_initial_policy_answer_beside_it(checkpoint, monkeypatch, capsys):
    typed(monkeypatch, "Describe a cold river.", "/reference", "/initial", "/beside")
    main(["chat", str(checkpoint), *FAST])
    shown = capsys.readouterr().out
    own, _, rest = shown.partition("\nreference: ")
    reference, _, rest = rest.partition("\ninitial: ")
    initial, _, beside = rest.partition("\npolicy: ")
    assert len({own, reference, initial}) == 3
    again = beside.partition("\nreference: ")[0], *beside.partition("\nreference: ")[2].split("\ninitial: ")
    assert [text.strip() for text in again] == [text.strip() for text in (own, reference, initial)]


def test_a_conversation_remembers_its_own_turns_alone(talk):
    talk, screen = talk
    talk.say("Describe a cold river.")
    first = talk.turns
    assert [turn["role"] for turn in first] == ["system", "user", "assistant"]
    assert first[2]["content"] == screen.getvalue().strip()
    talk.other("initial")
    assert talk.turns == first
    talk.say("And a warm one?")
    assert talk.turns[:3] == first
    assert [turn["role"] for turn in talk.turns[3:]] == ["user", "assistant"]
    talk.reset()
    talk.say("Describe a cold river.")
    assert talk.turns == first  # the same seed and place in the conversation


def test_answers_stand_beside_each_other_in_a_wide_terminal(talk):
    talk, _ = talk
    talk.say("Describe a cold river.")
    for width, side_by_side in ((120, True), (60, False)):
        talk.shown = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        talk.beside()
        heads = [line for line in talk.shown.file.getvalue().splitlines() if "policy" in line and "initial" in line]
        assert bool(heads) == side_by_side


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/reference", "say something first"),
        ("/nonsense", "there is no /nonsense"),
        ("/help", "/beside"),
    ],
)
def test_commands_that_cannot_be_obeyed_are_said_and_the_conversation_goes_on(monkeypatch, capsys, line, said):
    typed(monkeypatch, line, "Describe a cold river.", "/initial")
    main(["chat", "embedded:tiny", *FAST])
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert "initial: only a checkpoint has it" in shown.err
    assert shown.out.strip()


def test_text_is_streamed_and_the_same_as_without(tokenizer):
    [policy] = open_policies(["embedded:tiny"])
    from lit_tr.data import Objects
    from lit_tr.evaluation.prompts import read_prompts

    [prompt] = read_prompts(Objects([{"prompt": "Describe a cold river."}]), policy.reader(SAMPLING)).found
    pieces = []
    whole = policy.say(prompt, Sampling(max_new_tokens=60), pieces.append)
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 3
    assert isinstance(policy.tokenizer, type(AutoTokenizer.from_pretrained(tokenizer.name_or_path)))


@pytest.mark.slow
def test_a_terminal_gets_a_prompt(tmp_path):
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "lit_tr", "chat", "embedded:tiny"]
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path)
    os.close(inner)
    os.write(outer, b"Describe a cold river.\n/quit\n")
    shown = b""
    try:
        while chunk := os.read(outer, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert b"Talking to embedded:tiny" in shown
    assert shown.count(b"> ") >= 2
