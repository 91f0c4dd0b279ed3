"""`lit-tr report`: one HTML page about runs."""

import argparse
from pathlib import Path

from lit_tr.commands.parsing import PlainParser
from lit_tr.errors import UserError
from lit_tr.evaluation.page import find, judge_of, with_scores, write_page

NAME = "report.html"


def run(args: list[str]) -> None:
    """Write the page, and say where it is."""
    options = _parser().parse_args(args)
    output = Path(options.output or (Path(options.run[0]) / NAME if len(options.run) == 1 else NAME))
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output}: the report is one HTML file; give a name that ends in .html")
    if options.prompts < 1:
        raise UserError(f"--prompts {options.prompts}: at least 1")
    judge = judge_of(options.judge) if options.judge else None
    found = find(options.run)
    page, *pictures = write_page(with_scores(found, judge) if judge else found, output, options.prompts)
    print(f"Report: {page}")
    if pictures:
        print(f"Pictures: {page.with_name(page.stem)}_*.png ({len(pictures)})")


def _parser() -> argparse.ArgumentParser:
    own = PlainParser(
        prog="lit-tr report",
        description="Write one HTML page about runs: quality against distance, win rates, curves, responses. "
        "It needs no network; a PNG of each picture lies beside it.",
    )
    own.add_argument(
        "run", nargs="+", metavar="RUN", help="folder of a run, of judgements or of responses, or one above some"
    )
    own.add_argument("--output", help=f"the page; default: {NAME} in RUN, or here if there are several")
    own.add_argument("--prompts", type=int, default=200, help="most prompts in the reader; %(default)s")
    own.add_argument("--judge", help="function (prompt, response) -> score by import path, for responses without one")
    return own
