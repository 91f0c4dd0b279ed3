import functools
import json
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr.commands.export import export
from lit_tr.data import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.generate import in_batches
from lit_tr.evaluation.local import stops_of, token_texts
from lit_tr.evaluation.policies import Checkpoint, Loading, checkpoint_of, open_policies, split_spec
from lit_tr.evaluation.prompts import read_prompts
from lit_tr.evaluation.sampling import Sampling
from lit_tr.module import PreferenceModule
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from tests.commands.test_export import KINDS, close, log_probs, train

SAMPLING = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def trained(llama_dir, tmp_path_factory):
    """Return the checkpoint of a run of a kind, trained once."""
    return functools.cache(lambda kind: train(tmp_path_factory.mktemp("run"), llama_dir, **KINDS[kind]))


def restored(checkpoint):
    """Log-probs of policy, reference and initial policy, as Lightning restores them."""
    module = PreferenceModule.load_from_checkpoint(checkpoint, weights_only=True)
    policy, start = module.policy, PreferenceModule(**start_of(checkpoint)).source.load()
    contexts = {"policy": nullcontext(policy), "reference": module.reference.active(policy)}
    found = {}
    for which, context in contexts.items():
        with context as model:
            found[which] = log_probs(model)
    return found | {"initial": log_probs(start)}


def start_of(checkpoint):
    kept = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    path = kept["policy"] if isinstance(kept["policy"], str) else kept["policy"]["path"]
    from lit_tr.losses import SFT

    return {"policy": path, "reference": None, "loss": SFT()}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_three_models_of_a_checkpoint(trained, kind):
    checkpoint = trained(kind)
    expected = restored(checkpoint)
    specs = [str(checkpoint), f"{checkpoint}:reference", f"{checkpoint}:initial"]
    policies = open_policies(specs, Loading(device="cpu"))
    for which, policy in zip(("policy", "reference", "initial"), policies, strict=True):
        with policy.active() as model:
            close(log_probs(model), expected[which])
    assert (expected["policy"] - expected["reference"]).abs().max() > 0.05
    assert (expected["policy"] - expected["initial"]).abs().max() > 0.05
    run = checkpoint.parents[1].name
    assert [one.name for one in policies] == [f"{run}-last", f"{run}-last-reference", f"{run}-last-initial"]
    models = {id(policy.load()[0]) for policy in policies}
    assert len(models) == (1 if kind == "lora" else 3)  # one base with LoRA


def ratios(policy, initial, prompt, response):
    """Log-ratio of each token of a response, by both models' own forward pass."""
    ids, found = torch.tensor([prompt + response]), []
    for one in (policy, initial):
        with one.active() as model, torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return found[0] - found[1]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_responses_have_the_implicit_reward_of_each_token(trained, kind):
    checkpoint = str(trained(kind))
    specs = [checkpoint, f"{checkpoint}:reference", f"{checkpoint}:initial"]
    rows = Objects([{"prompt": "Describe a cold river."}, {"prompt": "Write about a ship."}])
    initial = open_policies([specs[2]])[0]
    for policy in open_policies(specs, token_rewards=True):
        prompts = read_prompts(rows, policy.reader(SAMPLING)).found
        responses = [one for batch in policy.respond([(prompt, 0) for prompt in prompts], SAMPLING) for one in batch]
        assert {one.id for one in responses} == {"0", "1"}
        for one in responses:
            [ids] = [prompt.ids for prompt in prompts if prompt.id == one.id]
            with policy.active() as model:  # the same response once more, for its ids
                key, stops = f"{policy.name}\n{one.id}\n0", stops_of(model, policy.tokenizer)
                [[(_, made)]] = in_batches(model, policy.tokenizer, [ids], [key], SAMPLING, stops)
            texts, rewards = zip(*one.token_rewards, strict=True)
            assert [*texts] == token_texts(made.response, policy.tokenizer.decode)
            expected = ratios(policy, initial, ids, made.response)
            torch.testing.assert_close(torch.tensor(rewards), 0.1 * expected, atol=1e-5, rtol=1e-4)
            assert one.log_ratio == pytest.approx(expected.sum().item(), abs=1e-4)
            assert one.kl >= 0
        is_start = policy.name.endswith("initial")
        assert all((one.kl == 0) == is_start for one in responses)
        assert policy.identity["token_rewards"] == 0.1


def test_what_has_no_token_rewards_is_said(llama_dir, tmp_path):
    with pytest.raises(UserError, match="against the initial policy, which only a checkpoint knows"):
        open_policies([llama_dir], token_rewards=True)
    checkpoint = Checkpoint(train(tmp_path, llama_dir))
    checkpoint.saved["hyper_parameters"]["loss"] = {"class_path": "lit_tr.losses.SimPO"}
    with pytest.raises(UserError, match="the loss SimPO has no reference, so tokens have no reward"):
        checkpoint.rewarded()


def test_a_reference_that_never_moves_is_the_initial_policy(llama_dir, tmp_path):
    checkpoint = train(tmp_path, llama_dir, reference="lit_tr.reference.FrozenReference")
    policy = Checkpoint(checkpoint).policy("reference")
    assert policy.name.endswith("last-initial")
    with policy.active() as model:
        close(log_probs(model), log_probs(AutoModelForCausalLM.from_pretrained(llama_dir)))


def test_a_reference_that_no_checkpoint_holds_is_said(llama_dir, tmp_path):
    checkpoint = train(tmp_path, llama_dir, "lit_tr.reference.WindowReference", "HardReferenceUpdate")
    with pytest.raises(UserError, match="reference: a WindowReference keeps no weights in checkpoints"):
        open_policies([f"{checkpoint}:reference"])


def test_an_adapter_on_its_base_and_in_4_bits(trained, tmp_path, llama_dir):
    checkpoint = trained("lora")
    folder = export(checkpoint, tmp_path / "adapter")
    [policy] = open_policies([str(folder)])
    with policy.active() as model:
        close(log_probs(model), restored(checkpoint)["policy"])
    assert policy.name == "adapter"
    [quantized] = open_policies([str(folder)], Loading(quantize="nf4"))
    with quantized.active() as model:
        assert any(hasattr(param, "quant_state") for param in model.parameters())


def test_a_whole_model_in_4_bits_is_the_base_that_an_adapter_is_trained_on(llama_dir):
    [policy] = open_policies([llama_dir], Loading(quantize="nf4"))
    trained = PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA()).load()  # a new adapter, which adds nothing
    with policy.active() as model:
        assert torch.equal(log_probs(model), log_probs(trained))
        assert not torch.allclose(log_probs(model), log_probs(AutoModelForCausalLM.from_pretrained(llama_dir)))
    assert policy.identity != open_policies([llama_dir])[0].identity


def test_another_base_is_taken_for_an_adapter_whose_own_is_gone(trained, tmp_path, llama_dir):
    folder = export(trained("lora"), tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="the adapter names no base: give base"):
        open_policies([str(folder)])
    [policy] = open_policies([str(folder)], Loading(base=llama_dir))
    with policy.active() as model:
        close(log_probs(model), restored(trained("lora"))["policy"])


def test_a_folder_in_its_own_precision_or_another(llama_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(llama_dir).bfloat16().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(llama_dir).save_pretrained(tmp_path / "half")
    for given, expected in ((None, torch.bfloat16), ("float32", torch.float32)):
        [policy] = open_policies([str(tmp_path / "half")], Loading(dtype=given))
        with policy.active() as model:
            assert model.dtype == expected


def test_the_same_weights_have_the_same_identity_and_others_another(trained, tmp_path):
    copied = tmp_path / "copied.ckpt"
    copied.write_bytes(trained("full").read_bytes())
    one, same, reference, other = (
        *(Checkpoint(path).policy().identity for path in (trained("full"), copied)),
        Checkpoint(copied).policy("reference").identity,
        Checkpoint(trained("lora")).policy().identity,
    )
    assert one == same
    assert len({json.dumps(each) for each in (one, reference, other)}) == 3
    data = bytearray(copied.read_bytes())
    data[len(data) // 2] ^= 1
    copied.write_bytes(data)  # small files are hashed whole
    assert Checkpoint(copied).policy().identity != one


def test_the_folder_of_a_run_is_its_newest_checkpoint(trained):
    checkpoint = trained("full")
    assert checkpoint_of(str(checkpoint.parents[1])) == checkpoint
    assert checkpoint_of("embedded:tiny") is None


def test_a_run_without_a_checkpoint_is_said(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="this run has no checkpoint yet"):
        checkpoint_of(str(tmp_path))


def test_specs():
    assert split_spec("a/b.ckpt:reference") == ("a/b.ckpt", "reference")
    assert split_spec("embedded:tiny") == ("embedded:tiny", "policy")
    assert split_spec("reference") == ("reference", "policy")


@pytest.mark.parametrize(
    ("specs", "names", "said"),
    [
        (["nowhere.ckpt"], (), "checkpoint nowhere.ckpt: there is no such file"),
        (["embedded:tiny", "embedded:tiny"], (), "two policies are called embedded:tiny"),
        (["embedded:tiny"], ("a", "b"), "there are 1 policies and 2 names"),
        (["no/where"], (), "no/where"),
    ],
)
def test_what_cannot_be_opened_is_named(specs, names, said):
    with pytest.raises(UserError, match=said):
        open_policies(specs, names=names)


def test_a_prompt_leaves_room_for_the_response(llama_dir):
    [policy] = open_policies([llama_dir])
    long = Objects([{"prompt": "Describe a cold river. " * 99}])
    [prompt] = read_prompts(long, policy.reader(SAMPLING)).found
    assert len(prompt.ids) == 256 - 8
    with pytest.raises(UserError, match="max_new_tokens 256 leaves no room"):
        policy.reader(Sampling(max_new_tokens=256))


def test_a_response_ends_with_the_turn_of_the_chat_template(llama_dir):
    """The model's own end token, the tokenizer's, and what the template writes behind an answer."""
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stops_of(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    assert stops_of(model, tokenizer) == [tokenizer.eos_token_id, 7, end]
