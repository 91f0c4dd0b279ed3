"""Time of an optimizer step on many devices, simulated from the bytes that they send and the waits for the slowest.

What is assumed: rings of all devices, as NCCL's, through one network card for each device; an all-gather or a
reduce-scatter of B bytes over n devices sends (n - 1) / n * B from each, an all-reduce twice that. A transfer takes its
bytes over the slower of a device's link and its node's cards, and a latency for each of the n - 1 hops. What FSDP2
sends for a layer is hidden behind what is computed for another; DDP's all-reduce behind the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lit_tr.data.packing import BatchLayout
from lit_tr.planning.dry_run import Step

HOP, NETWORK_HOP = 3.4e-6, 14e-6
"""Seconds of a hop of a ring within a node by NVLink, and between nodes: what NCCL assumes (src/graph/tuning.cc)."""
DRAWN = 8
"""Steps that waits are the mean of."""


@dataclass(frozen=True)
class Network:
    """How fast devices send.

    Args:
        link: bytes a second that a device sends to others of its node; an H100's NVLink has 4.5e11.
        network: bytes a second that a device sends to other nodes: 5e10 is a card of 400 Gbit/s for each device.
        node: devices in a node.
    """

    link: float = 4.5e11
    network: float = 5e10
    node: int = 8

    def seconds(self, size: float, devices: int) -> float:
        """Return the seconds of an all-gather or a reduce-scatter of some bytes in all."""
        if devices == 1 or not size:
            return 0.0
        nodes, sent = -(-devices // self.node), size * (devices - 1) / devices
        speed = self.link if nodes == 1 else min(self.link, self.network * min(self.node, devices))
        between = nodes - 1
        return sent / speed + (devices - 1 - between) * HOP + between * NETWORK_HOP


@dataclass(frozen=True)
class Unit:
    """Bytes that FSDP2 moves together: those of the weights that it gathers, and those of the gradients it reduces."""

    gathered: int
    reduced: int


@dataclass(frozen=True)
class Traffic:
    """What a step sends.

    Args:
        layers: the units of layers; empty under DDP.
        rest: the unit of what is in no layer; under DDP all gradients, and nothing that is gathered.
        passes: passes of one batch that gather the weights: the policy's forward and backward, and the reference's.
        batches: batches in a step. FSDP2 sends for each, DDP once.
    """

    layers: Sequence[Unit]
    rest: Unit
    passes: int = 0
    batches: int = 1

    def sent(self, devices: int) -> float:
        """Return the bytes that each device sends in a step."""
        share = (devices - 1) / devices
        if not self.layers:
            return 2 * share * self.rest.reduced
        units = [*self.layers, self.rest]
        return share * self.batches * sum(self.passes * unit.gathered + unit.reduced for unit in units)


@dataclass(frozen=True)
class Scaled:
    """Seconds of a step on some devices.

    Args:
        devices: number of devices.
        computing: that each computes.
        waiting: that the mean device waits for the slowest.
        sending: that nothing is computed meanwhile.
        sent: bytes that each device sends.
    """

    devices: int
    computing: float
    waiting: float
    sending: float
    sent: float

    @property
    def seconds(self) -> float:
        """All of a step."""
        return self.computing + self.waiting + self.sending


def units(layers: Sequence[nn.Module], policy: nn.Module, halves: bool, beside: int = 0) -> tuple[list[Unit], Unit]:
    """Return FSDP2's units of a policy: its layers, and the rest.

    Args:
        layers: the layers.
        policy: the policy.
        halves: weights are gathered in 2 bytes each, and gradients reduced in 4.
        beside: bytes of an adapter of the reference, which lies in the layers.
    """
    own = [_unit(layer, halves) for layer in layers]
    full, extra = _unit(policy, halves), beside // max(len(own), 1)
    rest = Unit(full.gathered - sum(u.gathered for u in own), full.reduced - sum(u.reduced for u in own))
    return [Unit(unit.gathered + extra, unit.reduced) for unit in own], rest


def _unit(module: nn.Module, halves: bool) -> Unit:
    params = list(module.parameters())
    gathered = sum(2 * param.numel() if halves else param.nbytes for param in params)
    reduced = sum(4 * param.numel() if halves else param.nbytes for param in params if param.requires_grad)
    return Unit(gathered, reduced)


def scaled(step: Step, traffic: Traffic, scored: float, flops: float, network: Network, devices: int) -> Scaled:
    """Return the time of a step, without waits for the slowest device.

    Args:
        step: forward and backward pass of one batch.
        traffic: what is sent.
        scored: forward passes of reference and initial policy, for each of the policy's.
        flops: FLOP/s that a device achieves.
        network: how fast they send.
        devices: number of devices.
    """
    forward, backward = step.forward / flops, (step.flops - step.forward) / flops
    computing = (forward * (1 + scored) + backward) * traffic.batches
    if not traffic.layers:
        sending = max(2 * network.seconds(traffic.rest.reduced, devices) - backward, 0.0)
        return Scaled(devices, computing, 0.0, sending, traffic.sent(devices))

    def over(unit: Unit, gathers: int, reduces: int) -> float:
        gathering, reducing = (network.seconds(size, devices) for size in (unit.gathered, unit.reduced))
        return gathers * gathering + reduces * reducing

    count = len(traffic.layers)
    alone = over(traffic.rest, traffic.passes, 1) + over(traffic.layers[0], traffic.passes, 0)
    scores = traffic.passes - 2
    for unit in traffic.layers:
        alone += (1 + scores) * max(over(unit, 1, 0) - forward / count, 0.0)
        alone += max(over(unit, 1, 1) - backward / count, 0.0)
    return Scaled(devices, computing, 0.0, alone * traffic.batches, traffic.sent(devices))


def waits(sizes: Sequence[int], layout: BatchLayout, batches: int, devices: int) -> float:
    """Return by how much the slowest of some devices takes longer than the mean one, as a share of its time.

    Time is taken to be as the tokens. Lengths are drawn from the given ones, and batches made as in training.

    Args:
        sizes: tokens of some examples.
        layout: makes the batches.
        batches: of a step on each device.
        devices: number of devices.
    """
    draw, needed = torch.Generator().manual_seed(0), DRAWN * batches * devices
    each = layout.batch_size or max((layout.max_tokens or 0) * len(sizes) // sum(sizes), 1)
    drawn = np.asarray(sizes)[torch.randint(len(sizes), (needed * each,), generator=draw).numpy()]
    tokens = [int(drawn[batch].sum()) for batch in layout.batches(drawn.tolist(), draw)]
    steps = len(tokens) // (batches * devices)
    ranks = np.asarray(tokens[: steps * batches * devices]).reshape(steps, devices, batches).sum(axis=2)
    return float((ranks.max(axis=1) / ranks.mean(axis=1)).mean() - 1)
