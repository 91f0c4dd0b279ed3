import io
import math

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from lit_tr.data import PreferenceDataModule
from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.cache import TokenCache
from lit_tr.data.inspection import WHOLE, Lengths
from lit_tr.data.inspection_report import Report, draw
from lit_tr.data.tokenization import NO_ROOM
from lit_tr.embedded import TINY

ROWS = [
    {"prompt": "River?", "chosen": " Cold.", "rejected": " Hot.", "margin": 1.0},
    {"prompt": "River?", "chosen": " Hot.", "rejected": " Cold."},
    {"prompt": "A long river? " * 20, "chosen": " Icy and wide.", "rejected": " Hot."},
    {"prompt": "River?", "chosen": " Cold.", "rejected": " Icy and wide. " * 20},
]


def reported(tmp_path, train=None, color=False, unread=(), **options):
    data = PreferenceDataModule(TINY, ROWS, cache_dir=str(tmp_path), max_length=40, **options)
    cache = data.cached("train", math.inf)
    cache = TokenCache(cache._data, cache.bad_rows, unread)
    console = Console(file=io.StringIO(), width=80, force_terminal=color, color_system="standard" if color else None)
    Report("train", data, data.sources["train"], cache, console).print(train and cache, examples=1)
    return console.file.getvalue(), cache


def test_the_report_of_rows(tmp_path):
    said, cache = reported(tmp_path, unread=("id", "model"), batch_size=4)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "rows 4: 3 kept, 1 left out" in lines
    assert "not read columns that no format reads: id, model" in lines
    assert "conflicts 1 (an earlier example, chosen and rejected exchanged); first:" in lines
    assert "duplicates 0 (an earlier example again)" in lines
    tokens = sum(int(cache.column(name).sum()) for name in ("prompt", "chosen", "rejected"))
    # of 4 rows the one that is refused is lost, and one of its prompts is truncated
    assert f"40 (set) 1 (25.0%) 1 (25.0%) {tokens:,}" in lines
    whole = int(cache.column("truncated").sum()) + tokens
    assert any(line.startswith("4096 ") and "0 (0.0%)" in line and int(line.split()[-1]) >= whole for line in lines)
    longest = int((cache.column("prompt") + cache.column("truncated")).max())
    assert any(line.startswith(f"prompt {cache.column('prompt')[0]} ") and f" {longest} " in line for line in lines)
    assert "batches 1 of 4 examples" in lines
    # the two examples of one prompt share it
    assert f"padding packed {tokens - cache.column('prompt')[0]} tokens an epoch, padded {6 * 40}:" in said.replace(
        "padding    ", "padding "
    )
    assert not any(line.endswith(" ") for line in said.splitlines()[:10])


def test_scored_tokens_are_underlined_on_a_terminal(tmp_path):
    said, _ = reported(tmp_path, color=True)
    assert "\x1b[4m" in said
    assert "⟦" in said
    assert "\x1b" not in reported(tmp_path)[0]


def test_kl_rows_are_left_out_of_the_padding_and_that_is_said(tmp_path):
    assert "saved (without KL rows)" in reported(tmp_path, mismatched=True, batch_size=2)[0]
    assert "without KL rows" not in reported(tmp_path)[0]


def test_the_picture_hides_nothing(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (drawn.append(self), save(self, *args, **more)))
    lengths = Lengths(*map(np.asarray, ([5, 8, 30], [4, 9, 2], [-1, -1, -1], [200, -1])))
    draw("val", lengths, 64, tmp_path / "new" / "lengths.png")
    assert (tmp_path / "new" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    (axes,), (legend,) = drawn[0].axes, drawn[0].legends
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:2] == ["prompt (median 8)", "chosen (median 4)"]
    # 9, 17, 32 and 200 tokens, and one of which nobody knows
    assert labels[2:] == [f"{WHOLE} (median 24)", f"max_length 64: 25.0% of {WHOLE} are above"]
    assert "tokens" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()
    assert len({(line.get_linestyle(), str(line.get_color())) for line in axes.lines}) == len(axes.lines) == 4


def test_what_the_costs_cannot_tell_is_said(tmp_path):
    data = PreferenceDataModule(TINY, ROWS, cache_dir=str(tmp_path), truncate_responses=True)
    cache = data.cached("train")
    bad = BadRows(math.inf, 6, [BadRow("a", NO_ROOM), BadRow("b", NO_ROOM), BadRow("c", "no 'chosen'")])
    console = Console(file=io.StringIO(), width=80)
    Report("train", data, data.sources["train"], TokenCache(cache._data, bad), console).print()
    said = " ".join(console.file.getvalue().split())
    assert "2 refused rows, of unknown length, count as lost; responses count as they are truncated now" in said
