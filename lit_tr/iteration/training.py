"""The training of a round, as a configuration of `lit-tr fit`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.policy.loading import PretrainedPolicy

Config = dict[str, Any]
FORMAT = "lit_tr.iteration.scored_pair"
NAMES = ("policy", "previous", "initial", "base", "output")
"""What may stand in braces in texts of options."""


@dataclass(frozen=True)
class Chain:
    """The policies of the rounds: the one that they begin with, and that of each round in its folder.

    Args:
        source: how the first one is loaded, and trained.
        folder: of the rounds.
        warmed_up: a training before round 1 made the policy that they begin with.
    """

    source: PretrainedPolicy
    folder: Path
    warmed_up: bool = False

    def round(self, number: int) -> Path:
        """Return the folder of a round; 0 is what is before the first."""
        return self.folder / f"round_{number}"

    def path(self, number: int) -> str:
        """Return folder or hub id of the policy that a round made; 0 is the one that the first begins with."""
        if number or self.warmed_up:
            return str((self.round(number) / "policy").absolute())
        return self.base

    @property
    def base(self) -> str:
        """Folder or hub id of the policy that is configured."""
        return self.source.adapter or self.source.path

    def names(self, number: int) -> dict[str, str]:
        """Return what `{policy}`, `{previous}`, `{initial}`, `{base}` and `{output}` stand for in a round."""
        previous = self.path(number - 2) if number > 1 else self.base
        return {
            "policy": self.path(max(number - 1, 0)),
            "previous": previous,
            "initial": self.path(0),
            "base": self.base,
            "output": str(self.folder.absolute()),
        }

    def opened(self, number: int, batch_tokens: int | None = None, device: str | None = None) -> LocalPolicy:
        """Return the policy of a round; no weights are loaded yet."""
        return self.other(self.path(number), f"round_{number}", batch_tokens, device)

    def measured(self, number: int, batch_tokens: int | None = None, device: str | None = None) -> LocalPolicy:
        """Return the policy of a round, whose responses have their divergence from the initial policy.

        Both have one base in memory where the initial policy is the base of the policy, or the policy itself.
        """
        found = self.opened(number, batch_tokens, device)
        found.identity |= {"kl": True}
        on_it = self.path(0) == self.source.path and (not number or self._has_adapter(self.path(number)))
        found.initial = found.without_adapter() if on_it else self.opened(0, device=device)
        return found

    def other(self, path: str, name: str, batch_tokens: int | None = None, device: str | None = None) -> LocalPolicy:
        """Return a policy by its path, on the base of the rounds where it is an adapter.

        What training puts into 4 bits is in 4 bits here, too: the base of an adapter, and what the rounds begin with.
        """
        loading = Loading(self.source.dtype, device=device)
        if self._has_adapter(path):
            loading = replace(loading, quantize=self.source.quantize, base=self.source.path)
        elif path in (self.base, self.path(0)):
            loading = replace(loading, quantize=self.source.quantize)
        [found] = open_policies([path], loading, [name])
        found.batch_tokens = batch_tokens
        return found

    def _has_adapter(self, path: str) -> bool:
        """Whether a path is that of an adapter."""
        return path == self.source.adapter or (Path(path) / "adapter_config.json").exists()

    def fit(self, given: Config, number: int, rows: Config | None) -> Config:
        """Return the configuration of the training of a round, from the policy of the round before.

        Args:
            given: the configuration of all rounds.
            number: of the round; 0 trains before the first.
            rows: `data.train`; None takes the configured rows.
        """
        made = substituted(given, self.names(number))
        model = made["model"]
        model = model.get("init_args", model) if "class_path" in model else model
        if number and self.path(number - 1) != self.base:
            model["policy"] = self._continued(model["policy"], self.path(number - 1))
        made.setdefault("trainer", {})["default_root_dir"] = str(self.round(number) / "training")
        if rows is not None:
            made.setdefault("data", {})["train"] = rows
        return made

    def _continued(self, policy: Any, path: str) -> Config:
        given = {"path": policy} if isinstance(policy, str) else dict(policy)
        if self._has_adapter(path):
            return {**given, "lora": None, "adapter": path}
        return {**given, "path": path}


def pair_rows(path: Path, chat: bool, format: Any = FORMAT) -> Config:
    """Return `data.train` of the pairs of a round: as chats where the prompts are, else as plain text.

    Args:
        path: the file of the pairs.
        chat: whether the prompts are messages.
        format: what makes examples of a pair, as the option of rows.
    """
    arguments = {"path": str(path.absolute()), "format": format, "chat": "auto" if chat else False}
    return {"class_path": "lit_tr.data.Rows", "init_args": arguments}


def substituted(value: Any, names: Mapping[str, str]) -> Any:
    """Return plain data with `{policy}` and the other names replaced in all texts."""
    if isinstance(value, dict):
        return {key: substituted(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [substituted(one, names) for one in value]
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(f"{{{name}}}", text)
    return value


def check_fit(config: Config, which: str) -> None:
    """Raise a `UserError` where a configuration names no policy."""
    model = config.get("model") or {}
    model = model.get("init_args", model) if "class_path" in model else model
    if not isinstance(model, dict) or not model.get("policy"):
        raise UserError(f"{which}: it has no model.policy, the policy that the rounds begin with")
