import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_tr import PreferenceDataModule
from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands import main
from lit_tr.commands.export import export
from lit_tr.commands.fit import configured
from lit_tr.data import Rows
from lit_tr.errors import UserError
from lit_tr.evaluation.policies import open_policies
from lit_tr.iteration import scored_pair
from lit_tr.iteration.training import Chain, check_fit, pair_rows, substituted
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs, scoring

KINDS = ["full", "lora"]
PRETRAINED = {"class_path": "lit_tr.reference.PretrainedReference", "init_args": {"source": {"path": "{initial}"}}}
FROZEN = {"class_path": "lit_tr.reference.FrozenReference"}
MOVING = {
    "full": {"class_path": "lit_tr.reference.CopyReference"},
    "lora": {"class_path": "lit_tr.reference.AdapterReference"},
}
STEPS = 2


def configuration(base, kind, **more):
    policy = {"path": base} | ({"lora": {"r": 4, "alpha": 8}} if kind == "lora" else {})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    loss = {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": 0.5}}
    return {
        "seed_everything": 1,
        "trainer": {"max_steps": STEPS, "log_every_n_steps": 1, **quiet},
        "model": {"policy": policy, "reference": FROZEN, "loss": loss, "optimizer": optimizer, **more.pop("model", {})},
        "data": {"batch_size": 4, "max_length": 128},
        **more,
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, rows):
    """A file of pairs of a round."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    scores = {"id": "0", "score_chosen": 2.0, "score_rejected": 1.0}
    lines = (json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")} | scores) for row in rows[:8])
    file.write_text("\n".join(lines) + "\n")
    return file


def trained(chain, number, given, pairs):
    """Train a round as the command does, in this process."""
    folder = chain.round(number)
    folder.mkdir(parents=True)
    file = folder / "fit.yaml"
    file.write_text(yaml.safe_dump(chain.fit(given, number, pair_rows(pairs, chat=False))))
    main(["fit", "--config", str(file)])
    newest = next(complete_checkpoints(folder / "training"))
    export(newest, folder / "policy")
    return newest


@pytest.fixture(scope="module", params=KINDS)
def first(request, tmp_path_factory, llama_dir, pairs):
    """A chain whose first round is trained."""
    given = configuration(llama_dir, request.param)
    source = PretrainedPolicy(llama_dir, lora=LoRA(r=4, alpha=8) if request.param == "lora" else None)
    chain = Chain(source, tmp_path_factory.mktemp("chain"))
    trained(chain, 1, given, pairs)
    return request.param, chain, given


@pytest.fixture
def batch(llama_dir, pairs):
    data = PreferenceDataModule(llama_dir, Rows(str(pairs), format=scored_pair, chat=False), batch_size=8)
    data.setup("fit")
    [batch] = data.train_dataloader()
    return batch


def log_probs(policy, batch):
    with policy.active() as model, scoring(model):
        return response_log_probs(model, batch)


def second(first, pairs, tmp_path, **model):
    """The module of the second round, as `fit` makes it."""
    kind, chain, given = first
    given = given | {"model": given["model"] | model}
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump(chain.fit(given, 2, pair_rows(pairs, chat=False))))
    return configured(["--config", str(file)]).model


def apart(ours, theirs):
    return (ours - theirs).abs().max().item()


def test_a_round_begins_with_the_weights_of_the_one_before(first, pairs, batch, tmp_path):
    kind, chain, _ = first
    start, last = chain.opened(0), chain.opened(1)
    module = second(first, pairs, tmp_path)
    policy = module.source.load()
    if kind == "full":
        [ours, theirs] = [policy.state_dict(), last.load()[0].state_dict()]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    else:
        assert (module.source.lora, module.source.adapter) == (None, chain.path(1))
        assert any(param.requires_grad for param in policy.parameters())
    with scoring(policy):
        found = response_log_probs(policy, batch)
    assert apart(found, log_probs(last, batch)) < 1e-4
    assert apart(found, log_probs(start, batch)) > 0.1


@pytest.mark.parametrize(("reference", "which"), [(FROZEN, 1), (PRETRAINED, 0)])
def test_the_reference_is_the_last_iteration_or_the_initial_policy(first, pairs, batch, tmp_path, reference, which):
    _, chain, _ = first
    module = second(first, pairs, tmp_path, reference=reference)
    policy = module.source.load()
    module.reference.prepare(policy)
    found = module.reference.log_probs(policy, batch)
    assert apart(found, log_probs(chain.opened(which), batch)) < 1e-4
    assert apart(found, log_probs(chain.opened(1 - which), batch)) > 0.1


def test_the_reference_moves_inside_a_round(first, pairs, batch, tmp_path):
    """A hard update at the last step: the reference began as the last iteration, and ends as the policy."""
    kind, chain, given = first
    update = {"class_path": "lit_tr.HardReferenceUpdate", "init_args": {"every_n_steps": STEPS}}
    given = given | {"update": update, "model": given["model"] | {"reference": MOVING[kind]}}
    own = Chain(chain.source, tmp_path)
    own.round(1).mkdir(parents=True)
    (own.round(1) / "policy").symlink_to(chain.path(1))
    newest = trained(own, 2, given, pairs)
    [policy, reference] = open_policies([str(newest), f"{newest}:reference"])
    ends = log_probs(reference, batch)
    assert apart(ends, log_probs(policy, batch)) < 1e-4
    assert apart(ends, log_probs(own.opened(2), batch)) < 1e-4
    assert apart(ends, log_probs(chain.opened(1), batch)) > 0.1


def test_rounds_of_a_policy_in_4_bits_begin_with_its_base_in_4_bits(llama_dir, batch, tmp_path):
    source = PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA())
    chain, trained = Chain(source, tmp_path), source.load()  # whose new adapter adds nothing
    with scoring(trained):
        expected = response_log_probs(trained, batch)
    found = log_probs(chain.measured(0), batch)
    assert apart(found, expected) < 1e-6
    assert apart(found, log_probs(Chain(PretrainedPolicy(llama_dir), tmp_path).opened(0), batch)) > 1e-3
    assert apart(found, log_probs(chain.other(llama_dir, "base"), batch)) == 0


def test_policy_and_initial_policy_share_what_they_can(first, batch):
    kind, chain, _ = first
    for number in (0, 1):
        found, alone = chain.measured(number), [chain.opened(number), chain.opened(0)]
        for ours, theirs in zip((found, found.initial), alone, strict=True):
            assert apart(log_probs(ours, batch), log_probs(theirs, batch)) < 1e-6
        with found.active() as policy, found.initial.active() as initial:
            assert (policy is initial) == (kind == "lora" or number == 0)


def test_names_of_policies_by_round(tmp_path):
    chain, rest = Chain(PretrainedPolicy("base", adapter="sft"), tmp_path), {"output": str(tmp_path)}
    paths = [str(tmp_path / f"round_{number}" / "policy") for number in range(3)]
    sft = {"initial": "sft", "base": "sft", **rest}
    assert chain.names(1) == {"policy": "sft", "previous": "sft", **sft}
    assert chain.names(2) == {"policy": paths[1], "previous": "sft", **sft}
    assert chain.names(3) == {"policy": paths[2], "previous": paths[1], **sft}
    warm = Chain(PretrainedPolicy("base"), tmp_path, warmed_up=True)
    assert warm.names(1) == {"policy": paths[0], "previous": "base", "initial": paths[0], "base": "base", **rest}
    assert warm.names(2) == {"policy": paths[1], "previous": paths[0], "initial": paths[0], "base": "base", **rest}


def test_names_are_replaced_in_all_texts_and_nothing_else():
    given = {"a": ["x {policy}", {"b": "{initial}/{policy}"}], "{policy}": 1, "c": None, "d": "{prompt}"}
    assert substituted(given, {"policy": "P", "initial": "I"}) == {
        **{"a": ["x P", {"b": "I/P"}], "{policy}": 1, "c": None, "d": "{prompt}"}
    }
    assert given["a"][0] == "x {policy}"


def test_a_round_keeps_the_configuration_but_for_policy_rows_and_folder(tmp_path):
    chain = Chain(PretrainedPolicy("base"), tmp_path)
    given = configuration("base", "full") | {"data": {"train": "mine.jsonl", "val": "held.jsonl", "batch_size": 4}}
    rows = pair_rows(Path("pairs.jsonl"), chat=True)
    found = chain.fit(given, 2, rows)
    assert found["model"] == given["model"] | {"policy": {"path": chain.path(1)}}
    assert found["data"] == {"train": rows, "val": "held.jsonl", "batch_size": 4}
    assert found["trainer"] == given["trainer"] | {"default_root_dir": str(tmp_path / "round_2/training")}
    assert rows["init_args"]["chat"] == "auto"
    assert chain.fit(given, 1, rows)["model"] == given["model"]
    warm_up = Chain(PretrainedPolicy("base"), tmp_path, warmed_up=True)
    assert warm_up.fit(given, 0, None)["data"] == given["data"]
    assert warm_up.fit(given, 1, rows)["model"]["policy"] == {"path": str(tmp_path / "round_0/policy")}
    short = {"model": {"policy": "base"}}
    assert chain.fit(short, 2, rows)["model"]["policy"] == {"path": chain.path(1)}
    inner = {"model": {"class_path": "mine.Module", "init_args": {"policy": {"path": "base", "dtype": "bfloat16"}}}}
    found = chain.fit(inner, 2, rows)["model"]["init_args"]["policy"]
    assert found == {"path": chain.path(1), "dtype": "bfloat16"}


@pytest.mark.parametrize("config", [{}, {"model": None}, {"model": {"loss": "DPO"}}, {"model": "mine.Module"}])
def test_a_configuration_without_a_policy_is_refused(config):
    with pytest.raises(UserError, match=r"fit: it has no model.policy, the policy that the rounds begin with"):
        check_fit(config, "fit")
