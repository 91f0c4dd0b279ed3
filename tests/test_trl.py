"""lit_tr against TRL 1.16 on the same models and rows: losses of a batch, and whole trajectories of TR-DPO."""

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Trainer
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.losses import CPO, DPO, IPO, KTO, LDDPO, SFT, AlphaDivergence, ForwardKL, SimPO, Weighted
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference

BETA = 0.1
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "gradient_checkpointing": False,
    "beta": BETA,
    "max_length": None,
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture
def reference_dir(llama_dir, tmp_path):
    """The same architecture with other weights, so that log-ratios are not zero."""
    torch.manual_seed(3)
    model = LlamaForCausalLM.from_pretrained(llama_dir)
    for param in model.parameters():
        param.data += 0.02 * torch.randn_like(param)
    model.save_pretrained(tmp_path / "reference")
    return str(tmp_path / "reference")


def our_values(llama_dir, reference_dir, path, loss, batch_size):
    """Our values of each example of the first batch, by name, with weights of its own in the reference."""
    reference = CopyReference() if loss.needs_reference else None
    module = PreferenceModule(PretrainedPolicy(llama_dir), reference, loss, log_initial=False)
    module.configure_model()
    if module.reference is not None:
        module.reference.model.load_state_dict(LlamaForCausalLM.from_pretrained(reference_dir).state_dict())
    data = PreferenceDataModule(
        llama_dir, Rows(path), batch_size=batch_size, shuffle=False, mismatched=loss.mismatched, max_length=256
    )
    data.setup("fit")
    return module.predict_step(next(iter(data.train_dataloader())), 0)


def our_loss(*arguments):
    return our_values(*arguments)["loss"].mean().item()


def their_loss(trainer, batch_size):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(batch_size)])
    return trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item()


@pytest.mark.parametrize(
    ("kind", "loss", "options"),
    [
        ("sigmoid", DPO(beta=BETA), {}),
        ("ipo", IPO(beta=BETA, average="mean"), {}),
        ("sigmoid_norm", DPO(beta=BETA, average="mean"), {}),
        ("sigmoid", DPO(beta=BETA, divergence=ForwardKL()), {"f_divergence_type": "forward_kl"}),
        ("sigmoid", DPO(beta=BETA, divergence=AlphaDivergence(0.5)), {"f_divergence_type": "alpha_divergence"}),
    ],
)
def test_losses_of_pairs(llama_dir, reference_dir, tmp_path, write_rows, rows, kind, loss, options):
    ours = our_loss(llama_dir, reference_dir, write_rows(rows), loss, 8)
    config = DPOConfig(tmp_path, loss_type=[kind], per_device_train_batch_size=8, **options, **COMMON)
    theirs = their_loss(make_dpo(config, llama_dir, reference_dir, rows), 8)
    # exponents of log-ratios turn their last bits into relative errors
    assert ours == pytest.approx(theirs, rel=1e-4 if options else 1e-5)


def test_metrics_of_pairs_have_the_names_and_values_of_trl(llama_dir, reference_dir, tmp_path, write_rows, rows):
    ours = our_values(llama_dir, reference_dir, write_rows(rows), DPO(beta=BETA), 8)
    trainer = make_dpo(DPOConfig(tmp_path, per_device_train_batch_size=8, **COMMON), llama_dir, reference_dir, rows)
    their_loss(trainer, 8)
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    names = [name for name in metrics if name.startswith(("rewards/", "logps/"))]
    of_tokens = {f"{kind}/{side}" for kind in ("tokens", "token_rewards") for side in ("chosen", "rejected")}
    assert set(ours) - set(names) - of_tokens == {"loss", "log_ratios", "logps/accuracies"}
    assert len(names) == 6
    for name in names:
        assert ours[name].mean().item() == pytest.approx(metrics[name][0], rel=1e-4), name


@pytest.mark.parametrize(
    ("loss", "options", "size"),
    [
        (SimPO(beta=0.2, gamma=0.5), {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}, 8),
        (CPO(beta=0.2, nll_weight=0.5), {"cpo_alpha": 0.5}, 1),  # TRL's NLL is a mean over the tokens of a batch
    ],
)
def test_losses_and_rewards_without_a_reference(llama_dir, tmp_path, write_rows, rows, loss, options, size):
    ours = our_values(llama_dir, None, write_rows(rows), loss, size)
    config = CPOConfig(tmp_path, per_device_train_batch_size=size, **{**COMMON, "beta": 0.2, **options})
    trainer = CPOTrainer(
        model=llama_dir,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(llama_dir),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(size)])
    value, metrics = trainer.get_batch_loss_metrics(trainer.model, trainer._prepare_inputs(batch))
    assert ours["loss"].mean().item() == pytest.approx(value.item(), rel=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert ours[name].mean().item() == pytest.approx(metrics[name], rel=1e-4), name


def make_kto(config, llama_dir, reference_dir, rows):
    return KTOTrainer(
        model=llama_dir,
        ref_model=LlamaForCausalLM.from_pretrained(reference_dir),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(llama_dir),
    )


def unpaired(row, label):
    return {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_losses_of_unpaired_rows(llama_dir, reference_dir, tmp_path, write_rows, rows, weights):
    labels = [True, False, False, True, True, False, True, True]
    # our rows stand the desirable ones first; TRL borrows from the row before as given
    given = sorted(map(unpaired, rows, labels), key=lambda row: not row["label"])
    desirable, undesirable = weights
    options = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    ours = our_loss(llama_dir, reference_dir, write_rows(given), KTO(beta=BETA, **options), 8)
    config = KTOConfig(tmp_path, per_device_train_batch_size=8, **options, **COMMON)
    assert ours == pytest.approx(their_loss(make_kto(config, llama_dir, reference_dir, given), 8), rel=1e-5)


def test_kto_of_pairs_and_unpaired_rows_in_one_batch(llama_dir, reference_dir, tmp_path, write_rows, rows):
    """Each response is an example: of two pairs, a desirable and two undesirable rows, seven."""
    ours = our_values(
        llama_dir,
        reference_dir,
        write_rows([unpaired(rows[2], False), rows[0], unpaired(rows[3], True), rows[1], unpaired(rows[4], False)]),
        KTO(beta=BETA, undesirable_weight=0.5),
        5,
    )
    chosen = [unpaired(rows[i], True) for i in (0, 3, 1)]
    given = chosen + [unpaired(rows[i], False) for i in (2, 0, 1, 4)]
    config = KTOConfig(tmp_path, per_device_train_batch_size=7, undesirable_weight=0.5, **COMMON)
    theirs = their_loss(make_kto(config, llama_dir, reference_dir, given), 7)
    assert ours["loss"].shape == (7,)
    assert ours["loss"].mean().item() == pytest.approx(theirs, rel=1e-5)
    assert (len(ours["rewards/chosen"]), len(ours["rewards/rejected"]), len(ours["rewards/margins"])) == (3, 4, 0)


def make_dpo(config, llama_dir, reference_dir, rows, trainer=DPOTrainer):
    return trainer(
        model=llama_dir,
        ref_model=LlamaForCausalLM.from_pretrained(reference_dir) if reference_dir else None,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(llama_dir),
    )


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4, 1.0])
def test_length_desensitization(llama_dir, reference_dir, tmp_path, write_rows, rows, ld_alpha):
    ours = our_loss(llama_dir, reference_dir, write_rows(rows), LDDPO(beta=BETA, ld_alpha=ld_alpha), 8)
    config = DPOConfig(tmp_path, ld_alpha=ld_alpha, per_device_train_batch_size=8, **COMMON)
    assert ours == pytest.approx(their_loss(make_dpo(config, llama_dir, reference_dir, rows), 8), rel=1e-5)


@pytest.mark.parametrize(
    ("kinds", "losses", "weights", "batch_size"),
    [
        (["sigmoid", "ipo"], [DPO(beta=BETA), IPO(beta=BETA, average="mean")], [1.0, 0.3], 8),
        (["sigmoid", "sft"], [DPO(beta=BETA), SFT()], [0.7, 2.0], 1),  # TRL's sft is a mean over the tokens of a batch
    ],
)
def test_lists_of_losses(llama_dir, reference_dir, tmp_path, write_rows, rows, kinds, losses, weights, batch_size):
    ours = our_loss(llama_dir, reference_dir, write_rows(rows), Weighted(losses, weights), batch_size)
    options = {"loss_type": kinds, "loss_weights": weights, "per_device_train_batch_size": batch_size}
    theirs = their_loss(make_dpo(DPOConfig(tmp_path, **options, **COMMON), llama_dir, reference_dir, rows), batch_size)
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_twenty_steps_of_tr_dpo(llama_dir, tmp_path, write_rows, rows, accumulate):
    """Soft updates with alpha 0.6 every 3 steps: every loss equal within 1e-4 relative."""
    ours = our_trajectory(llama_dir, write_rows(rows), accumulate)
    theirs = their_trajectory(llama_dir, tmp_path, rows, accumulate)
    assert len(ours) == len(theirs) == 20 * accumulate
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert min(ours) < 0.9 * max(ours)  # it is not a run in which nothing happens


def our_trajectory(llama_dir, path, accumulate):
    class Recorded(PreferenceModule):
        losses: list[float] = []

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.item())
            return loss

    module = Recorded(
        PretrainedPolicy(llama_dir),
        CopyReference(),
        DPO(beta=BETA),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0),
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    Trainer(
        accelerator="cpu",
        max_steps=20,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        callbacks=[SoftReferenceUpdate(alpha=0.6, every_n_steps=3)],
        **quiet,
    ).fit(module, PreferenceDataModule(llama_dir, Rows(path), batch_size=4, shuffle=False))
    return Recorded.losses


def their_trajectory(llama_dir, tmp_path, rows, accumulate):
    class Recorded(DPOTrainer):
        losses: list[float] = []

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

    config = DPOConfig(
        tmp_path,
        sync_ref_model=True,
        ref_model_mixup_alpha=0.6,
        ref_model_sync_steps=3,
        max_steps=20,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        **COMMON,
    )
    make_dpo(config, llama_dir, None, rows, Recorded).train()
    return Recorded.losses
