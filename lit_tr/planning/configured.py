"""The run to plan, from what `fit` is configured with."""

import re
from collections.abc import Iterable
from typing import Any

from lit_tr.errors import UserError
from lit_tr.module import PreferenceModule
from lit_tr.planning.plan import Run
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference import Reference, alternatives

PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "None": "32-true"}


def planned_run(
    module: PreferenceModule,
    trainer: Any,
    log_initial: bool | None,
    devices: int | None,
    callbacks: Iterable[Any] = (),
) -> Run:
    """Return the run to plan, with the configured reference and its alternatives.

    Args:
        module: the module.
        trainer: the configuration of its trainer.
        log_initial: the module's argument.
        devices: number of devices; None takes the trainer's.
        callbacks: the callbacks, some of which may move the reference.

    Raises:
        UserError: the policy is a model in memory, or lit_tr does not train under the strategy.
    """
    own = trainer.devices
    own = len(own) if isinstance(own, list) else int(own) if str(own).isdigit() else 1
    precision, strategy = str(trainer.precision), str(trainer.strategy)
    if re.search("fsdp|deepspeed", strategy, re.IGNORECASE):
        raise UserError(f"lit_tr does not train under {strategy}: take ddp or ModelParallelStrategy")
    if not isinstance(source := module.source, PretrainedPolicy):
        raise UserError(
            "a policy that is a model in memory cannot be planned: give policy as a path or PretrainedPolicy"
        )
    alpha = _alpha(callbacks)
    return Run(
        source,
        _references(module, source, log_initial, alpha not in (None, 1.0)),
        module.optimizer,
        alpha,
        precision=PRECISIONS.get(precision, precision),
        devices=devices or own * trainer.num_nodes,
        sharded="ModelParallelStrategy" in strategy,
        accumulate=trainer.accumulate_grad_batches,
        cpu=trainer.accelerator == "cpu",
        needs_kl=module.loss.needs_kl,
    )


def _alpha(callbacks: Iterable[Any]) -> float | None:
    """Return an alpha for the updates of the reference: 1 if all are hard, 0.5 if not, None without any."""
    updates = [one for one in callbacks if getattr(one, "reference", None) == "reference"]
    return (1.0 if all(one.hard for one in updates) else 0.5) if updates else None


def _references(
    module: PreferenceModule, source: PretrainedPolicy, log_initial: bool | None, soft: bool
) -> dict[str, tuple[Reference | None, Reference | None]]:
    if module.reference is None:
        return {f"no reference: {type(module.loss).__name__} needs none": (None, module.initial)}
    modules = {f"configured: {type(module.reference).__name__}": module}
    for name, reference in alternatives(source, soft).items():
        if module.loss.needs_kl and reference.log_probs_only:
            continue
        modules[name] = PreferenceModule(source, reference, module.loss, log_initial=log_initial)
    return {name: (one.reference, one.initial) for name, one in modules.items()}
