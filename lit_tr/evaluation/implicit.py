"""The implicit reward of two policies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from lit_tr.data.example import Example
from lit_tr.data.tokenization import TokenizedExample, tokenize
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.held_out import log_probs_of, no_reference, score
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.rewards.base import Candidate


@dataclass
class Implicit:
    """`beta * log(policy / reference)` of a response, in nats (Rafailov et al. 2023, arXiv 2305.18290, Eq. 5).

    The log-ratio is summed over the tokens of the response and of the end token that is put behind it. The reward
    leaves out a term of the prompt alone, so it compares responses to one prompt.

    Against itself a policy has no such reward: then, and without a reference, the score is its mean log-prob of a
    token, as CREAM ranks by a model that has no predecessor (arXiv 2410.12735, by its authors' code).

    A response that cannot be tokenized, or that is too long for a policy, has no score.

    Args:
        policy: a checkpoint, the folder of a run, a Hugging Face folder or id, or an adapter, as `lit-tr generate`
            takes them.
        reference: another one, such as `RUN:initial`; None for none.
        beta: the scale of the reward, that of the training.
        chat: make chat messages of text prompts where the tokenizer has a chat template, as training does.
        loading: how weights are loaded.

    Raises:
        UserError: there is no such policy; or, when it scores, the two have different vocabularies.
    """

    policy: str
    reference: str | None
    beta: float = 0.1
    chat: bool = True
    loading: Loading = Loading()

    @property
    def name(self) -> str:
        """The two policies."""
        return f"{self.beta:g} log({self.policy} / {self.reference})" if self._others else f"log({self.policy})"

    @property
    def _others(self) -> list[str]:
        """The reference, if there is one."""
        return [] if self.reference in (None, self.policy) else [str(self.reference)]

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the implicit reward of each response."""
        policy, *others = self._policies
        room = min(one.context or math.inf for one in self._policies)
        examples = [self._tokenized(one, policy.tokenizer, room) for one in candidates]
        known = {number: one for number, one in enumerate(examples) if one is not None}
        scores = [math.nan] * len(examples)
        if known:
            ours, *theirs = (partial(log_probs_of, one.active) for one in self._policies)
            found, _ = score([*known.values()], ours, theirs[0] if theirs else no_reference, self.loading.placed)
            rewards = self.beta * found.log_ratios if others else found.policy / found.tokens
            for number, reward in zip(known, rewards.tolist(), strict=True):
                scores[number] = reward
        return scores

    @cached_property
    def _policies(self) -> list[LocalPolicy]:
        specs = [self.policy, *self._others]
        found = open_policies(specs, self.loading, ["policy", "reference"][: len(specs)])
        ours, theirs = (found[i].tokenizer.get_vocab() for i in (0, -1))
        if ours != theirs:
            raise UserError(f"{self.name}: the two have different vocabularies, so their tokens do not compare")
        return found

    def _tokenized(self, candidate: Candidate, tokenizer: Any, room: float) -> TokenizedExample | None:
        """Return prompt and response as the policies take them; None if they cannot."""
        example = Example(candidate.prompt, candidate.response, None)
        try:
            chat = self.chat and tokenizer.chat_template
            found = tokenize(example.as_messages() if chat else example, tokenizer)
        except BadRowError:
            return None
        return found if len(found.prompt) + found.longest <= room else None
