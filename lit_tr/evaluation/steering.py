"""The initial policy steered towards a trained one while it samples, as far as one likes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from lit_tr.errors import UserError
from lit_tr.evaluation.generate import in_batches
from lit_tr.evaluation.local import LocalPolicy, Request, answered, stops_of
from lit_tr.evaluation.policies import INITIAL, Checkpoint, Loading, checkpoint_of, named, split_spec
from lit_tr.evaluation.prompts import Reader
from lit_tr.evaluation.responses import STEERED, Response
from lit_tr.evaluation.sampling import Sampling
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.logprobs import accepted, scoring

CACHES = ("cache", "past_key_values", "cache_params")
"""What models call the argument that holds what they have computed of earlier tokens."""


class Steer(LogitsProcessor):
    """Moves the initial policy's logits by the token rewards of a policy: `initial + strength * (policy - initial)`.

    The policy goes through the tokens beside the initial one, with a cache of its own. Strength 0 gives the logits of
    the initial policy, 1 those of the policy, bit by bit.

    Args:
        policy: gives the policy for the time of a `with`.
        strength: how far the logits are moved.
        mask: attention mask of the prompts, `(rows, tokens)`.
    """

    def __init__(self, policy: Callable[[], AbstractContextManager[Any]], strength: float, mask: Tensor) -> None:
        self._policy, self._strength, self._mask, self._cache = policy, strength, mask, None
        self._kl: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the moved logits of the next token, `(rows, vocabulary)`."""
        steered = torch.lerp(scores, self._logits(input_ids).to(scores), self._strength)
        p, q = steered.log_softmax(-1), scores.log_softmax(-1)
        self._kl.append(F.kl_div(q, p, reduction="none", log_target=True).sum(-1).double())
        return steered

    @property
    def kl(self) -> Tensor:
        """KL divergence of the steered distribution from the initial one, `(rows, tokens so far)`, on the CPU."""
        return torch.stack(self._kl, dim=-1).cpu()

    def _logits(self, input_ids: Tensor) -> Tensor:
        new = input_ids if self._cache is None else input_ids[:, -1:]
        mask = F.pad(self._mask, (0, input_ids.shape[1] - self._mask.shape[1]), value=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        with self._policy() as model, scoring(model):
            cached = accepted(model, **dict.fromkeys(CACHES, self._cache))
            further = accepted(model, position_ids=positions, logits_to_keep=1)
            output = causal_model(model)(input_ids=new, attention_mask=mask, use_cache=True, **cached, **further)
        self._cache = output[next(iter(cached))]
        return output.logits[:, -1].float()


@dataclass
class SteeredPolicy:
    """Samples from the initial policy times the exponential of a policy's scaled token rewards.

    The next token's distribution is `initial * (policy / initial) ** strength`, normalized: the initial policy moved by
    `strength` times the implicit reward `log(policy / initial)` of each token. 0 is the initial policy, 1 the policy,
    above 1 goes further. It is decoding-time realignment (Liu et al. 2024, arXiv 2402.02992): token by token, and so
    approximately, a policy trained at `beta` becomes one of `beta / strength`. GenARM (Xu et al. 2024, arXiv
    2410.08193) and value-augmented sampling (Han et al. 2024, arXiv 2405.06639) move by rewards or values of other
    models.

    Each response has its `kl`: the exact KL divergence of the steered distributions from the initial policy's at its
    positions, before temperature and truncation, summed, in nats. At temperature 1 without truncation its mean is
    without bias the divergence of responses of at most `max_new_tokens`.

    Args:
        policy: the policy.
        initial: the policy that its training began with; adapters may share its base.
        strength: how far the initial policy is moved.
        batch_tokens: most tokens of a batch; None takes half of a policy's that has one model.

    Raises:
        UserError: the strength is negative or not finite.
    """

    policy: LocalPolicy
    initial: LocalPolicy
    strength: float
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise UserError(f"steer: a strength is a number from 0 on, not {self.strength:g}")

    @property
    def name(self) -> str:
        """The policy's name with the strength."""
        return f"{self.policy.name}{STEERED}{self.strength:g}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"steered": self.policy.identity, "from": self.initial.identity, "strength": self.strength}

    def reader(self, sampling: Sampling) -> Reader:
        """Return what makes prompts of rows: the policy's."""
        return self.policy.reader(sampling)

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses, a batch at a time, those to the longest prompts first.

        All strengths draw by the random numbers of the policy, so that they differ by the strength alone.
        """
        prompts = [prompt.ids for prompt, _ in requests]
        keys = [self.policy.key(*one) for one in requests]
        used: list[Steer] = []

        def steer(mask: Tensor) -> Steer:
            used[:] = [Steer(self.policy.active, self.strength, mask)]
            return used[0]

        with self.initial.active() as model:
            stops = stops_of(model, self.policy.tokenizer)
            most = self.batch_tokens or self.policy.room(model) // 2
            for batch in in_batches(model, self.policy.tokenizer, prompts, keys, sampling, stops, most, steer=steer):
                kl = used[0].kl
                yield [
                    replace(
                        answered(*requests[i], self.name, made.text, len(made.response), made.finished),
                        kl=kl[row, : len(made.response)].sum().item(),
                        strength=self.strength,
                    )
                    for row, (i, made) in enumerate(batch)
                ]


def open_steered(
    specs: Sequence[str], strengths: Sequence[float], loading: Loading | None = None, names: Sequence[str] = ()
) -> list[SteeredPolicy]:
    """Return the policies of some checkpoints, each steered by each strength; no weights are loaded yet.

    Args:
        specs: each a checkpoint, or the folder of a run, as `open_policies` takes them.
        strengths: how far the initial policy is moved.
        loading: how weights are loaded.
        names: names of the policies, before that of the strength; by default made of the paths.

    Raises:
        UserError: there is no such checkpoint, or two policies have one name.
    """
    checkpoints: dict[Path, Checkpoint] = {}
    pairs = []
    for spec in specs:
        path, which = split_spec(spec)
        if (file := checkpoint_of(path)) is None:
            raise UserError(f"{spec}: steering begins at the initial policy, which only a checkpoint knows")
        checkpoint = checkpoints.setdefault(file, Checkpoint(file, loading or Loading()))
        pairs.append((checkpoint.policy(which), checkpoint.policy(INITIAL)))
    policies = named([policy for policy, _ in pairs], names)
    both = zip(policies, pairs, strict=True)
    return [SteeredPolicy(policy, initial, strength) for policy, (_, initial) in both for strength in strengths]
