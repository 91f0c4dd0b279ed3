"""PreferenceModule: a policy, its reference and a loss, as a LightningModule."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_tr import checks, progress, resume
from lit_tr.console import RunProgress, RunSummary
from lit_tr.data.batches import PairBatch
from lit_tr.holder import ReferenceHolder
from lit_tr.hparams import describe
from lit_tr.loading import StepLoader, draw_from
from lit_tr.losses import Loss
from lit_tr.metrics import Means
from lit_tr.policy.compiled import fallbacks
from lit_tr.policy.loading import PretrainedPolicy, source_of
from lit_tr.policy.sharding import data_mesh, follow_random_state, full_tensor, replicate, shard
from lit_tr.reference import FrozenReference, Reference
from lit_tr.scoring import Scorer
from lit_tr.speed import Speed
from lit_tr.step_mean import StepMean
from lit_tr.warned import warn


class PreferenceModule(ReferenceHolder):
    """Trains a policy on preferences while a reference holds it near, and moves where a callback moves it.

    Logs, for training, validation and test: the loss; rewards, margins and accuracies as the loss defines them;
    log-probs of the responses; log-ratios to the reference; and the same against the initial policy (`initial/...`).
    Those of training are means over the examples of all ranks since the last logged step, but `initial/...`, which
    cost a forward pass and are computed on the batches of the logged steps alone. `start/...` are those of the first
    batch, before any step, where curves begin, unless that batch is logged by itself. Speeds are those of this rank
    since the last logged step, evaluations left out: `train/response_tokens_per_second`, `train/tokens_per_second`, of
    all that the policy computes, and `train/examples_per_second`, of pairs, or of responses where not all rows are
    pairs.

    Args:
        policy: where the policy comes from, loaded in `configure_model`; or the path of one; or a model in memory.
        reference: the kind of reference; None where the loss needs none, which takes no reference that moves.
        loss: the preference loss.
        optimizer: makes the optimizer from a list of the trained parameters; None takes AdamW with its defaults.
        lr_scheduler: makes a learning-rate schedule from the optimizer; it steps with the optimizer, and one that
            watches a metric (its `monitor`, by default `val/loss`) at the end of each epoch.
        log_initial: log against the initial policy. With a new adapter that takes no memory; a full model is held once
            more. None does so for references that move, but not where they are there to hold no model.

    Raises:
        UserError: an argument is none of these, or loss and reference do not go together.
    """

    loader: StepLoader

    def __init__(
        self,
        policy: PretrainedPolicy | str | Path | nn.Module,
        reference: Reference | None,
        loss: Loss,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        log_initial: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(describe(self), logger=False)
        checks.check_arguments(reference, loss)
        self.source, self.loss, self.reference = source_of(policy), loss, reference if loss.needs_reference else None
        self.optimizer, self.lr_scheduler = optimizer or torch.optim.AdamW, lr_scheduler
        if log_initial is None:
            log_initial = self.reference is not None and self.reference.moves and self.reference.log_initial
        self.initial = FrozenReference() if log_initial and not (self.reference and self.reference.is_start) else None
        self.means, self.interval, self.step_mean, self.speed = Means(), Means(), StepMean(), Speed()
        self.scorer = Scorer(loss)
        self._examples = 0

    def configure_callbacks(self) -> list[Any]:
        """Check the trainer, and show a run by lit_tr's own summary and progress in the place of Lightning's defaults.

        `enable_model_summary` and `enable_progress_bar` turn them off, and a progress bar of another class stays.
        """
        checks.check_trainer(self.trainer)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        defaults = {type(one): one for one in callbacks if type(one) in (RichModelSummary, RichProgressBar)}
        for one in defaults.values():
            callbacks.remove(one)
        if RichModelSummary in defaults and RunSummary not in map(type, callbacks):
            callbacks.insert(0, RunSummary())  # before what other callbacks print at the start
        return [RunProgress()] if RichProgressBar in defaults else []

    def setup(self, stage: str) -> None:
        """Check what goes with the reference before weights are loaded, and draw the training batches by steps."""
        self.scorer.longest = getattr(self.trainer.datamodule, "max_length", None)  # type: ignore[attr-defined]
        for held in self.held:
            held.check_policy(self.source.has_adapter)
            held.setup(self.trainer, self)
        if stage == TrainerFn.FITTING:
            checks.say_what_does_not_move(self)
            self.saved: list[dict[str, Any]] = []
            draw_from(self.trainer.fit_loop, self._by_steps)

    def configure_model(self) -> None:
        """Load the policy and build the references from it, once; what does not go together is a `UserError`."""
        if hasattr(self, "policy"):
            return
        mesh, before = data_mesh(self.device_mesh), torch.get_rng_state()
        device = self.trainer.strategy.root_device if self._trainer else "cpu"
        self.policy = self.source.load(device, in_shards=mesh is not None)
        checks.check_trained(self.policy)
        if self._trainer:
            checks.check_precision(self.policy, self.trainer.precision, mesh is not None)
            if mesh is None and self.trainer.world_size > 1:
                replicate(self.policy, self.trainer.strategy.root_device)  # before references copy it
        is_meta = next(self.policy.parameters()).is_meta
        for held in self.held:
            with torch.device("meta") if is_meta else nullcontext():
                held.prepare(self.policy)
            if mesh is not None:  # one after the other: rank 0 has no room for three whole models
                held.shard(mesh, str(self.trainer.precision))
        if mesh is not None:
            shard(self.policy, mesh, str(self.trainer.precision))
            follow_random_state(before)
        self.strict_loading = mesh is None  # or a file with an adapter would have to hold its base, too
        # or DistributedDataParallel would send all buffers before each forward pass
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets."""
        return [param for param in self.policy.parameters() if param.requires_grad]

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trained parameters, and its schedule."""
        optimizer = self.optimizer(self.trained)
        if self.lr_scheduler is None:
            return optimizer
        schedule: dict[str, Any] = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        if isinstance(scheduler := schedule["scheduler"], ReduceLROnPlateau):
            schedule |= {"interval": "epoch", "monitor": getattr(scheduler, "monitor", "val/loss")}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        """Choose the layout of batches before their loaders are made, and let the reference get ready."""
        rows: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(rows, "packed", False):
            with self._precision():
                rows.packed = self.scorer.takes_packs(self.policy)
        for held in self.held:
            held.on_fit_start(self.trainer, self)

    def on_train_start(self) -> None:
        """Begin with no step begun; after a resume, as the last whole step left it."""
        self.step_mean.reset()
        self.interval.reset()
        self._in_step = False
        if self.saved:
            resume.restore(self, self.saved)
        for held in self.held:
            held.on_train_start(self.trainer, self)
        self.speed.reset(self.device)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Keep what a checkpoint within a step holds: what was before its first batch."""
        if not self._in_step:
            self.before_step = resume.moment(self)
        self._in_step = True
        # Lightning counts one too many where it passes over a validation after a resume
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the mean loss over the examples of a batch."""
        if self.reference is not None:
            self.reference.on_train_batch_start(self, batch)
        self._logs = logs = progress.is_logged(self.trainer)
        self._shows = logs or progress.ends_epoch(self.trainer)  # at an epoch's end for callbacks that watch a metric
        tokens = cast(Any, batch).input_ids.numel()
        self.speed.add(response_tokens=sum(batch.tokens[:2]), tokens=tokens, examples=len(batch))
        values = self._evaluate(batch, self.initial if logs else None, training=True)
        self.interval.update(values)
        if (
            self.global_step == 0 and batch_idx == 0 and self.loggers and not logs
        ):  # for curves that begin before the first step
            start = {f"start/{name}": value.item() for name, value in self.interval.compute(keep=True).items()}
            for logger in self.loggers:
                logger.log_metrics(start, step=0)
        if self._shows:
            means = self.interval.compute(keep=not logs)
            self.log_dict({f"train/{name}": value for name, value in means.items()})
        self._examples = values["loss"].numel()
        return values["loss"].sum() / max(self._examples, 1)  # SFT has nothing to learn from rejected responses alone

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh each of the batches that one optimizer step is made of by its examples."""
        super().backward(self.step_mean.weigh(self.trainer, loss, self._examples), *args, **kwargs)

    def on_after_backward(self) -> None:
        """Make the gradient that of the mean over the examples of a step: of all its batches, on all ranks."""
        if progress.ends_step(self.trainer):
            self.step_mean.normalise(self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate, and the norm of the gradient before it is clipped."""
        if self._logs:
            gradients = [param.grad for param in self.trained if param.grad is not None]
            norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
            rate = max(group["lr"] for group in optimizer.param_groups)
            self.log_dict({"train/grad_norm": norm, "train/learning_rate": rate})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and free the gradients: Lightning would hold them through the next forward pass."""
        super().optimizer_step(*args, **kwargs)
        self.trainer.optimizers[0].zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        """Log how fast this rank trains."""
        if self._shows:
            self.log_dict({f"train/{name}": rate for name, rate in self.speed.rates(self.device).items()})
        if self._logs:
            self.speed.reset(self.device)
        self._in_step = not progress.ends_step(self.trainer)
        if said := fallbacks():
            warn(said)

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a batch to the means of an evaluation; callbacks get the values of each example, by name."""
        values = self._evaluate(batch, self.initial)
        self.means.update(values)
        return values

    test_step = validation_step

    def predict_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return losses, rewards, margins, log-probs and log-ratios of each example, by name.

        With them the implicit reward of each token: `token_rewards/chosen` is a list with a tensor `(scored tokens,)`
        for each response, `tokens/chosen` has the ids of these tokens.
        """
        return self._evaluate(batch, self.initial, by_token=True)

    def on_validation_start(self) -> None:
        """Begin a validation, which is no part of the speed of training."""
        self.speed.pause(self.device)
        self.means.reset()
        self.is_validated = False

    def on_validation_epoch_end(self) -> None:
        """Log the means over all examples."""
        self.is_validated = True
        self.log_dict({f"val/{name}": value for name, value in self.means.compute().items()})

    def on_validation_end(self) -> None:
        """Go on with training."""
        self.speed.go_on(self.device)

    def on_test_epoch_end(self) -> None:
        """Log the means over all examples."""
        self.log_dict({f"test/{name}": value for name, value in self.means.compute().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint be that of the last whole optimizer step."""
        resume.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what is not weights; a checkpoint of another policy or kind of reference is a `UserError`."""
        resume.load(self, checkpoint)

    def placed(self, batch: PairBatch) -> PairBatch:
        """Return a batch as it comes to `training_step`: on the device, and in the layout that the policy takes."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def kl_to_reference(self, batch: PairBatch) -> Tensor:
        """Return the KL divergence of the policy from the reference on the batches of all ranks, in nats per token."""
        with self._precision():
            kl, tokens = self._add_ranks(self.scorer.kl(self.policy, self.reference, batch))
        return kl / tokens.clamp(min=1)

    def reward_margin(self, batch: PairBatch) -> Tensor | None:
        """Return the mean reward margin of a batch of pairs against the reference, a scalar; None of unpaired rows.

        A reward is beta times a log-ratio in nats, summed over a response (Rafailov et al. 2023, arXiv 2305.18290,
        Sec. 4), unless the loss defines another. It is computed without gradient and dropout.
        """
        with self._precision():
            return self.scorer.reward_margin(self.policy, self.reference, batch)

    def _on_before_batch_transfer(self, batch: PairBatch, dataloader_idx: int = 0) -> PairBatch:
        """Pad a packed batch that the policy does not take, such as those of other loaders than the data module's."""
        batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        with self._precision():
            return self.scorer.laid_out(self.policy, batch)

    def _by_steps(self, loader: Any) -> StepLoader:
        self.loader = StepLoader(loader, self)
        self.loader.load([state["position"] for state in self.saved], self.global_rank, self.trainer.world_size)
        return self.loader

    def _evaluate(self, batch: PairBatch, initial: Reference | None, **options: bool) -> dict[str, Any]:
        options = {"training": False, **options}
        return self.scorer.values(self.policy, self.reference, initial, batch, self._add_ranks, **options)

    def _add_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum") if self._trainer else values

    def _precision(self) -> AbstractContextManager:
        return self.trainer.precision_plugin.forward_context() if self._trainer else nullcontext()
