"""Options of judges, and the judges that they stand for."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc import locate
from typing import Any, get_args

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answers, Asker, LanguageModel
from lit_tr.evaluation.endpoint import Endpoint
from lit_tr.evaluation.judges import ByScore, Judge, LLMJudge, LLMScorer
from lit_tr.evaluation.judges.llm import OPTIONAL, PAIR_SLOTS, SCORE_SLOTS
from lit_tr.evaluation.judges.local import LocalModel
from lit_tr.evaluation.judges.templates import CRITERIA, template
from lit_tr.evaluation.spending import Limits
from lit_tr.rewards import Ensemble, RewardModel, Scorer, as_scorer
from lit_tr.rewards.ensemble import How

CACHE = "answers.sqlite3"
ALL = "all"
PAIRWISE = "pairwise"
LONG = 1024
"""Tokens of an answer that explains itself, whose prompt has `[[` in it."""


@dataclass(frozen=True)
class Chosen:
    """The judges that options stand for.

    Args:
        by_criterion: a judge for each criterion.
        askers: what they ask, and its counts; empty where no language model judges.
        limits: prices of what is asked.
    """

    by_criterion: Mapping[str, Judge]
    askers: tuple[Asker, ...] = ()
    limits: Limits = Limits()

    def spent(self) -> dict[str, Any]:
        """Return what was asked: counts, tokens and cost."""
        counts = [asdict(asker.counts) for asker in self.askers]
        return {
            name: one | {"cost": self.limits.cost_of(one["prompt_tokens"], one["tokens"])}
            for name, one in zip((asker.model.name for asker in self.askers), counts, strict=True)
        }

    def remarks(self) -> Iterator[str]:
        """Yield what the user should know of the questions."""
        for name, one in self.spent().items():
            cost = f", cost {one['cost']:.4f}" if one["cost"] else ""
            yield (
                f"{name}: {one['asked']} questions were asked and {one['cached']} were in the cache; "
                f"{one['prompt_tokens']:,} tokens of questions, {one['tokens']:,} of answers{cost}"
            )
        for asker in self.askers:
            yield from getattr(asker.model, "notes", ())
            if asker.counts.failed:
                why = getattr(asker.model, "last_failure", "")
                yield f"{asker.counts.failed} questions have no answer: {why}. Run again to ask them again"


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Add the options of judges to a parser."""
    kinds = parser.add_argument_group("the judge, one of these")
    kinds.add_argument("--model", help="a language model behind an OpenAI-compatible address, by name")
    kinds.add_argument("--local", metavar="FOLDER", help="a language model of transformers on this machine")
    kinds.add_argument(
        "--reward-model", nargs="+", metavar="FOLDER", help="a sequence classifier; several are an ensemble"
    )
    kinds.add_argument(
        "--judge",
        nargs="+",
        metavar="NAME",
        help="a function (prompt, response) -> score, or a class with score or compare, by import path; several "
        "are an ensemble",
    )
    _add_language(parser.add_argument_group("language models as judges"))
    _add_address(parser.add_argument_group("models behind an address"))
    other = parser.add_argument_group("scores")
    other.add_argument(
        "--temperature-of-scores",
        type=float,
        metavar="T",
        help="preference is sigmoid of the difference over T; 0: the higher score wins; default: 1 for reward models",
    )
    other.add_argument("--ensemble", choices=get_args(How), default="mean", help="default: %(default)s")
    other.add_argument("--device", help="where a local judge runs; default: a GPU if there is one")
    other.add_argument("--batch-size", type=int, default=8, help="of a local judge; default: %(default)s")


def _add_language(group: Any) -> None:
    group.add_argument(
        "--criteria",
        nargs="+",
        default=["overall"],
        metavar="NAME",
        help=f"overall, {', '.join(CRITERIA)}, or text files of your own; `{ALL}` for all of these; a question each",
    )
    group.add_argument(
        "--prompt",
        default=PAIRWISE,
        help="pairwise, pairwise_explained, score, score_explained, or a file of your own (--copy-prompts); those with "
        "{response} rate single responses",
    )
    group.add_argument("--orders", choices=("both", "one"), default="both", help="of a pair; default: %(default)s")
    group.add_argument(
        "--max-tokens", type=int, help="of an answer; default: 1, or 1024 if the prompt asks for [[...]]"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="of answers; default: %(default)s")
    group.add_argument("--repeat", type=int, default=0, metavar="N", help="judge N of the pairs twice")
    group.add_argument("--cache", metavar="FILE", help=f"of answers; default: {CACHE} in the output folder")


def _add_address(group: Any) -> None:
    given = Endpoint.__dataclass_fields__
    group.add_argument("--url", help="address up to /v1; default: OPENAI_BASE_URL, or OpenAI's own")
    group.add_argument(
        "--key-variable",
        default=given["key_variable"].default,
        help="environment variable that holds the key; default: %(default)s",
    )
    for name, kind in (("concurrency", int), ("retries", int), ("timeout", float)):
        group.add_argument(f"--{name}", type=kind, default=given[name].default, help="default: %(default)s")
    group.add_argument("--limit-tokens", type=int, metavar="N", help="most tokens of this run")
    group.add_argument("--limit-cost", type=float, metavar="X", help="most cost of this run; needs --prices")
    group.add_argument(
        "--prices",
        nargs=2,
        type=float,
        default=(0.0, 0.0),
        metavar=("IN", "OUT"),
        help="of a million tokens of questions, and of answers",
    )


def chosen(options: argparse.Namespace, folder: Path) -> Chosen:
    """Return the judges that options stand for.

    Args:
        options: those of `add_judges`.
        folder: where the cache lies by default.

    Raises:
        UserError: none or several kinds of judge are given, or options that one does not take.
    """
    kinds: dict[str, Callable[[argparse.Namespace], Judge | LanguageModel]] = {
        "model": _by_address,
        "local": _local,
        "reward_model": _rewards,
        "judge": _own,
    }
    given = [name for name in kinds if getattr(options, name)]
    if len(given) != 1:
        raise UserError("give one judge: --model NAME, --local FOLDER, --reward-model FOLDER or --judge NAME")
    made = kinds[given[0]](options)
    if isinstance(made, Judge):
        if options.criteria != ["overall"]:
            raise UserError("--criteria: this judge has no criteria; only language models, --model or --local, have")
        return Chosen({"overall": made})
    asker = Asker(made, Answers(options.cache or folder / CACHE), complete=False)
    return Chosen(_of_criteria(asker, options), (asker,), _limits(options))


def _by_address(options: argparse.Namespace) -> LanguageModel:
    taken = ("model", "url", "key_variable", "concurrency", "retries", "timeout")
    return Endpoint(**{name: getattr(options, name) for name in taken}, limits=_limits(options))


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(options.limit_tokens, options.limit_cost, *options.prices)


def _local(options: argparse.Namespace) -> LanguageModel:
    return LocalModel(options.local, options.device, batch_size=options.batch_size)


def _of_criteria(asker: Asker, options: argparse.Namespace) -> dict[str, Judge]:
    names = ["overall", *CRITERIA] if options.criteria == [ALL] else options.criteria
    prompt = template(options.prompt, set(), PAIR_SLOTS | SCORE_SLOTS | OPTIONAL)
    common = {
        "prompt": options.prompt,
        "max_tokens": options.max_tokens or (LONG if any("[[" in text for _, text in prompt.messages) else 1),
        "temperature": options.temperature,
    }
    if "response" in prompt.slots:
        scorers = {Path(name).stem: LLMScorer(asker, name, **common) for name in names}
        return {name: ByScore(one, options.temperature_of_scores or 0.0) for name, one in scorers.items()}
    return {Path(name).stem: LLMJudge(asker, name, orders=options.orders, **common) for name in names}


def _rewards(options: argparse.Namespace) -> Judge:
    members = [RewardModel(path, options.device, batch_size=options.batch_size) for path in options.reward_model]
    default = 1.0 if len(members) == 1 else 0.0
    given = options.temperature_of_scores
    return ByScore(_joined(members, options.ensemble), default if given is None else given)


def _own(options: argparse.Namespace) -> Judge:
    found = [_imported(path) for path in options.judge]
    if len(found) == 1 and isinstance(found[0], Judge):
        return found[0]
    return ByScore(_joined([as_scorer(one) for one in found], options.ensemble), options.temperature_of_scores or 0.0)


def _joined(members: Sequence[Scorer], how: How) -> Scorer:
    return members[0] if len(members) == 1 else Ensemble(members, how)


def _imported(path: str) -> Any:
    """Return what an import path names; of a class an instance."""
    found = locate(path)
    if found is None or not callable(found):
        raise UserError(f"--judge {path}: there is no such function or class; give its import path, such as mine.judge")
    return found() if isinstance(found, type) else found
