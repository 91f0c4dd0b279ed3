import functools
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from bitsandbytes.functional import dequantize_4bit
from lightning.pytorch import Trainer
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

from lit_tr.commands import main
from lit_tr.commands.export import export
from lit_tr.data import PreferenceDataModule
from lit_tr.embedded import TINY, GoldReward, SyntheticPairs, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation import JudgedScore, RankingAccuracy, RateSearch
from lit_tr.losses import DPO
from lit_tr.module import PreferenceModule
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import FrozenReference
from tests.runs import fails

IDS = torch.tensor([[5, 17, 300, 41, 8, 99, 2, 480]])
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
LORA = {"r": 4, "alpha": 8}
KINDS = {
    "full": {},
    "lora": {"lora": LORA},
    "nf4": {"lora": LORA, "quantize": "nf4"},
    "nf4 bfloat16": {"lora": LORA, "quantize": "nf4", "dtype": "bfloat16"},
}


def train(folder, path, reference=None, update="SoftReferenceUpdate", val=None, **policy):
    """Train some steps by the command line, the reference behind the policy; return the checkpoint."""
    adapter = "lora" in policy or "adapter" in policy
    synthetic = {"class_path": "lit_tr.embedded.SyntheticPairs", "init_args": {"size": 16}}
    content = {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "max_steps": 3,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "policy": {"path": path, **policy},
            "reference": reference or f"lit_tr.reference.{'AdapterReference' if adapter else 'CopyReference'}",
            "loss": {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": 0.1}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "update": {"class_path": f"lit_tr.{update}", "init_args": {"every_n_steps": 2}},
        "data": {"train": synthetic, "val": val, "batch_size": 4},
    }
    if update == "SoftReferenceUpdate":
        content["update"]["init_args"]["alpha"] = 0.5
    if content["model"]["reference"].endswith("FrozenReference"):
        content["update"] = None
    config = folder / "config.yaml"
    config.write_text(yaml.dump(content))
    main(["fit", f"--config={config}"])
    return next(folder.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def trained(llama_dir, tmp_path_factory):
    """Return the checkpoint of a run of a kind, trained once."""
    return functools.cache(lambda kind: train(tmp_path_factory.mktemp("run"), llama_dir, **KINDS[kind]))


def log_probs(model):
    """In training mode, without dropout: in eval mode bitsandbytes may take a CPU kernel that rounds to bfloat16."""
    with torch.no_grad():
        return model.train()(IDS).logits.log_softmax(-1)


def held(checkpoint):
    """Log-probs of policy and reference, as Lightning restores them."""
    module = PreferenceModule.load_from_checkpoint(checkpoint, weights_only=True)
    contexts = {"policy": nullcontext(module.policy), "reference": module.reference.active(module.policy)}
    values = {}
    for which, context in contexts.items():
        with context as model:
            values[which] = log_probs(model)
    return values


def plain(folder, **options):
    """Load a folder as one would without lit_tr."""
    auto = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    return auto.from_pretrained(folder, **options)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("which", ["policy", "reference"])
@pytest.mark.parametrize(
    ("kind", "merge", "options"),
    [
        ("full", False, {}),
        ("lora", False, {}),
        ("lora", True, {}),
        ("nf4", False, {"quantization_config": NF4}),
        ("nf4", True, {}),
    ],
)
def test_plain_libraries_compute_as_the_checkpoint_does(trained, tmp_path, kind, merge, options, which):
    values = held(trained(kind))
    assert (values["policy"] - values["reference"]).abs().max() > 0.05  # or the one would pass for the other
    folder = export(trained(kind), tmp_path / "out", merge, which)
    assert (folder / "adapter_config.json").exists() == (kind != "full" and not merge)
    model = plain(folder, **options)
    assert {param.dtype for param in model.parameters() if param.is_floating_point()} == {torch.float32}
    close(log_probs(model), values[which])


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_an_adapter_is_added_to_the_dequantised_weights_and_rounded_once(trained, tmp_path, llama_dir, which):
    """W = bfloat16(NF4(W0) + alpha / r * B @ A) in each linear layer, and W0 elsewhere."""
    kind = "nf4 bfloat16"
    adapter = load_file(export(trained(kind), tmp_path / "adapter", which=which) / "adapter_model.safetensors")
    merged = load_file(export(trained(kind), tmp_path / "merged", True, which) / "model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16)
    rounded = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16, quantization_config=NF4)
    layers = 0
    for name, start in base.state_dict().items():
        weight, layer = rounded.get_parameter(name), f"base_model.model.{name.removesuffix('.weight')}"
        expected = start
        if hasattr(weight, "quant_state"):
            b, a = adapter[f"{layer}.lora_B.weight"], adapter[f"{layer}.lora_A.weight"]
            expected = (dequantize_4bit(weight.data, weight.quant_state).float() + 2 * b @ a).bfloat16()
            assert not torch.equal(expected, (start.float() + 2 * b @ a).bfloat16())
            layers += 1
        assert torch.equal(merged[name], expected), name
    assert layers == 2 * 7


def test_a_merged_bfloat16_model_rounds_no_more_than_the_policy_itself(trained, tmp_path, llama_dir):
    """Against the dequantised base and the adapter beside each other in float32."""
    checkpoint = trained("nf4 bfloat16")
    base = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16, quantization_config=NF4)
    exact = PeftModel.from_pretrained(base.dequantize().float(), export(checkpoint, tmp_path / "adapter"))
    merged = plain(export(checkpoint, tmp_path / "merged", merge=True))
    assert {param.dtype for param in merged.parameters()} == {torch.bfloat16}
    theirs = (held(checkpoint)["policy"] - log_probs(exact)).abs().mean()
    assert (log_probs(merged) - log_probs(exact)).abs().mean() < 1.5 * theirs < 0.1


@pytest.mark.parametrize(("kind", "merge"), [("full", False), ("nf4", True)])
def test_a_full_model_names_no_attention_and_no_quantization_of_its_own(trained, tmp_path, kind, merge):
    folder = export(trained(kind), tmp_path / "out", merge)
    config = (folder / "config.json").read_text()
    assert "packed" not in config
    assert "quantization" not in config
    assert json.loads(config)["dtype"] == "float32"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    assert AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("kind", "merge"), [("full", False), ("lora", False), ("nf4", True)])
def test_the_tokenizer_is_that_of_the_policys_path(trained, tmp_path, llama_dir, kind, merge):
    folder = export(trained(kind), tmp_path / "out", merge)
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(llama_dir)
    text = "Tell me about a cold river."
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.eos_token_id == theirs.eos_token_id


def test_an_adapter_names_its_base_and_holds_no_other(trained, tmp_path, llama_dir):
    folder = export(trained("lora"), tmp_path / "out", which="reference")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == llama_dir
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (8, 16, True)  # twice the policy's rank
    keys = load_file(folder / "adapter_model.safetensors")
    assert len(keys) == 2 * 2 * 7
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    assert not any(path.is_dir() for path in folder.iterdir())


def test_a_base_by_a_relative_path_is_found_from_elsewhere(llama_dir, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(llama_dir)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = export(train(tmp_path, "base", **KINDS["lora"]), "out")
    monkeypatch.chdir("elsewhere")
    assert plain(folder).get_base_model().config.hidden_size == 32


@pytest.mark.parametrize("policy", [{}, {"lora": LORA}])
def test_the_embedded_model_with_tied_weights(tmp_path, policy):
    checkpoint = train(tmp_path, TINY, **policy)
    folder = export(checkpoint, tmp_path / "out", which="reference")
    if policy:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == resolve(TINY)
    else:
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    close(log_probs(plain(folder, dtype=torch.float32)), held(checkpoint)["reference"])


def test_a_run_that_started_from_an_adapter_with_a_scaling_of_its_own(llama_dir, tmp_path):
    """rsLoRA, an embedding and a module that is trained whole: alpha / sqrt(r), and three kinds of tensors."""
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config)
    for param in model.parameters():
        if param.requires_grad:
            param.data.add_(torch.randn_like(param), alpha=0.05)
    model.save_pretrained(tmp_path / "sft")
    checkpoint = train(tmp_path, llama_dir, adapter=str(tmp_path / "sft"))
    values = held(checkpoint)
    for which in ("policy", "reference"):
        for merge in (False, True):
            folder = export(checkpoint, tmp_path / f"{which} {merge}", merge, which)
            close(log_probs(plain(folder)), values[which])


@pytest.mark.slow
def test_another_process_that_knows_transformers_and_peft_alone(trained, tmp_path):
    script = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
*ids, = map(int, sys.argv[1].split())
for folder in sys.argv[2:]:
    auto = AutoPeftModelForCausalLM if "adapter" in folder else AutoModelForCausalLM
    with torch.no_grad():
        torch.save(auto.from_pretrained(folder)(torch.tensor([ids])).logits.log_softmax(-1), folder + ".pt")
assert "lit_tr" not in sys.modules
"""
    wanted = {
        "full": ("full", False, "reference"),
        "adapter": ("lora", False, "reference"),
        "merged": ("nf4", True, "policy"),
    }
    folders = {
        name: export(trained(kind), tmp_path / name, merge, which) for name, (kind, merge, which) in wanted.items()
    }
    ids = " ".join(map(str, IDS[0].tolist()))
    subprocess.run([sys.executable, "-c", script, ids, *map(str, folders.values())], check=True, cwd=tmp_path)
    for name, (kind, _, which) in wanted.items():
        close(torch.load(tmp_path / f"{name}.pt"), held(trained(kind))[which])


def test_the_verb(trained, tmp_path, capsys):
    main(["export", f"--checkpoint={trained('lora')}", f"--output={tmp_path / 'out'}", "--merge", "--which=reference"])
    assert f"The model is in {tmp_path / 'out'}" in capsys.readouterr().out
    expected = load_file(export(trained("lora"), tmp_path / "again", True, "reference") / "model.safetensors")
    verbs = load_file(tmp_path / "out" / "model.safetensors")
    assert verbs.keys() == expected.keys()
    assert all(torch.equal(verbs[name], value) for name, value in expected.items())


def test_help_tells_of_the_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["export", "--help"])
    shown = capsys.readouterr().out
    options = ("--checkpoint", "--output", "--merge", "--base", "--which {policy,reference}")
    assert all(option in shown for option in options)


def test_a_mistake_on_the_command_line_is_one_message(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--checkpoint=none.ckpt", f"--output={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "lit-tr: checkpoint none.ckpt: there is no such file\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "this is not a checkpoint, or an incomplete one"),
        (b"not a checkpoint", "this is not a checkpoint, or an incomplete one"),
        ({"state_dict": {}}, "it holds no hyper-parameters of a PreferenceModule"),
        ({"state_dict": {}, "hyper_parameters": {"lr": 1}}, "it holds no hyper-parameters of a PreferenceModule"),
        ([1], "this is not the checkpoint of a module, but a list"),
        ({"hyper_parameters": {"policy": {"pth": "x"}, "reference": {}}}, "its hyper-parameters cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, message):
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"some.ckpt: {message}"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_a_checkpoint_is_refused(trained, tmp_path):
    whole = trained("lora").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.ckpt: this is not a checkpoint, or an incomplete one"):
        export(tmp_path / "half.ckpt", tmp_path / "out")


def test_a_folder_of_shards_is_to_be_made_one_file(tmp_path):
    with pytest.raises(UserError, match="python -m lightning.fabric.utilities.consolidate_checkpoint"):
        export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("full", {"merge": True}, "has no adapter to merge"),
        ("full", {"which": "initial"}, "which: policy or reference, not 'initial'"),
    ],
)
def test_what_cannot_be_exported_is_named(trained, tmp_path, kind, options, message):
    with pytest.raises(UserError, match=message):
        export(trained(kind), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", [{}, {"lora": LORA}])
def test_a_frozen_reference_is_the_initial_policy(llama_dir, tmp_path, policy):
    checkpoint = train(tmp_path, llama_dir, "lit_tr.reference.FrozenReference", **policy)
    with pytest.raises(UserError, match=f"the initial policy, {llama_dir}, and need not be exported"):
        export(checkpoint, tmp_path / "out", which="reference")
    module = PreferenceModule.load_from_checkpoint(checkpoint, weights_only=True)
    close(log_probs(plain(export(checkpoint, tmp_path / "out"))), log_probs(module.policy))


def test_no_model_code_runs_whatever_the_checkpoint_says(llama_dir, tmp_path):
    (tmp_path / "base").mkdir()
    config = json.loads(Path(llama_dir, "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    AutoTokenizer.from_pretrained(llama_dir).save_pretrained(tmp_path / "base")
    policy = {"path": str(tmp_path / "base"), "trust_remote_code": True}
    reference = {"class_path": "lit_tr.reference.CopyReference"}
    torch.save(
        {"state_dict": {}, "hyper_parameters": {"policy": policy, "reference": reference}}, tmp_path / "some.ckpt"
    )
    with pytest.raises(UserError, match=r"base: no (causal language model|tokenizer)"):
        export(tmp_path / "some.ckpt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_base_are_refused(trained, tmp_path):
    saved = torch.load(trained("full"), weights_only=True)
    saved["hyper_parameters"]["policy"]["path"] = TINY
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=f"other.ckpt and {TINY} do not go together"):
        export(tmp_path / "other.ckpt", tmp_path / "out")


def test_a_folder_that_holds_something_is_left_as_it_is(trained, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for output in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match=f"output {output}: it holds something already"):
            export(trained("full"), output)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_empty_folder_is_taken(trained, tmp_path):
    assert export(trained("lora"), tmp_path) == tmp_path.resolve()
    assert (tmp_path / "adapter_config.json").exists()


def test_what_stops_while_it_writes_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(UserError, match="it cannot be written .No space left on device"):
        export(trained("lora"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def in_memory(checkpoint, model, path):
    """Write a checkpoint as training of a model in memory leaves it."""
    saved = torch.load(checkpoint, weights_only=True)
    kept = dict(PreferenceModule(model, FrozenReference(), DPO()).hparams)
    torch.save({**saved, "hyper_parameters": {**saved["hyper_parameters"], **kept}}, path)
    return path


def test_a_model_that_was_in_memory_is_exported_with_its_base(trained, tmp_path, llama_dir, capsys):
    model = LlamaForCausalLM.from_pretrained(llama_dir)
    path = in_memory(trained("full"), model, tmp_path / "some.ckpt")
    with pytest.raises(UserError, match="some.ckpt: training began with a model in memory: give base"):
        export(path, tmp_path / "out")
    main(["export", f"--checkpoint={path}", f"--base={llama_dir}", f"--output={tmp_path / 'out'}"])
    close(log_probs(plain(tmp_path / "out")), held(trained("full"))["policy"])


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_that_was_in_memory_is_exported_with_its_base(trained, tmp_path, llama_dir, merge):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config)
    path = in_memory(trained("lora"), model, tmp_path / "some.ckpt")
    folder = export(path, tmp_path / "out", merge, base=llama_dir)
    assert (folder / "adapter_config.json").exists() != merge
    close(log_probs(plain(folder)), held(trained("lora"))["policy"])


def test_a_policy_is_exported_whatever_its_reference_was(trained, tmp_path):
    saved = torch.load(trained("full"), weights_only=True)
    saved["hyper_parameters"]["reference"] = {"class_path": "nowhere.Reference"}
    torch.save(saved, tmp_path / "some.ckpt")
    close(log_probs(plain(export(tmp_path / "some.ckpt", tmp_path / "out"))), held(trained("full"))["policy"])
    with pytest.raises(UserError, match="hyper-parameters cannot be read"):
        export(tmp_path / "some.ckpt", tmp_path / "reference", which="reference")


def test_what_a_notebook_trained_is_exported(tmp_path, llama_dir):
    module = PreferenceModule(PretrainedPolicy(llama_dir, lora=LoRA(r=2)), FrozenReference(), DPO(), make_sgd)
    data = PreferenceDataModule(llama_dir, SyntheticPairs(size=8), batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=2, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    folder = export(tmp_path / "some.ckpt", tmp_path / "out")
    close(log_probs(plain(folder)), log_probs(module.policy))
    start = LlamaForCausalLM.from_pretrained(llama_dir)
    assert (log_probs(plain(folder)) - log_probs(start)).abs().max() > 1e-3


def make_sgd(params):
    return torch.optim.SGD(params, lr=0.5)


def tensors(folder):
    """All tensors of an exported folder."""
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("average", [0.7, [0.2, 0.9]])
def test_an_average_of_a_full_model_is_that_of_each_weight(trained, tmp_path, llama_dir, average):
    folder = export(trained("full"), tmp_path / "out", average=average)
    start, end, found = tensors(llama_dir), tensors(export(trained("full"), tmp_path / "policy")), tensors(folder)
    assert found.keys() == start.keys()
    first, last = average if isinstance(average, list) else (average, average)
    for name, tensor in found.items():
        rate = first if "embed_tokens" in name or ".layers.0." in name else last
        expected = rate * end[name].double() + (1 - rate) * start[name].double()
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-7)
    assert plain(folder).config.num_hidden_layers == 2
    rates = average if isinstance(average, list) else [average]
    assert json.loads((folder / "average.json").read_text()) == {"rates": rates, "metric": None, "trials": []}
    assert (
        f"- **average with the initial policy, rates of the policy**: `{rates}`" in (folder / "README.md").read_text()
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_rate_1_writes_what_an_export_writes_and_rate_0_is_the_initial_policy(trained, tmp_path, llama_dir, kind):
    policy, one, zero = (
        export(trained(kind), tmp_path / str(average), average=average) for average in (None, 1.0, 0.0)
    )
    for file in policy.glob("*.safetensors"):
        assert (one / file.name).read_bytes() == file.read_bytes()
    assert torch.equal(log_probs(plain(zero)), log_probs(plain(Path(llama_dir))))
    if kind == "full":
        start = tensors(llama_dir)
        assert all(torch.equal(tensor, start[name]) for name, tensor in tensors(zero).items())


@pytest.mark.parametrize("kind", ["lora", "nf4"])
def test_an_average_of_an_adapter_is_the_same_beside_its_base_and_in_it(trained, tmp_path, kind):
    options = {"quantization_config": NF4} if kind == "nf4" else {}
    beside = plain(export(trained(kind), tmp_path / "beside", average=0.6), **options)
    within = plain(export(trained(kind), tmp_path / "within", merge=True, average=0.6))
    close(log_probs(beside), log_probs(within))
    policy, adapter = tensors(export(trained(kind), tmp_path / "policy")), tensors(tmp_path / "beside")
    for name, tensor in adapter.items():
        assert torch.equal(tensor, policy[name] * 0.6 if "lora_B" in name else policy[name])


def test_a_run_whose_reference_holds_no_weights_has_averages(llama_dir, tmp_path):
    checkpoint = train(tmp_path, llama_dir, "lit_tr.reference.WindowReference", "HardReferenceUpdate")
    close(log_probs(plain(export(checkpoint, tmp_path / "out", average=0.0))), log_probs(plain(Path(llama_dir))))


def test_a_model_that_was_in_memory_is_averaged_with_its_base_and_an_adapter_is_not(trained, tmp_path, llama_dir):
    path = in_memory(trained("full"), LlamaForCausalLM.from_pretrained(llama_dir), tmp_path / "some.ckpt")
    folder = export(path, tmp_path / "out", base=llama_dir, average=0.5)
    expected = tensors(export(trained("full"), tmp_path / "named", average=0.5))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(folder).items())
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config)
    path = in_memory(trained("lora"), model, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="other.ckpt: training began with an adapter in memory, which it has only as"):
        export(path, tmp_path / "none", base=llama_dir, average=0.5)


@pytest.mark.parametrize(
    ("average", "options", "message"),
    [
        (1.5, {}, r"average: a rate must be in \[0, 1\], not 1.5"),
        ([0.5, -1], {}, r"average: a rate must be in \[0, 1\], not -1"),
        ([], {}, "average: give one rate, or one for each group of layers"),
        ([0.1, 0.2, 0.3], {}, "average: 3 groups of layers are too many, for the model has 2 layers"),
        (RateSearch(len, groups=3), {}, "average: 3 groups of layers are too many"),
        (RateSearch(RankingAccuracy()), {}, "RankingAccuracy needs held-out rows, and the run has no data.val"),
        (0.5, {"which": "reference"}, "average: the policy is averaged with its initial policy; leave which out"),
        (0.5, {"base": "nowhere"}, "nowhere: no tokenizer in this folder"),
    ],
)
def test_averages_that_cannot_be_are_named_before_weights_are_loaded(
    trained, tmp_path, monkeypatch, average, options, message
):
    monkeypatch.setattr(PretrainedPolicy, "load", None)
    with pytest.raises(UserError, match=message):
        export(trained("full"), tmp_path / "out", average=average, **options)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The checkpoint of a short run of the embedded model, whose head is tied, with validation rows."""
    rows = {"class_path": "lit_tr.embedded.SyntheticPairs", "init_args": {"size": 8, "held_out": True}}
    return train(tmp_path_factory.mktemp("tiny"), TINY, val=rows)


def test_a_search_by_the_command_line(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    search = ["lit_tr.evaluation.JudgedScore", "--average.metric.judge=lit_tr.embedded.GoldReward"]
    sizes = ["--average.metric.prompts=4", "--average.metric.max_new_tokens=24", "--average.steps=2"]
    main(["export", f"--checkpoint={tiny}", f"--output={out}", "--average.metric", *search, *sizes])
    shown, found = capsys.readouterr().out.splitlines(), json.loads((out / "average.json").read_text())
    assert [line.split()[:2] for line in shown[:3]] == [["rate", "1"], ["rate", "0.5"], ["rate", "0"]]
    assert shown[3].startswith(
        f"An average of the policy with its initial policy: rate {found['rates'][0]:g}, the best"
    )
    assert shown[4] == f"The model is in {out}"
    assert found["rates"] == max(found["trials"], key=lambda one: (one["value"], one["rates"]))["rates"]
    assert "| rates | JudgedScore | against the policy |" in (out / "README.md").read_text()
    # the figure of the initial policy, by its own folder
    rows = SyntheticPairs(size=8, held_out=True)
    model, tokenizer = plain(Path(resolve(TINY)), dtype=torch.float32), AutoTokenizer.from_pretrained(resolve(TINY))
    with torch.no_grad():
        scores = JudgedScore(GoldReward(), 4, 24)(model.eval(), tokenizer, rows)
    assert found["trials"][0]["value"] == pytest.approx(sum(scores) / 4)


def test_a_search_over_groups_by_a_metric_of_ones_own(tiny, tmp_path, monkeypatch):
    """Its maximum is at the policy's embeddings and the initial policy's last layer."""
    (tmp_path / "nearest.py").write_text(f"""
import torch
from safetensors.torch import load_file
START = load_file({str(Path(resolve(TINY)) / "model.safetensors")!r})
END = load_file({str(export(tiny, tmp_path / "policy") / "model.safetensors")!r})

def near(model, tokenizer, rows):
    first, last = "model.embed_tokens.weight", "model.norm.weight"
    state = model.state_dict()
    return -(state[first] - END[first]).norm().item() - (state[last] - START[last]).norm().item()
""")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    options = ["--average.metric=nearest.near", "--average.groups=2", "--average.steps=2"]
    main(["export", f"--checkpoint={tiny}", f"--output={out}", *options])
    assert json.loads((out / "average.json").read_text())["rates"] == [1.0, 0.0]
    model = plain(out)
    assert torch.equal(model.lm_head.weight, plain(tmp_path / "policy").model.embed_tokens.weight)
    assert torch.equal(model.model.norm.weight, plain(Path(resolve(TINY)), dtype=torch.float32).model.norm.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["nowhere.none"],
            "--average.metric: No module named 'nowhere'\n  a function or class of your own is named by its",
        ),
        (["math.none"], "--average.metric: module 'math' has no attribute 'none'"),
        (["lit_tr.evaluation.JudgedScore"], "--average.metric: judge must be given"),
        (
            ["lit_tr.evaluation.JudgedScore", "--average.metric.judge=math.none"],
            "--average.metric.judge: there is no math.none among Scorer",
        ),
        (
            ["math.sqrt", "--average.group=2"],
            "--average.group: RateSearch has no argument 'group'\n  did you mean groups",
        ),
    ],
)
def test_a_mistake_in_the_search_is_told_by_its_option(tiny, tmp_path, capsys, options, said):
    given = [f"--checkpoint={tiny}", f"--output={tmp_path / 'out'}", "--average.metric"]
    assert fails(capsys, "export", *given, *options).startswith(f"lit-tr: {said}")
