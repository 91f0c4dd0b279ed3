import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from lit_tr import PreferenceDataModule
from lit_tr.commands import main
from lit_tr.commands.export import export
from lit_tr.data import Objects
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, Scores
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.rewards import BradleyTerry, Candidate, RewardModel, RewardModule
from tests.runs import fails, metrics

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PAIRS = [
    TokenizedExample([5, 6, 7], [8, 9, 10], [11], margin=2.0),  # one token, which the prompt's last one predicts
    TokenizedExample([12], [13], [14, 15, 16, 17]),
    TokenizedExample([5, 6, 7], [18, 19], [20, 21], margin=0.5, confidence=0.75),  # shares its prompt with the first
]
SMALL_GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant: {% endif %}"


def made(policy, margin_scale=0.0, lr=0.02, head=0.3):
    """A module whose head is random."""
    torch.manual_seed(0)
    module = RewardModule(policy, margin_scale, optimizer=lambda params: torch.optim.AdamW(params, lr=lr))
    module.configure_model()
    torch.nn.init.normal_(module.reward_head.weight, std=head)
    return module.eval()


def by_hand(module, pairs):
    """The rewards of chosen and rejected responses, each by a forward pass of its own."""
    model = module.policy.get_base_model() if hasattr(module.policy, "get_base_model") else module.policy
    rows = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    last = [model.model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    return torch.stack([hidden @ module.reward_head.weight[0] for hidden in last]).split(len(pairs))


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: param.grad for name, param in module.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_loss_and_gradients_are_those_of_rows_one_by_one_in_float64(llama_dir, packed, lora):
    module = made(PretrainedPolicy(llama_dir, lora=lora), margin_scale=0.5).double()
    if lora:
        for name, param in module.policy.named_parameters():
            torch.nn.init.normal_(param, std=0.1) if "lora_B" in name else None
    loss = module.validation_step(Collator(packed=packed)(PAIRS), 0)["loss"].mean()
    ours = gradients(module, loss)
    chosen, rejected = by_hand(module, PAIRS)
    x = chosen - rejected - 0.5 * torch.tensor([2.0, 0.0, 0.5])
    confidence = torch.tensor([1.0, 1.0, 0.75])
    expected = -(confidence * F.logsigmoid(x) + (1 - confidence) * F.logsigmoid(-x)).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    theirs = gradients(module, expected)
    assert ours.keys() == theirs.keys()
    assert {"reward_head.weight"} < ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_batch_says_rewards_margins_and_accuracies_of_its_pairs(llama_dir):
    module = made(llama_dir)
    values = module.validation_step(Collator()(PAIRS), 0)
    chosen, rejected = by_hand(module, PAIRS)
    torch.testing.assert_close(values["rewards/chosen"], chosen.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values["rewards/margins"], (chosen - rejected).detach(), rtol=1e-5, atol=1e-5)
    assert values["rewards/accuracies"].tolist() == (chosen > rejected).float().tolist()


def test_the_loss_is_dpo_on_rewards_and_subtracts_margins():
    labels = {"margin": torch.tensor([2.0, math.nan]), "confidence": torch.tensor([1.0, 0.75])}
    tokens, zero = torch.ones(2), torch.zeros(2)
    rewards = torch.tensor([3.0, -1.0]), torch.tensor([1.5, 0.5])
    both = [Scores(one, tokens, labels=labels) for one in rewards]
    against_zero = [Scores(one, tokens, reference=zero, labels=labels) for one in rewards]
    ours = BradleyTerry(margin_scale=0.5)(*both)
    torch.testing.assert_close(ours, DPO(beta=1.0, margin_scale=0.5)(*against_zero))
    assert ours[0].item() == pytest.approx(math.log(1 + math.exp(-(3.0 - 1.5 - 0.5 * 2.0))))
    assert ours[1].item() == pytest.approx(0.75 * math.log(1 + math.exp(1.5)) + 0.25 * math.log(1 + math.exp(-1.5)))


def fit(module, path, rows=None, **options):
    torch.manual_seed(0)
    trainer = Trainer(**{**QUIET, "max_steps": 4, "enable_checkpointing": False, **options})
    data = PreferenceDataModule(path, rows or SyntheticPairs(16), val=SyntheticPairs(10, seed=8), shuffle=False)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("policy", [{}, {"lora": LoRA(r=4)}, {"lora": LoRA(r=4), "quantize": "nf4"}])
def test_training_begins_at_log_2_and_moves_head_and_model(llama_dir, policy):
    module = made(PretrainedPolicy(llama_dir, **policy), head=0.0)
    before = {name: param.detach().clone() for name, param in module.named_parameters() if param.requires_grad}
    trainer = fit(module, llama_dir, SyntheticPairs(4), max_steps=12, log_every_n_steps=1)
    assert module.validation_step(Collator()(PAIRS), 0)["loss"].shape == (3,)
    assert {name for name, param in module.named_parameters() if torch.equal(param, before.get(name, param))} == {
        name for name, param in module.named_parameters() if not param.requires_grad
    }
    assert trainer.callback_metrics["train/loss"] < 0.5  # four pairs seen twelve times
    assert {"train/grad_norm", "val/loss", "val/rewards/margins"} <= trainer.callback_metrics.keys()


def test_the_first_loss_is_log_2(llama_dir):
    module = made(llama_dir, head=0.0)
    assert module.validation_step(Collator()(PAIRS), 0)["loss"].tolist() == pytest.approx([math.log(2)] * 3)


def test_an_output_head_that_no_reward_needs_is_not_trained(llama_dir):
    """DistributedDataParallel would wait for its gradient; one that is the embeddings, too, is trained as these."""
    assert not made(llama_dir).policy.lm_head.weight.requires_grad
    assert made(GPT2LMHeadModel(GPT2Config(**SMALL_GPT2))).policy.lm_head.weight.requires_grad


def test_what_is_no_pair_or_no_decoder_is_one_clear_error(llama_dir):
    unpaired = Objects([{"prompt": "Is it?", "completion": f" Yes {i}.", "label": True} for i in range(4)])
    with pytest.raises(UserError, match="RewardModule compares the two responses of a pair, and the data is unpaired"):
        fit(made(llama_dir), llama_dir, unpaired)
    with pytest.raises(UserError, match="RewardModule: Linear is no decoder with hidden states"):
        RewardModule(torch.nn.Linear(2, 1)).configure_model()
    with pytest.raises(UserError, match="margin_scale must not be negative, not -1"):
        RewardModule(llama_dir, margin_scale=-1.0)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("policy", [{}, {"lora": LoRA(r=4)}])
def test_what_is_exported_scores_as_the_module_does(llama_dir, tmp_path, tokenizer, monkeypatch, policy, template):
    start = tmp_path / "start"
    LlamaForCausalLM.from_pretrained(llama_dir).save_pretrained(start)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    tokenizer.save_pretrained(start)
    module = made(PretrainedPolicy(str(start), **policy))
    fit(module, str(start)).save_checkpoint(tmp_path / "one.ckpt")
    folder = export(tmp_path / "one.ckpt", tmp_path / "reward")
    scorer = RewardModel(str(folder), device="cpu", dtype="float32", batch_size=3)
    rows = [row for _, row in SyntheticPairs(6, seed=4).rows()]
    data = PreferenceDataModule(str(start), train=rows, batch_size=6, shuffle=False)
    data.setup("fit")
    [batch] = data.train_dataloader()
    expected = module.eval().rewards(batch).tolist()
    texts = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
    if template:  # messages have no white space around them
        texts = [(prompt, response.strip()) for prompt, response in texts]
    assert scorer.score([Candidate(*both) for both in texts]) == pytest.approx(expected, abs=1e-5)
    assert len({round(reward, 4) for reward in expected}) > 6
    assert "A reward model trained on preferences" in (folder / "README.md").read_text()


@pytest.fixture
def reward_config(tmp_path):
    """The options of `lit-tr fit` for a short run."""
    return [
        "fit",
        "--config=configs/reward_model.yaml",
        "--trainer.val_check_interval=4",
        "--trainer.log_every_n_steps=1",
        "--data.train.size=32",
        "--data.val.size=8",
        "--data.batch_size=4",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]


def test_a_run_is_resumed_validated_and_not_averaged(llama_dir, tmp_path, reward_config, capsys):
    fit_it = [*reward_config, f"--model.init_args.policy.path={llama_dir}"]
    main([*fit_it, "--trainer.max_steps=6", f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    main([*fit_it, "--trainer.max_steps=3"])
    main([*fit_it, "--trainer.max_steps=6", "--ckpt_path=last"])
    of_whole = [row["train/loss"] for row in metrics(tmp_path / "whole") if row.get("train/loss")]
    of_rest = [row["train/loss"] for row in metrics(tmp_path / "run", 1) if row.get("train/loss")]
    assert of_rest[-3:] == of_whole[-3:]
    capsys.readouterr()
    main(["validate", *fit_it[1:], "--ckpt_path=last"])
    printed = capsys.readouterr().out
    assert "Accuracy of the rewards, BradleyTerry" in printed
    assert "% to" in printed  # accuracy on 8 pairs, with its interval
    [checkpoint, *_] = (tmp_path / "whole").rglob("last.ckpt")
    where = f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}"
    assert "this is a reward model" in fails(capsys, "export", *where, "--average=0.5")


@pytest.mark.slow
def test_held_out_pairs_of_the_embedded_task_are_told_apart(tmp_path):
    """The gold reward itself agrees with 85 % of these labels."""
    main(["fit", "--config=configs/reward_model.yaml", f"--trainer.default_root_dir={tmp_path}"])
    accuracies = [row["val/rewards/accuracies"] for row in metrics(tmp_path) if row.get("val/rewards/accuracies")]
    assert float(accuracies[-1]) > 0.58  # three standard errors above one half
