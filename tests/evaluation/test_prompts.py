import pytest
from transformers import AutoTokenizer

from lit_tr.data import Objects, Rows
from lit_tr.data.process import RowProcessor
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.evaluation.prompts import Reader, read_prompts, source_of
from lit_tr.evaluation.responses import Response

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TURNS = "\n\nHuman: Describe a cold river.\n\nAssistant: "
ASK, ANSWER = {"role": "user", "content": "Describe a cold river."}, {"role": "assistant", "content": "Icy."}


@pytest.fixture
def chatty(llama_dir):
    found = AutoTokenizer.from_pretrained(llama_dir)
    found.chat_template = TEMPLATE
    return found


def shown(rows, tokenizer=None, **options):
    return [one.shown for one in read_prompts(Objects(rows), Reader(tokenizer), **options).found]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Describe a cold river."},
        {"instruction": "Describe a cold river."},
        {"instruction": "Describe a cold river.", "output": "Icy.", "generator": "x"},
        {"turns": [{"content": "Describe a cold river."}]},
        {"messages": [ASK]},
        {"messages": [ASK, ANSWER]},
        {"prompt": "Describe a cold river.", "chosen": "Icy.", "rejected": "Hot."},
        {"prompt": "Describe a cold river.", "chosen": "Icy.", "rejected": "Icy."},  # bad to train on, fine to ask
        {"chosen": f"{TURNS}a", "rejected": f"{TURNS}b"},
    ],
)
def test_prompts_of_rows_of_any_format(row, chatty):
    assert shown([row], chatty) == [[ASK]]


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_has_the_ids_that_it_has_in_training(chat, chatty, tokenizer):
    """Of a prompt whose last token does not join the first one of a response."""
    one = chatty if chat else tokenizer
    row = {"prompt": "Describe a cold river.", "chosen": "Icy.", "rejected": " It is hot.", "system": "Be short."}
    [prompt] = read_prompts(Objects([row]), Reader(one)).found
    [trained] = RowProcessor(one)(next(Objects([row]).records()))
    assert prompt.ids == trained.prompt
    assert (prompt.chosen, prompt.rejected) == ("Icy.", " It is hot." if not chat else "It is hot.")


def test_text_stays_text_where_the_tokenizer_or_the_source_makes_no_chat(chatty, tokenizer):
    row = {"prompt": "Describe a cold river."}
    assert shown([row], tokenizer) == [row["prompt"]]
    [prompt] = read_prompts(Objects([row], chat=False), Reader(chatty)).found
    assert (prompt.shown, prompt.ids) == (row["prompt"], tokenizer(row["prompt"])["input_ids"])


def test_ids_are_the_rows_own_if_all_have_one_and_else_numbers():
    named = [{"id": 7, "prompt": "a"}, {"uid": "x", "prompt": "b"}]
    ids = [
        [one.id for one in read_prompts(Objects(rows), Reader()).found] for rows in (named, [*named, {"prompt": "c"}])
    ]
    assert ids == [["7", "x"], ["0", "1", "2"]]
    twice = [{"id": 7, "prompt": "a"}, {"id": 7, "prompt": "b"}]
    assert [one.id for one in read_prompts(Objects(twice), Reader()).found] == ["0", "1"]


def test_what_is_left_out_is_counted():
    rows = [
        {"prompt": "a"},
        {"x": 1},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "d"},
        {"prompt": "e"},
    ]
    found = read_prompts(Objects(rows), Reader(), max_bad_rows=1)
    assert ([one.id for one in found.found], found.repeated, found.bad.rows) == (["0", "3", "4"], 1, 5)
    assert found.bad.reasons.startswith("1 x no column holds a prompt, such as prompt, messages")
    assert len(read_prompts(Objects(rows), Reader(), most=2, max_bad_rows=1).found) == 2
    with pytest.raises(UserError, match=r"1 of 5 rows are bad .* by max_bad_rows, now 0.01"):
        read_prompts(Objects(rows), Reader())
    with pytest.raises(UserError, match="there are no prompts"):
        read_prompts(Objects([]), Reader())


def test_long_prompts_are_truncated_as_in_training(chatty, tokenizer):
    text = "Describe a cold river. " * 4
    [prompt] = read_prompts(Objects([{"prompt": text}]), Reader(tokenizer, 5)).found
    assert prompt.ids == tokenizer(text)["input_ids"][-5:]
    assert prompt.truncated
    assert prompt.shown == text
    chat = [{"role": "system", "content": "s"}, ASK, ANSWER, ASK]
    [prompt] = read_prompts(Objects([{"messages": chat}]), Reader(chatty, 40)).found
    assert chatty.decode(prompt.ids) == chatty.apply_chat_template(
        [chat[0], ASK], tokenize=False, add_generation_prompt=True
    )
    with pytest.raises(UserError, match="the prompt is too long"):
        read_prompts(Objects([{"messages": chat}]), Reader(chatty, 3))


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\n  b c\n")
    assert [one.shown for one in read_prompts(source_of(str(path)), Reader()).found] == [
        [{"role": "user", "content": x}] for x in ("a", "b c")
    ]
    with pytest.raises(UserError, match="the prompts cannot be read"):
        source_of(str(tmp_path / "none.txt"))


def test_a_source_in_memory_and_a_file_of_responses(tmp_path):
    source = SyntheticPairs(size=5)
    found = read_prompts(source, Reader()).found
    assert [one.shown for one in found] == list(dict.fromkeys(row["prompt"] for _, row in source.rows()))
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(Response("a", "x", text, sample).line() + "\n" for sample, text in enumerate("rs")))
    assert [one.id for one in read_prompts(Rows(path), Reader()).found] == ["a"]
