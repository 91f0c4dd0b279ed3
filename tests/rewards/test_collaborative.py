import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lit_tr import PreferenceDataModule
from lit_tr.commands.export import export
from lit_tr.data import Without
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.losses import DPO, KTO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.loading import GivenPolicy
from lit_tr.reference import CopyReference, FrozenReference
from lit_tr.rewards import Candidate, CollaborativePolicy, CollaborativeReward, RewardModel
from tests.rewards.test_training import PAIRS, QUIET, by_hand, gradients


def made(policy, noise=0.5, **options):
    """A module whose heads are random."""
    torch.manual_seed(0)
    module = CollaborativeReward(policy, noise, optimizer=lambda params: torch.optim.AdamW(params, lr=0.01), **options)
    module.configure_model()
    for one in (module, module.peer):
        torch.nn.init.normal_(one.reward_head.weight, std=0.3)
    return module.eval()


def fit(module, path, rows, folder, **options):
    torch.manual_seed(0)
    trainer = Trainer(**{**QUIET, "max_steps": 4, "default_root_dir": folder, "enable_checkpointing": False, **options})
    data = PreferenceDataModule(path, rows, val=SyntheticPairs(8, seed=8), batch_size=4)
    trainer.fit(module, data)
    return trainer, data


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_each_model_learns_from_the_pairs_of_the_peers_highest_margins(llama_dir, monkeypatch, lora):
    monkeypatch.setattr(CollaborativeReward, "global_step", 5)
    module = made(PretrainedPolicy(llama_dir, lora=lora), noise=0.5, steps=10, margin_scale=0.1)
    assert module.kept == 0.75
    pairs = [*PAIRS, *(TokenizedExample([5, i], [i + 1, 9], [i + 3]) for i in range(8, 16, 4))]
    batch = Collator()(pairs)
    values = module._evaluate(batch, None, training=True)
    ours = gradients(module, values["loss"].mean())
    margins = [chosen - rejected for chosen, rejected in (by_hand(one, pairs) for one in (module, module.peer))]
    best = [one.topk(4).indices for one in margins]  # 0.75 * 5, rounded up
    assert {*best[0].tolist()} != {*best[1].tolist()}
    x = [one - 0.1 * torch.tensor([2.0, 0.0, 0.5, 0.0, 0.0]) for one in margins]
    confidence = torch.tensor([1.0, 1.0, 0.75, 1.0, 1.0])
    losses = [-(confidence * F.logsigmoid(one) + (1 - confidence) * F.logsigmoid(-one)) for one in x]
    expected = losses[0][best[1]].mean() + losses[1][best[0]].mean()
    torch.testing.assert_close(values["loss"].mean(), expected)
    assert values["kept"].nonzero().flatten().tolist() == sorted(best[1].tolist())
    theirs = gradients(module, expected)
    assert ours.keys() == theirs.keys()
    assert {"reward_head.weight", "peer.reward_head.weight"} < ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def log_prob(model, pair, response):
    """The log-prob of a response by a forward pass of its own."""
    ids = torch.tensor([[*pair.prompt, *response]])
    found = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return found[len(pair.prompt) - 1 :].sum()


def implicit_margins(model, start, pairs):
    return torch.stack(
        [
            sum(
                sign * (log_prob(model, pair, response) - log_prob(start, pair, response).detach())
                for sign, response in ((0.5, pair.chosen), (-0.5, pair.rejected))
            )
            for pair in pairs
        ]
    )


def two_policies(policy, reference=None, **options):
    """A module whose two policies lie away from where they began."""
    torch.manual_seed(0)
    made = CollaborativePolicy(policy, reference or FrozenReference(), DPO(beta=0.5), **options)
    made.configure_model()
    for one in (made, made.peer):
        for param in one.trained:
            param.data += 0.1 * torch.randn_like(param)
    return made.eval()


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_each_policy_learns_from_the_pairs_of_the_peers_highest_implicit_margins(llama_dir, monkeypatch, lora):
    monkeypatch.setattr(CollaborativePolicy, "global_step", 5)
    module = two_policies(PretrainedPolicy(llama_dir, lora=lora), noise=0.5, steps=5)
    start = PretrainedPolicy(llama_dir).load().eval()
    pairs = [*PAIRS, *(TokenizedExample([5, i], [i + 1, 9], [i + 3]) for i in range(8, 16, 4))]
    batch = Collator()(pairs)
    values = module._evaluate(batch, None, training=True)
    ours = gradients(module, values["loss"].mean())
    margins = [implicit_margins(one.policy, start, pairs) for one in (module, module.peer)]
    torch.testing.assert_close(module.margins(batch), torch.stack(margins, dim=1).detach(), rtol=1e-4, atol=1e-4)
    best = [one.topk(3).indices for one in margins]  # 0.5 * 5, rounded up
    assert {*best[0].tolist()} != {*best[1].tolist()}
    confidence = torch.tensor([1.0, 1.0, 0.75, 1.0, 1.0])
    losses = [-(confidence * F.logsigmoid(one) + (1 - confidence) * F.logsigmoid(-one)) for one in margins]
    expected = losses[0][best[1]].mean() + losses[1][best[0]].mean()
    torch.testing.assert_close(values["loss"].mean(), expected, rtol=1e-4, atol=1e-5)
    theirs = gradients(module, expected)
    assert ours.keys() == theirs.keys()
    assert {name.partition(".")[0] for name in ours} == {"policy", "peer"}
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("policy", [{}, {"lora": LoRA(r=4)}])
def test_two_policies_write_what_they_take_for_flipped_and_a_checkpoint_holds_both(llama_dir, tmp_path, policy):
    options = {"noise": 0.4, "steps": 2, "optimizer": lambda params: torch.optim.AdamW(params, lr=0.01)}
    module = CollaborativePolicy(PretrainedPolicy(llama_dir, **policy), FrozenReference(), DPO(beta=0.5), **options)
    trainer, data = fit(module, llama_dir, SyntheticPairs(20, flipped=0.4), tmp_path, log_every_n_steps=1)
    assert trainer.callback_metrics["train/kept"] == 0.75
    batch, module = Collator()([data.examples["train"][i] for i in range(20)]), module.eval()
    margins = module.margins(batch)
    assert (margins[:, 0] != margins[:, 1]).any()  # two policies, and not one
    wrong = [i for i, both in enumerate(margins.tolist()) if max(both) < 0]
    found = [json.loads(line)["location"] for line in (tmp_path / "flipped.jsonl").read_text().splitlines()]
    assert found == [f"synthetic pairs of seed 0, row {i}" for i in wrong]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = CollaborativePolicy.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    assert torch.equal(loaded.margins(batch), margins)
    folder = export(tmp_path / "one.ckpt", tmp_path / "policy", merge=bool(policy))
    [exported] = open_policies([str(folder)], Loading("float32", device="cpu"))
    pair = data.examples["train"][0]
    with exported.active() as model, torch.no_grad():
        expected = log_prob(model, pair, pair.chosen).item()
    assert module._evaluate(batch, None)["logps/chosen"][0].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("which", ["moves", "unpaired"])
def test_what_two_policies_cannot_take_is_named(llama_dir, which):
    reference, loss, said = {
        "moves": (CopyReference(), DPO(beta=0.5), "its reference must not move"),
        "unpaired": (FrozenReference(), KTO(beta=0.5), "KTO does not compare the two responses of a pair"),
    }[which]
    with pytest.raises(UserError, match=said):
        CollaborativePolicy(llama_dir, reference, loss)
    with pytest.raises(UserError, match=r"CollaborativePolicy: noise 1.0 must be in \[0, 1\)"):
        CollaborativePolicy(llama_dir, FrozenReference(), DPO(beta=0.5), noise=1.0)


def test_log_probs_that_are_precomputed_serve_both_policies(llama_dir, tmp_path):
    found = []
    for reference in FrozenReference(), FrozenReference(precompute=True, folder=str(tmp_path)):
        torch.manual_seed(0)
        options = {"noise": 0.4, "steps": 2, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
        module = CollaborativePolicy(llama_dir, reference, DPO(beta=0.5), **options)
        fit(module, llama_dir, SyntheticPairs(20, flipped=0.4), tmp_path)
        found.append([json.loads(line) for line in (tmp_path / "flipped.jsonl").read_text().splitlines()])
    assert module.peer.reference.model is None
    assert [one["location"] for one in found[0]] == [one["location"] for one in found[1]]
    margins = [torch.tensor([one["margins"] for one in those]) for those in found]
    torch.testing.assert_close(*margins, rtol=1e-3, atol=1e-4)


def test_a_resume_of_a_run_that_was_stopped_at_its_end_writes_the_list(llama_dir, tmp_path):
    def made():
        adam = partial(torch.optim.AdamW, lr=0.01)
        return CollaborativePolicy(llama_dir, FrozenReference(), DPO(beta=0.5), noise=0.4, steps=2, optimizer=adam)

    rows, listed = SyntheticPairs(20, flipped=0.4), tmp_path / "flipped.jsonl"
    trainer, _ = fit(made(), llama_dir, rows, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    written = listed.read_text()
    listed.unlink()
    trainer = Trainer(**{**QUIET, "max_steps": 4, "default_root_dir": tmp_path, "enable_checkpointing": False})
    data = PreferenceDataModule(llama_dir, rows, val=SyntheticPairs(8, seed=8), batch_size=4)
    trainer.fit(made(), data, ckpt_path=tmp_path / "last.ckpt")
    assert listed.read_text() == written


def test_batches_too_small_to_leave_out_a_pair_are_told(llama_dir, tmp_path):
    said = "a batch of 4 pairs leaves out none with noise 0.2: give data.batch_size 5 or more"
    with pytest.warns(UserWarning, match=said):
        fit(CollaborativeReward(llama_dir, noise=0.2), llama_dir, SyntheticPairs(8), tmp_path)


def test_the_share_falls_from_all_to_those_that_are_right(llama_dir, monkeypatch):
    module = CollaborativeReward(llama_dir, noise=0.4, steps=100)
    kept = []
    for step in (0, 50, 100, 1000):
        monkeypatch.setattr(CollaborativeReward, "global_step", step)
        kept.append(module.kept)
    assert kept == pytest.approx([1.0, 0.8, 0.6, 0.6])


def test_two_full_models_are_not_one(llama_dir):
    module = CollaborativeReward(llama_dir)
    module.configure_model()
    assert not module.reward_head.weight.any()
    assert module.peer.reward_head.weight.any()
    assert {id(one) for one in module.peer.parameters()}.isdisjoint(id(one) for one in module.policy.parameters())
    given = CollaborativeReward(module.policy)
    assert isinstance(given.source, GivenPolicy)
    assert given.peer.source.model is not given.source.model


@pytest.mark.parametrize("policy", [{}, {"lora": LoRA(r=4)}])
def test_a_run_writes_what_it_takes_for_flipped_and_another_leaves_that_out(llama_dir, tmp_path, policy):
    rows, policy = SyntheticPairs(20, flipped=0.4), PretrainedPolicy(llama_dir, **policy)
    module = CollaborativeReward(policy, 0.4, 2, optimizer=lambda params: torch.optim.AdamW(params, lr=0.01))
    trainer, data = fit(module, llama_dir, rows, tmp_path, log_every_n_steps=1)
    assert trainer.callback_metrics["train/kept"] == 0.75  # 3 of 4 pairs, for 0.6 * 4 is rounded up
    examples = [data.examples["train"][i] for i in range(20)]
    margins = torch.stack([a - b for a, b in (by_hand(one.eval(), examples) for one in (module, module.peer))], dim=1)
    wrong = [i for i, both in enumerate(margins.tolist()) if max(both) < 0]
    found = [json.loads(line) for line in (tmp_path / "flipped.jsonl").read_text().splitlines()]
    assert [one["location"] for one in found] == [f"synthetic pairs of seed 0, row {i}" for i in wrong]
    assert 0 < len(wrong) < 20
    torch.testing.assert_close(torch.tensor([one["margins"] for one in found]), margins[wrong], rtol=1e-4, atol=1e-5)
    again = PreferenceDataModule(llama_dir, Without(rows, str(tmp_path / "flipped.jsonl")))
    again.setup("fit")
    assert len(again.examples["train"]) == 20 - len(wrong)


@pytest.mark.parametrize("policy", [{}, {"lora": LoRA(r=4)}])
def test_a_checkpoint_holds_both_models_and_is_exported_as_the_first(llama_dir, tmp_path, policy):
    module = made(PretrainedPolicy(llama_dir, **policy))
    trainer, _ = fit(module, llama_dir, SyntheticPairs(16), tmp_path)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = CollaborativeReward.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    batch = Collator()(PAIRS)
    assert torch.equal(loaded.margins(batch), module.eval().margins(batch))
    assert (loaded.noise, loaded.steps) == (0.5, 500)
    folder = export(tmp_path / "one.ckpt", tmp_path / "reward")
    [(_, row)] = SyntheticPairs(1, seed=4).rows()
    data = PreferenceDataModule(llama_dir, train=[row], shuffle=False)
    data.setup("fit")
    [batch] = data.train_dataloader()
    scorer = RewardModel(str(folder), device="cpu", dtype="float32")
    texts = [Candidate(row["prompt"], row[side]) for side in ("chosen", "rejected")]
    assert scorer.score(texts) == pytest.approx(module.rewards(batch).tolist(), abs=1e-5)


def test_mistakes_are_named(llama_dir, monkeypatch):
    for wrong in ({"noise": 1.0}, {"noise": -0.1}, {"steps": 0}):
        with pytest.raises(UserError, match=r"noise .* must be in \[0, 1\), steps .* at least 1"):
            CollaborativeReward(llama_dir, **wrong)
    module = CollaborativeReward(llama_dir)
    monkeypatch.setattr(module, "_device_mesh", object())
    with pytest.raises(UserError, match="CollaborativeReward does not shard"):
        module.configure_model()
