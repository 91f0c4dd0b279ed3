"""Memory and FLOPs of a training step, measured by running it on tensors without values.

The step is run by the training code. Nothing is allocated or computed, so a model of any size takes seconds.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch
from lit_tr.planning.ledger import Ledger, tensors_in
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.head import logits
from lit_tr.policy.logprobs import response_log_probs, token_log_probs_and_kl


@dataclass(frozen=True)
class Step:
    """Memory and FLOPs of a training step.

    Args:
        activations: bytes at the peak that are neither logits nor gradients.
        logits: bytes of logits at the peak.
        gradients: bytes of gradients at the peak.
        forward: FLOPs of the forward pass.
        flops: FLOPs of forward and backward pass.
    """

    activations: int
    logits: int
    gradients: int
    forward: int
    flops: int

    @property
    def peak(self) -> int:
        """Most live bytes, beyond those between steps."""
        return self.activations + self.logits + self.gradients

    def extended(self, added: "Step", times: float) -> "Step":
        """Return the step of a deeper policy: this one's, and so many times what a further group of layers adds."""
        return Step(*(round(own + times * more) for own, more in zip(astuple(self), astuple(added), strict=True)))


def run_step(
    policy: nn.Module,
    batch: PairBatch,
    ledger: Ledger,
    context: AbstractContextManager,
    accumulated: bool,
    groups: list[list[nn.Module]],
    needs_kl: bool = False,
) -> list[tuple[Step, Step]]:
    """Run forward and backward pass of a policy, whose parameters are fake tensors made under the ledger.

    Args:
        policy: the policy.
        batch: the batch.
        ledger: counts.
        context: sets the forward pass's precision.
        accumulated: gradients of another batch are in memory already.
        groups: the policy's layers in groups that are alike.
        needs_kl: compute the KL divergence from a reference, with the head of one like the policy.

    Returns:
        The step with its peak until the last group of layers has its gradients, and with that from the first group on;
        with each what a further group in the middle adds to it, from those of the second one of three or more.
    """
    trained = [param for param in policy.parameters() if param.requires_grad]
    if accumulated:
        for param in trained:
            param.grad = torch.empty_like(param)
    ledger.gradients = sum(param.nbytes for param in trained) if accumulated else 0
    group_of = {id(param): i for i, group in enumerate(groups) for layer in group for param in layer.parameters()}
    starts: list[tuple[int, int]] = []  # live bytes and FLOPs where each group's forward pass starts
    begun: dict[int | None, int] = {None: 0}  # FLOPs where each group gets its first gradient

    def count(param: Tensor) -> None:
        if (group := group_of.get(id(param))) not in begun:
            begun[group] = ledger.flops
            ledger.begin_part()
        ledger.gradients += 0 if accumulated else param.nbytes

    def start(*_: Any) -> None:
        starts.append((ledger.live, ledger.flops))

    in_forward = [group[0].register_forward_pre_hook(start) for group in groups]
    hooks = [param.register_post_accumulate_grad_hook(count) for param in trained]
    ledger.reset()
    before = ledger.live - ledger.gradients
    with ledger:
        with context:
            loss = (_with_kl if needs_kl else response_log_probs)(policy, batch).sum()
        for hook in in_forward:  # or they would be called where a layer is computed again
            hook.remove()
        forward = ledger.flops
        loss.backward()
    for hook in hooks:
        hook.remove()
    for param in trained:
        param.grad = None
    ledger.gradients = 0
    ends = [
        Step(live - before - logits - gradients, logits, gradients, forward, ledger.flops)
        for live, logits, gradients in (max(ledger.peaks[:2]), max(ledger.peaks[-2:]))
    ]
    if len(groups) < 3:
        return [(end, Step(0, 0, 0, 0, 0)) for end in ends]
    kept, passed = (after - one for one, after in zip(starts[1], starts[2], strict=True))
    size = sum(param.nbytes for layer in groups[1] for param in layer.parameters() if param.requires_grad)
    flops = passed + begun.get(0, 0) - begun.get(1, 0)
    top, bottom = Step(kept, 0, size * accumulated, passed, flops), Step(0, 0, size, passed, flops)
    return list(zip(ends, (top, bottom), strict=True))


def _with_kl(policy: nn.Module, batch: Any) -> Tensor:
    """Return log-probs and KL divergences, with embeddings in the place of a reference's hidden states."""
    causal = causal_model(policy)
    hidden = causal.get_input_embeddings().weight.detach()[batch.targets]

    @torch.no_grad()
    def reference(tokens: slice) -> Tensor:
        return logits(causal, hidden[tokens])

    return token_log_probs_and_kl(policy, batch, reference)


def optimizer_costs(make: Callable[[Iterable[nn.Parameter]], Any], foreach: bool) -> tuple[float, float, float]:
    """Measure the memory of an optimizer by steps on small parameters, `foreach` on all at once if it can, as on a GPU.

    Returns:
        State, per byte of the parameters; temporary memory of a step, per byte of all parameters and of the largest.
    """
    (state, two), (_, three) = (_trial(make, foreach, count) for count in (2, 3))
    return state, max(three - two, 0.0), max(3 * two - 2 * three, 0.0)


def _trial(make: Callable[[Iterable[nn.Parameter]], Any], foreach: bool, count: int) -> tuple[float, float]:
    params = [nn.Parameter(torch.zeros(256, 256)) for _ in range(count)]
    optimizer = make(iter(params))
    for group in optimizer.param_groups:
        if foreach and not group.get("fused") and "foreach" in group:
            group["foreach"] = True
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    ledger = Ledger()
    with ledger:
        optimizer.step()
    size = params[0].nbytes
    states = tensors_in(list(optimizer.state.values()))
    return sum(value.nbytes for value in states if value.numel() > 1) / (count * size), ledger.peak / size
