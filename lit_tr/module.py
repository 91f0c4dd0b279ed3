"""PreferenceModule: a policy, its reference and a loss, as a LightningModule."""

import math
import time
from itertools import chain
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PackedBatch, PairBatch
from lit_tr.errors import UserError
from lit_tr.hparams import describe
from lit_tr.lookahead import batches_of_steps, check_loader, hard_update, training_batches, validation_batches
from lit_tr.losses import Labels, Loss, Scores
from lit_tr.metrics import Means, preference_metrics
from lit_tr.policy.adapters import base_state_keys, has_adapter
from lit_tr.policy.loading import TRUE, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs
from lit_tr.policy.probe import why_not_packed
from lit_tr.policy.sharding import shard
from lit_tr.reference.base import FrozenReference, Reference
from lit_tr.reference.window import WindowReference


class PreferenceModule(LightningModule):
    """Trains a policy on preferences while a reference holds it near, and moves where a callback moves it.

    Logs, for training, validation and test: the loss; rewards, margin and accuracy; log-probs of the responses;
    log-ratios to the reference; and the same rewards and log-ratios against the initial policy (`initial/...`). In
    training the latter are computed at the logged steps alone, for they cost a forward pass.

    Args:
        policy: where the policy comes from; it is loaded in `configure_model`.
        reference: the kind of reference.
        loss: the preference loss.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes a learning-rate schedule from the optimizer; it steps with the optimizer.
        log_initial: log against the initial policy. With a new adapter that takes no memory; a full model is held once
            more. None does so but for a WindowReference, which is there to hold no model.
    """

    policy: nn.Module

    def __init__(
        self,
        policy: PretrainedPolicy,
        reference: Reference,
        loss: Loss,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        log_initial: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(describe(self), logger=False)
        if log_initial is None:
            log_initial = not isinstance(reference, WindowReference)
        self.source, self.loss = policy, loss
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.reference = reference
        self.initial = FrozenReference() if log_initial and reference.moves else None
        self.means = Means()
        self._takes_packs: bool | None = None
        self._examples = self._step_examples = 0
        self._random_state: dict[str, Tensor] | None = None
        # a state_dict is without what training never changes; `on_load_checkpoint` sees to the rest
        self.strict_loading = False
        self.register_state_dict_post_hook(_without_fixed)

    def setup(self, stage: str) -> None:
        """Check what goes with the strategy and with the kind of reference.

        Raises:
            UserError: the strategy hides weights, or a WindowReference cannot know what comes up to the next update.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise UserError(
                f"{type(strategy).__name__} flattens weights or gradients, which a reference and a mean over pairs go "
                "by: take trainer.strategy ddp, or to part weights among devices "
                "lightning.pytorch.strategies.ModelParallelStrategy"
            )
        if stage == "fit" and isinstance(self.reference, WindowReference):
            hard_update(self.trainer)

    def configure_model(self) -> None:
        """Load the policy and build the references from it, once.

        Raises:
            UserError: there is no such policy, or it does not go with this kind of reference, strategy or precision.
        """
        if hasattr(self, "policy"):
            return
        mesh = self._data_mesh()
        device = self.trainer.strategy.root_device if self._trainer else "cpu"
        self.policy = self.source.load(device, in_shards=mesh is not None)
        self._check_precision()
        for held in (self.reference, self.initial):
            if held:
                held.prepare(self.policy)
            if held and mesh is not None:  # one after the other: no device has room for three whole models
                held.shard(mesh)
        if mesh is not None:
            shard(self.policy, mesh)
        # or DistributedDataParallel would send all buffers, a reference's among them, before each forward pass
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trained parameters, and its schedule."""
        optimizer = self.optimizer(param for param in self.policy.parameters() if param.requires_grad)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Check that a WindowReference can look ahead, and that a window it goes on with ends where an update comes.

        Raises:
            UserError: it cannot, or the window ends elsewhere.
        """
        if not isinstance(self.reference, WindowReference):
            return
        check_loader(self.trainer)
        ends, follows = self.reference.until, hard_update(self.trainer).next_update(self.global_step)
        if not self.reference.live and ends != follows:
            raise UserError(
                f"WindowReference has scored the batches up to step {ends}, and the next update follows step "
                f"{follows}: go on with the every_n_steps of before, or begin anew with reference.update(policy, 1.0)"
            )

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the mean loss over the examples of a batch."""
        if isinstance(self.reference, WindowReference) and self.reference.live:
            self._check(batch)
            self._score_ahead(self.reference, batch)
        values = self._evaluate(batch, with_initial=self._will_be_logged())
        if batch.blank:
            self._examples = 0
            return values["loss"].sum() * 0.0
        means = {f"train/{name}": value.detach().mean() for name, value in values.items() if value.numel()}
        self.log_dict(means, batch_size=len(batch))
        self._examples = values["loss"].numel()
        return values["loss"].sum() / max(self._examples, 1)  # SFT has nothing to learn from rejected responses alone

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh each of the batches that one optimizer step is made of by its examples."""
        if self._has_shared_steps():
            self._step_examples += self._examples
            loss = loss * self._examples
        super().backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient that of the mean over the examples of a step: of all its batches, on all ranks."""
        if not self._has_shared_steps():
            return
        count = torch.tensor(float(self._step_examples), device=self.device)
        of_ranks = self.trainer.strategy.reduce(count, reduce_op="mean")
        self._step_examples = 0
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:  # Lightning has divided by the number of batches and of ranks
                    param.grad.mul_(self.trainer.accumulate_grad_batches / of_ranks)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and free the gradients: Lightning would hold them through the next forward pass."""
        super().optimizer_step(*args, **kwargs)
        cast(Any, self.optimizers()).zero_grad()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the means of the validation."""
        self.means.update(self._evaluate(batch))

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the means of the test."""
        self.means.update(self._evaluate(batch))

    def predict_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return losses, rewards, margins, log-probs and log-ratios of each example, by name."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all examples."""
        self.log_dict({f"val/{name}": value for name, value in self.means.compute().items()})

    def on_test_epoch_end(self) -> None:
        """Log the means over all examples."""
        self.log_dict({f"test/{name}": value for name, value in self.means.compute().items()})

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Start the clock; the first batch after a resume finds the random state that it would have found."""
        if self._random_state is not None:
            _set_random_state(self._random_state, self.device)
            self._random_state = None
        self._started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        """Log the speed of this rank, in response tokens a second."""
        seconds = time.perf_counter() - self._started
        tokens = sum(part.sum() for part in batch.split(batch.lengths)[:2])
        self.log("train/response_tokens_per_second", tokens / seconds)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random states that dropout draws from, and the windows, of all ranks."""
        checkpoint["random_states"] = _of_all_ranks(_random_state(self.device))
        if isinstance(self.reference, WindowReference):
            checkpoint["windows"] = self.reference.windows()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint holds all that is not left out.

        Raises:
            UserError: it is of another policy or kind of reference.
        """
        states = checkpoint.get("random_states", [])
        if self._trainer and len(states) == self.trainer.world_size:
            self._random_state = states[self.global_rank]
        if isinstance(self.reference, WindowReference) and "windows" in checkpoint:
            self.reference.load_windows(checkpoint["windows"])
        if "state_dict" not in checkpoint:  # in shards, which the strategy reads and checks
            return
        missing = self.state_dict().keys() - checkpoint["state_dict"].keys()
        if isinstance(self.reference, WindowReference) and "windows" not in checkpoint:
            missing.add("windows")
        unknown = checkpoint["state_dict"].keys() - self.state_dict().keys()
        if missing or unknown:
            raise UserError(
                "the checkpoint is of another policy or kind of reference: "
                f"{len(missing)} tensors are not in it, {len(unknown)} are not in the model, "
                f"such as {min(missing | unknown)}"
            )

    @property
    def start(self) -> Reference | None:
        """The initial policy; None where it is not kept."""
        return self.initial if self.reference.moves else self.reference

    def kl_to_reference(self, batch: PairBatch) -> Tensor:
        """Return the KL divergence of the policy from the reference on the batches of all ranks, in nats a token."""
        kl, places = self.reference.kl(self.policy, self._laid_out(batch))
        total = torch.stack([kl, kl.new_tensor(places)]) * (not batch.blank)
        if self._trainer:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return total[0] / total[1].clamp(min=1)

    def reference_margin(self, batch: PairBatch) -> float:
        """Return what the reference takes off the mean reward margin of a batch of pairs; unpaired rows have none: nan.

        The reward margin is `beta * (policy_chosen - policy_rejected)` of log-probs plus this.
        """
        chosen, rejected, _ = batch.split(self.reference.log_probs(self.policy, self._laid_out(batch)))
        return -self.loss.beta * (chosen - rejected).mean().item() if batch.paired else math.nan

    def _evaluate(self, batch: PairBatch, with_initial: bool = True) -> dict[str, Tensor]:
        """Return values of each example by name; `loss` has a gradient in training."""
        self._check(batch)
        batch = self._laid_out(batch)
        reference = self.reference.log_probs(self.policy, batch)
        log_probs = response_log_probs(self.policy, batch)
        chosen, rejected, mismatched = _scores(batch, log_probs, reference)
        values = preference_metrics(chosen, rejected, self.loss.beta, batch.paired)
        labels = Labels(batch.certainty.float(), batch.margin.float())  # bf16-true casts what is in a batch
        values["loss"] = self.loss(chosen, rejected, self._kl_baseline(mismatched), labels)
        if self.initial and with_initial:
            initial = self.initial.log_probs(self.policy, batch)
            against_start = preference_metrics(*_scores(batch, log_probs, initial)[:2], self.loss.beta, batch.paired)
            values |= {f"initial/{name}": value for name, value in against_start.items() if "log_probs" not in name}
        return values

    def _score_ahead(self, reference: WindowReference, batch: PairBatch) -> None:
        """Let the policy score this batch and all that come before the next update: it moves with this one's step."""
        until = hard_update(self.trainer).next_update(self.global_step)
        count = batches_of_steps(self.trainer, until - self.global_step)
        # behind the last batch of the window comes the update, and then the policy is the reference again
        coming = chain(training_batches(self.trainer, batch, count), validation_batches(self.trainer, count - 1))
        reference.score(self.policy, map(self._laid_out, coming), until)

    def _laid_out(self, batch: PairBatch) -> PairBatch:
        """Return a packed batch as it is, or padded where the policy is not proven to take packs."""
        if not isinstance(batch, PackedBatch):
            return batch
        if self._takes_packs is None:
            reason = why_not_packed(self.policy)
            self._takes_packs = reason is None
            if reason:
                rank_zero_warn(f"batches are padded, which takes more time and memory: {reason}")
        return batch if self._takes_packs else batch.padded()

    def _check(self, batch: PairBatch) -> None:
        kind = type(self.loss).__name__
        if self.loss.paired and not batch.paired:
            raise UserError(f"{kind} compares the two responses of a pair, and the data is unpaired: take KTO or SFT")
        if self.loss.mismatched and batch.mismatched is None:
            raise UserError(f"{kind} needs mismatched rows for its KL baseline: set data.mismatched")

    def _kl_baseline(self, mismatched: Scores) -> Tensor:
        """Return KTO's KL baseline: the mean log-ratio of mismatched rows of all ranks, detached, never negative."""
        log_ratios = mismatched.log_ratios.detach()
        if not self.loss.mismatched:
            return log_ratios.new_zeros(())
        total = torch.stack([log_ratios.sum(), log_ratios.new_tensor(len(log_ratios))])
        if self._trainer and not self.trainer.predicting:  # in `predict`, ranks may have unequal numbers of batches
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return (total[0] / total[1].clamp(min=1)).clamp(min=0)

    def _data_mesh(self) -> DeviceMesh | None:
        """Return the devices that the weights are parted among, if they are."""
        mesh = self.device_mesh
        if mesh is None:
            return None
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "lit_tr parts weights by FSDP2 and not by tensors: give ModelParallelStrategy data_parallel_size N and "
                "tensor_parallel_size 1"
            )
        return mesh["data_parallel"]

    def _check_precision(self) -> None:
        true = TRUE.get(str(self.trainer.precision)) if self._trainer else None
        if true is None:
            return
        mixed = str(self.trainer.precision).replace("true", "mixed")
        for name, param in self.policy.named_parameters():
            if hasattr(param, "quant_state") and param.is_floating_point() and param.dtype != true:
                raise UserError(
                    f"{name}: trainer.precision {self.trainer.precision} would cast 4-bit codes that are held as "
                    f"{param.dtype}: take {mixed}, or load the policy in {true}"
                )
        if getattr(self.reference, "dtype", None) == "float32":
            raise UserError(
                f"trainer.precision {self.trainer.precision} would cast the reference that is to stay in float32: take "
                f"{mixed}, and model.policy.dtype for the precision of the weights"
            )
        if has_adapter(self.policy):
            rank_zero_warn(
                f"trainer.precision {self.trainer.precision} holds adapters in {true}, where small steps are lost: "
                f"{mixed} keeps them in float32 on a base of any precision"
            )

    def _has_shared_steps(self) -> bool:
        return self.trainer.accumulate_grad_batches > 1 or self.trainer.world_size > 1

    def _will_be_logged(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        last_of_step = not self.trainer.fit_loop._should_accumulate()
        return bool(every) and last_of_step and (self.global_step + 1) % every == 0

    def _fixed_keys(self) -> set[str]:
        """Return the keys of what training never changes: the base below an adapter, frozen copies of the start."""
        fixed = {f"policy.{key}" for key in base_state_keys(self.policy)}
        for name in ("reference", "initial"):
            if isinstance(held := getattr(self, name), FrozenReference):
                fixed |= {f"{name}.{key}" for key in held.state_dict()}
        return fixed


def _without_fixed(module: Any, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    if hasattr(module, "policy"):
        for key in module._fixed_keys():
            state.pop(prefix + key, None)


def _scores(batch: PairBatch, policy: Tensor, reference: Tensor) -> tuple[Scores, Scores, Scores]:
    """Return the scores of the chosen, the rejected and the mismatched rows."""
    parts = zip(*(batch.split(values) for values in (policy, reference, batch.lengths)), strict=True)
    chosen, rejected, mismatched = (Scores(*part) for part in parts)
    return chosen, rejected, mismatched


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def _of_all_ranks(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
