"""A report: one HTML file that needs no network, and its pictures as PNG beside it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_tr.evaluation.best_of_n import BestOfN, frontier
from lit_tr.evaluation.kl import over_prompts
from lit_tr.evaluation.page import outcomes, proxies, tables
from lit_tr.evaluation.page.found import Found, Row
from lit_tr.evaluation.page.groups import NORMAL, Group, behind, grouped, points
from lit_tr.evaluation.page.pictures import Picture, Styles
from lit_tr.evaluation.page.reader import as_json, reader
from lit_tr.evaluation.page.training import training
from lit_tr.evaluation.responses import STEERED
from lit_tr.evaluation.seeds import Mean

HERE = Path(__file__).parent
QUALITIES = ("score", "win_rate")
INITIAL = re.compile(r"(^|-)initial$")
"""Names of the initial policy, as `lit-tr generate` gives them."""
PROMPTS = 200
"""Prompts in the reader, by default."""


def write_page(found: Found, output: str | Path, prompts: int = PROMPTS) -> list[Path]:
    """Write the report on what was found.

    Args:
        found: of `find`.
        output: the HTML file.
        prompts: most prompts in the reader.

    Returns:
        The files: the page, and a PNG for each of its pictures.
    """
    page, groups = Path(output), grouped(found.runs)
    shown = _sections(found, groups)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_rendered(found, groups, shown, reader(found, prompts)), encoding="utf-8")
    files = [page.with_name(f"{page.stem}_{one.name}.png") for one in _pictures(shown)]
    for path, picture in zip(files, _pictures(shown), strict=True):
        picture.png(path)
    return [page, *files]


def _sections(found: Found, groups: Sequence[Group]) -> dict[str, Any]:
    """Return the pictures and tables of each section; what cannot be shown is empty."""
    styles, best, steered = Styles.of(groups), best_of_n(found), steered_policies(found)
    beside: dict[str, Any] = {"score": (best, steered), "win_rate": ([], {})}
    known = {one: {group.label: points(group, one) for group in groups} for one in QUALITIES}
    drawn = [
        outcomes.frontier(one, known[one], groups, styles, *beside[one])
        for one in QUALITIES
        if any(known[one].values()) or beside[one][1]
    ]
    bars, beside = outcomes.criteria(found.comparisons), proxies.together(found.scores)
    return {
        "quality": drawn,
        "ends": [table for table in (tables.ends(groups), *(tables.peaks(groups, one) for one in QUALITIES)) if table],
        "best": best,
        "win_rates": tables.win_rates(found.comparisons),
        "criteria": [bars] if bars else [],
        "proxies": [*proxies.over_rounds(found.runs), *proxies.curves(beside)],
        "correlations": proxies.correlations(beside),
        "training": list(training(groups, styles)) if groups else [],
    }


def _pictures(shown: dict[str, Any]) -> list[Picture]:
    return [*shown["quality"], *shown["criteria"], *shown["proxies"], *shown["training"]]


def best_of_n(found: Found) -> list[BestOfN]:
    """Return the best-of-N frontier of the initial policy, from its scored samples; empty without several a prompt."""
    scores: dict[tuple[str, str], list[float]] = {}
    for name, rows in found.responses.items():
        for row in rows:
            if row.get("score") is not None and INITIAL.search(row.get("policy", name)):
                scores.setdefault((name, str(row["id"])), []).append(row["score"])
    several = [some for some in scores.values() if len(some) > 1]
    return frontier(several) if len(several) > 1 else []


def steered_policies(found: Found) -> dict[str, list[outcomes.Steered]]:
    """Return steered policies whose responses have scores, by the policy that they are steered towards."""
    lines: dict[str, list[outcomes.Steered]] = {}
    for name, rows in found.responses.items():
        known = [row for row in rows if None not in (row.get("strength"), row.get("score"), row.get("kl"))]
        if known:
            towards, _, more = name.partition(STEERED)
            means = [_mean([(row[key], row["id"]) for row in known]) for key in ("kl", "score")]
            line = lines.setdefault(" ".join([towards, *more.split()[1:]]), [])
            line.append(outcomes.Steered(known[0]["strength"], *means))
    return {name: sorted(line) for name, line in lines.items()}


def _mean(values: Sequence[tuple[float, str]]) -> Mean:
    found = over_prompts(*zip(*values, strict=True))
    half = NORMAL * found.standard_error
    return Mean(found.mean, found.mean - half, found.mean + half)


def _missing(groups: Sequence[Group], shown: dict[str, Any], responses: Row) -> Iterator[str]:
    """Yield a line for each part that is left out: what to run to have it."""
    if not shown["quality"]:
        yield (
            "Quality against distance: no evaluation.jsonl with a score or win rate and a divergence. Train with the "
            "callback lit_tr.evaluation.GenerationReport and a judge."
        )
    elif not shown["best"]:
        yield (
            "The best-of-N line: no scored samples of the initial policy, several a prompt. Sample them with lit-tr "
            "generate RUN:initial --samples 16 into the folder of a run, and give lit-tr report a --judge."
        )
    for run in (run for group in groups for run in behind(group)):
        yield f"The end of {run.folder}: other seeds were evaluated later. Go on with it by lit-tr fit --ckpt_path."
    if not shown["win_rates"]:
        yield (
            "Win rates and criteria: no win_rates.json. Let lit-tr judge compare two files of responses, into the "
            "folder of a run."
        )
    if not shown["proxies"]:
        yield (
            "Rewards beside another one: no scores.json of two rewards. lit-tr score --against writes one of some "
            "policies, such as the checkpoints of a run."
        )
    if not shown["training"]:
        yield "Curves of training: no metrics.csv. It is in the folder that lit-tr fit writes."
    if not responses["rows"]:
        yield "Responses: no file of responses. lit-tr generate writes one."
    elif not responses["scale"]:
        yield "Shaded tokens: no token_rewards in the responses. lit-tr generate --token_rewards writes them."


def _rendered(found: Found, groups: Sequence[Group], shown: dict[str, Any], responses: Row) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        **shown,
        title=_title(found, groups),
        groups=groups,
        missing=list(_missing(groups, shown, responses)),
        reader=responses,
        data=as_json(responses),
        style=(HERE / "page.css").read_text(),
        script=(HERE / "reader.js").read_text(),
        image=_image,
    )


def _title(found: Found, groups: Sequence[Group]) -> str:
    if len(found.runs) == 1:
        return f"{groups[0].label}: {found.runs[0].folder.resolve().name}"
    if found.runs:
        return f"{len(found.runs)} runs of {len(groups)} configurations"
    return " and ".join(" over ".join(one.names) for one in found.comparisons) or "Responses"


def _image(picture: Picture) -> str:
    """Return a picture as an address that holds it: each is a document of its own, so that no names in two collide."""
    from base64 import b64encode

    return "data:image/svg+xml;base64," + b64encode(picture.svg().encode()).decode()
