"""RewardModule: a reward model that is trained on pairs, as a LightningModule."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError, explained
from lit_tr.losses import Loss, Scores
from lit_tr.losses.dpo import cross_entropy
from lit_tr.metrics import reward_metrics
from lit_tr.module import PreferenceModule
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.policy.logprobs import decoder, last_hidden
from lit_tr.policy.sharding import data_mesh, shard
from lit_tr.rewards.classifier import empty_classifier


@dataclass(frozen=True)
class BradleyTerry(Loss):
    """The loss of a reward model on pairs, Ouyang et al. 2022 (arXiv 2203.02155), Eq. 1, with a margin.

    `-log(sigmoid(reward(chosen) - reward(rejected) - margin_scale * margin))`, where the margin is the row's label
    (Touvron et al. 2023, arXiv 2307.09288, Eq. 2). With a label confidence below 1 it is the expectation over both
    labels. The scores' `policy` are rewards here, and not log-probs.

    Args:
        margin_scale: reward per unit of the margin, not negative; 0 does not use margins.

    Raises:
        UserError: it is negative.

    Examples:
        >>> import torch
        >>> chosen, rejected = (Scores(torch.tensor([reward]), torch.tensor([5.0])) for reward in (2.0, 1.0))
        >>> BradleyTerry()(chosen, rejected)  # -log(sigmoid(2 - 1))
        tensor([0.3133])
    """

    needs_reference: ClassVar[bool] = False

    beta: float = field(default=1.0, init=False)
    margin_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.margin_scale < 0:
            raise UserError(f"BradleyTerry: margin_scale must not be negative, not {self.margin_scale}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        logits = chosen.policy - rejected.policy - self.margin_scale * chosen.margin
        return cross_entropy(logits, chosen.confidence)

    def rewards(self, scores: Scores) -> Tensor:
        """Return the rewards, `(responses,)`."""
        return scores.policy


class RewardHead(nn.Linear):
    """A reward from a last hidden state: their product with one row of weights, without bias, in float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the rewards of hidden states `(responses, hidden)`, `(responses,)`, float32."""
        # a product and a sum, which autocast leaves in float32
        return (hidden.float() * self.weight.float()).sum(dim=-1)


class RewardModule(PreferenceModule):
    """Trains a reward model on pairs: a language model with a linear head at the last token of each response.

    It trains, logs, resumes and takes batches as `PreferenceModule` does, which it is without a reference: `loss`,
    `rewards/chosen`, `rewards/rejected`, `rewards/margins` and `rewards/accuracies` are logged. Packs hold each prompt
    once. The head has no bias and begins at 0: all rewards are equal, and the loss is log 2. With an adapter it is
    trained in full. `lit-tr export` writes a checkpoint as the sequence classifier that `RewardModel` loads.

    Args:
        policy: the language model that training begins with, as for `PreferenceModule`.
        margin_scale: reward per unit of the rows' margin, which the loss subtracts; see `BradleyTerry`.
        optimizer: as for `PreferenceModule`; it gets the head, too.
        lr_scheduler: as for `PreferenceModule`.

    Raises:
        UserError: transformers has no decoder and no sequence classifier of such a model, or rows are not pairs.
    """

    def __init__(
        self,
        policy: PretrainedPolicy | str | Path | nn.Module,
        margin_scale: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(policy, None, BradleyTerry(margin_scale), optimizer, lr_scheduler)
        self.margin_scale = margin_scale

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets: the policy's, and the head's."""
        return [*super().trained, *self.reward_head.parameters()]

    def configure_model(self) -> None:
        """Load the language model, once, and put the head on it."""
        if hasattr(self, "reward_head"):
            return
        super().configure_model()
        causal = causal_model(self.policy)
        with explained(f"RewardModule: {type(causal).__name__} is no decoder with hidden states", AttributeError):
            size = decoder(causal).config.hidden_size
        empty_classifier(causal)  # what could not be saved need not be trained
        output, embeddings = causal.get_output_embeddings(), causal.get_input_embeddings()
        if output is not None and output.weight is not embeddings.weight:
            output.requires_grad_(False)  # it has no part in a reward: DDP would wait for its gradient
        self.reward_head = RewardHead(size, 1, bias=False, device=causal.device)
        nn.init.zeros_(self.reward_head.weight)
        if (mesh := data_mesh(self.device_mesh)) is not None:
            shard(self.reward_head, mesh, "32-true")

    def rewards(self, batch: PairBatch) -> Tensor:
        """Return the reward of each response of a batch, `(responses,)`, float32, in the layout that it has."""
        return self.reward_head(last_hidden(self.policy, batch))

    def _evaluate(self, batch: PairBatch, *args: Any, **options: Any) -> dict[str, Any]:
        if not batch.paired:
            raise UserError("RewardModule compares the two responses of a pair, and the data is unpaired")
        rewards = self.rewards(self.scorer.laid_out(self.policy, batch))
        parts = zip(batch.split(rewards), batch.split(batch.lengths), batch.split_labels(), strict=True)
        chosen, rejected, _ = (Scores(reward, tokens, labels=labels) for reward, tokens, labels in parts)
        return {"loss": self.loss(chosen, rejected), **reward_metrics(self.loss, chosen, rejected, paired=True)}
