"""What a policy, its reference and its start say of a batch, as a loss reads it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_tr.data.batches import PackedBatch, PairBatch
from lit_tr.errors import UserError
from lit_tr.losses import Loss, Scores
from lit_tr.metrics import preference_metrics
from lit_tr.policy.logprobs import scoring, sum_by_response, token_log_probs, token_log_probs_and_kl
from lit_tr.policy.probe import why_not_packed, why_not_split
from lit_tr.reference import Reference
from lit_tr.warned import warn


class Scorer:
    """Scores batches for a loss.

    Attributes:
        statistics: those of the loss at the last training step, equal on all ranks; they may lie on another device.
        longest: most tokens of a prompt and one response, if that is known; a longer window or chunk never acts.
        packs: whether the policy is proven to take packs; None where that has not been tried.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.statistics: Tensor | None = None
        self.longest: int | None = None
        self.packs: bool | None = None
        self._splits = False

    def values(
        self,
        policy: nn.Module,
        reference: Reference | None,
        initial: Reference | None,
        batch: PairBatch,
        add_ranks: Callable[[Tensor], Tensor],
        training: bool,
        by_token: bool = False,
    ) -> dict[str, Any]:
        """Return losses and metrics of each example by name; `loss` has a gradient in training.

        Args:
            policy: the trained policy.
            reference: what the loss compares it with; None where it needs none.
            initial: the initial policy, for `initial/...`; None leaves them out.
            batch: the batch.
            add_ranks: adds up a tensor over all ranks.
            training: whether the statistics of this batch are those that the next one goes on from.
            by_token: return what `by_token` does as well.
        """
        self.check(batch)
        batch = self.laid_out(policy, batch)
        ours, theirs, kl = self._log_probs(policy, reference, batch)
        chosen, rejected, kl_rows = self.scores(batch, ours, theirs, kl)
        values = preference_metrics(self.loss, chosen, rejected, batch.paired)
        sums = self.loss.sums(chosen, rejected, kl_rows)
        before = None if sums is None or self.statistics is None else self.statistics.to(sums.device)
        statistics = None if sums is None else self.loss.statistics(add_ranks(sums), before)
        if training:
            self.statistics = statistics
        values["loss"] = self.loss(chosen, rejected, statistics)
        start = None if initial is None else initial.token_log_probs(policy, batch)
        if start is not None:
            chosen, rejected, _ = self.scores(batch, ours.detach(), start)
            against_start = preference_metrics(self.loss, chosen, rejected, batch.paired)
            values |= {f"initial/{name}": value for name, value in against_start.items() if "logps" not in name}
        return values | (self.by_token(batch, ours, {"": theirs, "initial/": start}) if by_token else {})

    def by_token(self, batch: Any, policy: Tensor, others: dict[str, Tensor | None]) -> dict[str, list[Tensor]]:
        """Return what each scored token of the data's responses adds to their rewards, on the CPU.

        The reward of a token is `beta * log(policy / other)` (Rafailov et al. 2024, "From r to Q*", arXiv 2404.12358);
        those of a response sum to its reward under DPO.

        Args:
            batch: the batch.
            policy: log-probs of the scored tokens under the policy, `(scored tokens,)`.
            others: the same under other models, by the prefix of their names; None leaves one out.

        Returns:
            Of each response a tensor `(scored tokens of it,)`, by name: `tokens/chosen` and `tokens/rejected`, token
            ids; `token_rewards/chosen` and `token_rewards/rejected` after each prefix.
        """
        values = {"tokens": batch.targets}
        values |= {
            f"{prefix}token_rewards": self.loss.beta * (policy - other)
            for prefix, other in others.items()
            if other is not None
        }
        rows = {name: [] if batch.dummy else value.cpu().split(batch.sizes) for name, value in values.items()}
        last = batch.chosen + batch.rejected
        sides = {"chosen": slice(batch.chosen), "rejected": slice(batch.chosen, last)}
        return {f"{name}/{side}": list(found[at]) for name, found in rows.items() for side, at in sides.items()}

    def _log_probs(
        self, policy: nn.Module, reference: Reference | None, batch: PairBatch
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what `scores` is made of."""
        if reference is None or not self.loss.needs_kl:
            ours = token_log_probs(policy, batch)
            return ours, None if reference is None else reference.token_log_probs(policy, batch), None
        self._check_split(policy, batch)
        ours, theirs, kl = token_log_probs_and_kl(policy, batch, reference.logits(policy, batch)).unbind(dim=1)
        return ours, theirs.detach(), kl

    def scores(
        self, batch: PairBatch, policy: Tensor, reference: Tensor | None, kl: Tensor | None = None
    ) -> list[Scores]:
        """Return the scores of the chosen, the rejected and the KL rows.

        Args:
            batch: the batch.
            policy: log-probs of the scored tokens under the policy, `(scored tokens,)`.
            reference: the same under the reference; None if there is none.
            kl: the KL divergence of the reference at each of these tokens; None if it is not known.
        """
        none = (None, None, None)
        sums = [none if one is None else batch.split(sum_by_response(batch, one)) for one in (policy, reference, kl)]
        tokens: list[Any] = [none, none]
        if self.loss.token_level:
            tokens = [none if one is None else batch.split_tokens(one) for one in (policy, reference)]
        parts = zip(sums[0], batch.split(batch.lengths), sums[1], batch.split_labels(), *tokens, sums[2], strict=True)
        return [Scores(*part) for part in parts]

    def kl(self, policy: nn.Module, reference: Any, batch: PairBatch) -> Tensor:
        """Return the KL divergence from the reference, a sum over some tokens, and their number, `(2,)`."""
        kl, tokens = reference.kl(policy, self.laid_out(policy, batch))
        return torch.stack([kl, kl.new_full((), tokens)]) * (not batch.dummy)

    def reward_margin(self, policy: nn.Module, reference: Any, batch: PairBatch) -> Tensor | None:
        """Return the mean reward margin of a batch, a scalar without gradient; None where it is not of pairs."""
        batch = self.laid_out(policy, batch)
        with scoring(policy):  # on all ranks, whatever they hold: sharded weights are gathered
            ours, theirs = token_log_probs(policy, batch), reference.token_log_probs(policy, batch)
        if not batch.paired or batch.dummy:
            return None
        chosen, rejected, _ = self.scores(batch, ours, theirs)
        return (self.loss.rewards(chosen) - self.loss.rewards(rejected)).mean()

    def check(self, batch: PairBatch) -> None:
        """Raise a `UserError` if the loss does not take such a batch."""
        kind = type(self.loss).__name__
        if self.loss.paired and not batch.paired:
            raise UserError(
                f"{kind} compares the two responses of a pair, and the data is unpaired: take KTO, BCO or SFT"
            )
        if self.loss.mismatched and batch.mismatched is None:
            raise UserError(f"{kind} needs mismatched rows for its KL baseline: set data.mismatched")

    def _check_split(self, policy: nn.Module, batch: PairBatch) -> None:
        """Raise a `UserError` if the policy's head cannot be computed in chunks, which is tried once."""
        if self._splits or isinstance(batch, PackedBatch):
            return
        if reason := why_not_split(policy):
            raise UserError(f"{type(self.loss).__name__} computes a model's head in chunks, and of this one: {reason}")
        self._splits = True

    def laid_out(self, policy: nn.Module, batch: PairBatch) -> PairBatch:
        """Return a packed batch as it is, or padded where the policy is not proven to take packs."""
        return batch.padded() if isinstance(batch, PackedBatch) and not self.takes_packs(policy) else batch

    def takes_packs(self, policy: nn.Module) -> bool:
        """Return whether the policy is proven to take packs, which is tried once; warn if it is not."""
        if self.packs is None:
            reason = why_not_packed(policy, self.longest)
            self.packs = reason is None
            if reason:
                warn(f"batches are padded, which takes more time and memory: {reason}")
        return self.packs
