"""The gradient of the mean over all examples of an optimizer step."""

from typing import Any

import torch
from torch import Tensor

from lit_tr.policy.sharding import local_shard


class StepMean:
    """Makes the gradient of a step that of the mean over its examples, whatever the batches and ranks it is made of.

    Each batch has the mean loss of its own examples. Lightning divides it by the number of batches, and DDP by that of
    ranks: so a batch's loss is weighed by its examples (`weigh`), and the sum of a step is divided by the mean number
    of examples of a batch (`normalise`). A step without examples has the gradient 0.
    """

    def __init__(self) -> None:
        self._examples = 0

    def reset(self) -> None:
        """Forget a step that was broken off."""
        self._examples = 0

    def weigh(self, trainer: Any, loss: Tensor, examples: int) -> Tensor:
        """Return the mean loss of a batch, times its number of examples where it is not alone in its step."""
        self._examples += examples
        return loss * examples if _is_shared(trainer) else loss

    @torch.no_grad()
    def normalise(self, trainer: Any) -> None:
        """Divide the gradients of a step by the mean number of examples of its batches on all ranks, and reset.

        It is to be called on all ranks.
        """
        if _is_shared(trainer):
            count = torch.full((), float(self._examples), device=trainer.strategy.root_device)
            of_ranks = trainer.strategy.reduce(count, reduce_op="mean")
            scale = torch.where(of_ranks > 0, trainer.accumulate_grad_batches / of_ranks, 0.0)
            groups = (group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
            gradients = [param.grad for params in groups for param in params if param.grad is not None]
            if gradients:
                torch._foreach_mul_([local_shard(one) for one in gradients], scale)
        self.reset()


def _is_shared(trainer: Any) -> bool:
    """Whether a step is made of several batches."""
    return trainer.accumulate_grad_batches > 1 or trainer.world_size > 1
