"""AlpacaEval's annotation files, and its own length-controlled win rate where it can be had."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lit_tr.data.rows.opening import open_file, reading
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.judgements import Judgement

ORDER = "alpaca_eval_gpt4_baseline.json"
"""File of the hub that has the evaluation set in its order."""
TEXTS = ("instruction", "output_1", "output_2")
CANNOT = (
    "AlpacaEval's own length-controlled win rate cannot be had here ({}): it needs `pip install alpaca-eval` and the "
    "files df_gamed.csv and alpaca_eval_gpt4_baseline.json of its data set, from the Hugging Face hub or its cache"
)


class Annotations(NamedTuple):
    """What a file of annotations holds.

    Args:
        judgements: of the model (`output_2`) against the baseline (`output_1`); those without a preference as well.
        model: name of the model.
        baseline: name of the baseline.
    """

    judgements: list[Judgement]
    model: str
    baseline: str


def read_annotations(path: str | Path) -> Annotations:
    """Read annotations as AlpacaEval writes them: `annotations.json`, or JSON lines; compressed or not.

    `preference` is in [1, 2], the judge's weight for `output_2`; 1.5 and 0 are ties, null and NaN are no preference.
    The instruction is the prompt; several rows with one instruction are its samples.

    Raises:
        UserError: the file cannot be read, or a row lacks a column or has another preference; the message names it.
    """
    rows = [(f"{path}, row {number}", row) for number, row in enumerate(_rows(str(path)), 1)]
    if not rows:
        raise UserError(f"{path}: there are no annotations in it")
    seen: Counter[str] = Counter()
    judgements = []
    for where, row in rows:
        judgements.append(_judgement(row, seen[str(row.get("instruction"))], where))
        seen[row["instruction"]] += 1
    return Annotations(judgements, _only("generator_2", rows, path), _only("generator_1", rows, path))


def _rows(path: str) -> Iterator[dict[str, Any]]:
    file = open_file(path)
    try:
        with reading(path), suppress(StopIteration):
            while True:
                if (row := next(file)) is not None:
                    yield row
    except BadRowError as error:
        raise UserError(f"{path}: {error}") from error
    finally:
        file.close()


def _judgement(row: dict[str, Any], sample: int, where: str) -> Judgement:
    missing = [name for name in (*TEXTS, "preference") if name not in row]
    if missing:
        raise UserError(f"{where}: there is no {', '.join(missing)}; annotations have {', '.join(TEXTS)}, preference")
    wrong = [name for name in TEXTS if not isinstance(row[name], str)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is no text but {row[wrong[0]]!r}")
    preference = _preference(row["preference"], where)
    return Judgement(
        id=row["instruction"],
        sample=sample,
        preference=preference,
        response_a=row["output_2"],
        response_b=row["output_1"],
        prompt=row["instruction"],
        unparsable=(int(preference is None), 0),
        judge=str(row.get("annotator") or ""),
    )


def _preference(value: Any, where: str) -> float | None:
    """Return the preference for `output_2` in [0, 1]."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise UserError(f"{where}: preference is {value!r}; it must be in [1, 2], or 0 for a tie, or null")
    return 0.5 if value == 0 else value - 1.0


def _only(column: str, rows: Sequence[tuple[str, dict[str, Any]]], path: str | Path) -> str:
    names = sorted({str(row[column]) for _, row in rows if row.get(column) is not None})
    if len(names) > 1:
        raise UserError(f"{path}: {column} must be one model, and there are {', '.join(names)}; give a file for each")
    return names[0] if names else {"generator_1": "output_1", "generator_2": "output_2"}[column]


def published(path: str | Path) -> dict[str, float]:
    """Return AlpacaEval's own figures of annotations, by its package: `length_controlled_winrate` and others, in %.

    Its fit takes the difficulty of an instruction by the number of the row, so rows are put into the order of the
    evaluation set first.

    Raises:
        UserError: the package or its files are not there, or the rows are not those of the evaluation set.
    """
    try:
        from alpaca_eval import constants
        from alpaca_eval.metrics import get_length_controlled_winrate
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(
            "tatsu-lab/alpaca_eval", ORDER, repo_type="dataset", cache_dir=constants.DEFAULT_CACHE_DIR
        )
        place = {row["instruction"]: number for number, row in enumerate(json.loads(Path(file).read_text()))}
        rows = [row for row in _rows(str(path))]
        if sorted(place) != sorted(row.get("instruction", "") for row in rows):
            raise UserError(f"{path}: its instructions are not those of AlpacaEval's evaluation set, each once")
        rows.sort(key=lambda row: place[row["instruction"]])
        return get_length_controlled_winrate(rows, save_weights_dir=None)
    except UserError:
        raise
    except Exception as error:  # of any library that it takes: it goes on without the figure
        raise UserError(CANNOT.format(f"{type(error).__name__}: {str(error)[:200]}")) from error
