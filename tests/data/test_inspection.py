import io

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_tr.data import Collator, Rows
from lit_tr.data.inspection import draw, inspect, rendered, report
from lit_tr.data.intake import BadRows, Intake, Layout
from lit_tr.data.reader import Reader


def row(prompt, chosen, rejected, **more):
    return {
        "prompt": f"Describe a {prompt} river.",
        "chosen": f" It is {chosen}.",
        "rejected": f" It is {rejected}.",
        **more,
    }


ROWS = [
    row("big", "icy", "hot"),
    row("big", "icy", "hot"),
    row("big", "hot", "icy"),
    row("cold " * 40, "icy", "hot"),
    row("big", "same", "same"),
    row("old", None, "hot") | {"chosen": None},
    row("new", "a", "b") | {"chosen": None},
]


def found(write_rows, tokenizer, rows=ROWS, show=2, **layout):
    intake = Intake(Reader(tokenizer, max_length=32), Layout(Collator(), **layout or {"batch_size": 3}), BadRows(False))
    source = Rows(write_rows(rows))
    return inspect("train", source, intake, show), source


def text(found, tokenizer, raises=False):
    console = Console(file=io.StringIO(), width=100)
    report(*found, tokenizer, raises, console)
    return console.file.getvalue()


def test_rows_are_counted_by_what_becomes_of_them(write_rows, tokenizer):
    one, source = found(write_rows, tokenizer)
    assert (one.rows, one.examples, one.cut) == (4, 4, 1)
    assert one.duplicates == [f"{source.path}, row 1"]
    assert one.conflicts == [f"{source.path}, row 2"]
    assert one.bad.counts == {"chosen and rejected are equal": 1, "no 'chosen'": 2}
    assert one.bad.first["no 'chosen'"] == f"{source.path}, row 5"
    assert len(one.shown) == 2


def test_lengths_are_those_of_the_examples_and_batches(write_rows, tokenizer):
    one, _ = found(write_rows, tokenizer)
    prompt = len(tokenizer("Describe a big river.").input_ids)
    chosen, rejected = (len(tokenizer(f" It is {word}.").input_ids) + 1 for word in ("icy", "hot"))
    assert list(one.lengths["prompt"]) == [prompt] * 3 + [32 - max(chosen, rejected)]
    assert list(one.lengths["chosen"]) == [chosen, chosen, rejected, chosen]
    assert list(one.lengths["example"])[0] == prompt + chosen + rejected
    assert one.padded == 6 * (prompt + max(chosen, rejected)) + 2 * 32
    # three pairs answer one prompt, which stands in their pack once
    assert one.packed == prompt + 3 * (chosen + rejected) + one.lengths["example"][3]
    packed, _ = found(write_rows, tokenizer, max_tokens=60)
    assert sorted(sum(packed.packs(), [])) == [0, 1, 2, 3]
    assert packed.padded == 0


def test_the_report_says_where_fit_would_stop(write_rows, tokenizer):
    one = found(write_rows, tokenizer)
    said = text(one, tokenizer, raises=True)
    assert "7 rows: 4 kept, 3 bad" in said
    assert f"2 x no 'chosen'; first: {one[1].path}, row 5" in said
    assert "fit stops at the first of them" in said
    assert f"1 duplicates; first: {one[1].path}, row 1" in said
    assert "fit stops" not in text(one, tokenizer)
    share = sum(one[0].lengths["example"]) / (60 * 2)
    assert f"2 packs of up to 60 tokens, {share:.1%} full" in text(
        found(write_rows, tokenizer, max_tokens=60), tokenizer
    )


def test_scored_tokens_are_marked(tokenizer):
    ids = tokenizer(" It is cold.").input_ids
    parted = "|".join(tokenizer.decode([token]) for token in ids)
    assert rendered([], ids, None, tokenizer) == f"⟦{parted}⟧"
    half = [False] * 2 + [True] * (len(ids) - 2)
    assert rendered([], ids, half, tokenizer) == " It is⟦ cold|.⟧"
    assert rendered([], tokenizer("☃").input_ids, None, tokenizer) == "⟦☃⟧"  # one character of several tokens
    escape = tokenizer("\x1b[31m").input_ids
    assert rendered([], escape, [False] * len(escape), tokenizer) == "\\x1b[31m"


def test_a_tokenizer_that_leaves_out_a_first_space():
    backend = Tokenizer(models.WordLevel({"▁River": 0, "▁is": 1, "▁cold": 2}))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert rendered([0], [1, 2], None, tokenizer) == "⟦ is| cold⟧"


@pytest.mark.parametrize("rows", [ROWS[:1], [{"prompt": "Hi", "completion": " Hello", "label": True}]])
def test_a_picture_is_drawn(write_rows, tokenizer, tmp_path, rows):
    one, _ = found(write_rows, tokenizer, rows)
    draw(one, 32, tmp_path / "new" / "lengths.png")
    assert (tmp_path / "new" / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_but_bad_rows(write_rows, tokenizer):
    assert "0 kept, 1 bad" in text(found(write_rows, tokenizer, ROWS[4:5]), tokenizer)
