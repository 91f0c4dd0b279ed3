"""DDP in real processes with gloo against one process with the same global batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import LlamaForCausalLM

from tests.processes import run

pytestmark = pytest.mark.slow

COMMON = """
import json, os, sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lit_tr import AdaptiveReferenceUpdate, HardReferenceUpdate, SoftReferenceUpdate
from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.policy.sharding import local_shard, full_tensor
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, PretrainedReference, WindowReference

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Losses(Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")
        self.steps.append(loss.item())
"""

MATRIX = (
    COMMON
    + """
model, ranks, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sharded = len(sys.argv) > 4
bare = sys.argv[4] if sharded and os.environ.get("LOCAL_RANK") == "1" else model  # rank 1 has no weights to read


def strategy(ranks):
    return ModelParallelStrategy(ranks, 1) if sharded else "ddp"


UPDATES = {
    "soft": lambda: SoftReferenceUpdate(0.6, every_n_steps=2),
    "hard": lambda: HardReferenceUpdate(every_n_steps=3),
    "adaptive": lambda: AdaptiveReferenceUpdate(max_kl=0.02, alpha=0.7, every_n_steps=1),
    "window": lambda: HardReferenceUpdate(every_n_steps=3),
}
POLICIES = {
    "full": ({}, CopyReference),
    "lora": ({"lora": LoRA(r=4)}, AdapterReference),
    "nf4 lora": ({"lora": LoRA(r=4), "quantize": "nf4"}, AdapterReference),
}
seen = {}
for policy, (options, reference) in POLICIES.items():
    for update, make in UPDATES.items():
        if update == "window":
            if policy != "full":
                continue
            reference = WindowReference
        torch.manual_seed(0)
        module = PreferenceModule(
            PretrainedPolicy(model if options.get("quantize") else bare, **options), reference(), DPO(beta=0.5),
            lambda params: torch.optim.SGD(params, lr=0.05), log_initial=False,
        )
        losses, callback = Losses(), make()
        trainer = Trainer(
            accelerator="cpu", devices=ranks, strategy=strategy(ranks), max_steps=10, callbacks=[callback, losses],
            enable_checkpointing=False, gradient_clip_val=1.0, **QUIET,
        )
        data = PreferenceDataModule(model, SyntheticPairs(32), batch_size=8 // ranks, shuffle=False)
        trainer.fit(module, data)
        state = module.state_dict().items()
        weights = {name: full_tensor(value) for name, value in state if getattr(value, "dtype", None) == torch.float32}
        seen[f"{policy} {update}"] = {
            "losses": losses.steps, "updates": callback.updates, "random": torch.get_rng_state(),
            "weights": {name: value for name, value in weights.items() if "base_layer" not in name},
        }
torch.save(seen, f"{output}.{ranks}.{trainer.global_rank}")
"""
)


REWARDS = (
    COMMON
    + """
from lit_tr.rewards import CollaborativeReward, RewardModule

model, ranks, output, sharded = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "sharded"
policies = {"full": {}, "lora": {"lora": LoRA(r=4)}, "nf4 lora": {"lora": LoRA(r=4), "quantize": "nf4"}}
MODULES = {
    "collaborative": lambda **options: CollaborativeReward(PretrainedPolicy(model), noise=0.0, **options)
} if not sharded else {
    name: lambda given=given, **options: RewardModule(PretrainedPolicy(model, **given), **options)
    for name, given in policies.items()
}
seen = {}
for name, make in MODULES.items():
    torch.manual_seed(0)
    module = make(optimizer=lambda params: torch.optim.SGD(params, lr=0.2))
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=ModelParallelStrategy(ranks, 1) if sharded else "ddp", max_steps=10,
        callbacks=[losses], enable_checkpointing=False, gradient_clip_val=1.0, default_root_dir=f"{output}.{ranks}",
        **QUIET,
    )
    data = PreferenceDataModule(model, SyntheticPairs(32), batch_size=8 // ranks, shuffle=False)
    trainer.fit(module, data)
    state = module.state_dict().items()
    weights = {key: full_tensor(value) for key, value in state if getattr(value, "dtype", None) == torch.float32}
    seen[name] = {"losses": losses.steps, "updates": trainer.global_step, "weights": {
        key: value for key, value in weights.items() if "base_layer" not in key
    }}
    if sharded:
        trainer.save_checkpoint(f"{output}.{ranks}.{name}.ckpt")
torch.save(seen, f"{output}_seen.{ranks}.{trainer.global_rank}")
"""
)


DIVERGENCES = (
    COMMON
    + """
from lit_tr.losses import TDPO1
from lit_tr.policy import head

head.CHUNK = 2 * 16 * 512  # ranks have unequal numbers of chunks
model, ranks, output, adapter = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
on_the_head = LoRA(r=4, targets=["q_proj", "lm_head"])
RUNS = {
    "full": ({}, CopyReference, "32-true", True),
    "full, padded": ({"gradient_checkpointing": True}, CopyReference, "32-true", False),
    "full, bf16-mixed": ({"gradient_checkpointing": "selective"}, CopyReference, "bf16-mixed", True),
    "lora": ({"lora": on_the_head}, AdapterReference, "32-true", True),
    "nf4 lora": ({"lora": LoRA(r=4), "quantize": "nf4"}, AdapterReference, "32-true", True),
    "adapter": ({"adapter": adapter}, FrozenReference, "32-true", True),
    "beside a model with an adapter": ({}, lambda: PretrainedReference(PretrainedPolicy(adapter)), "32-true", True),
}
seen = {}
for name, (options, reference, precision, packed) in RUNS.items():
    torch.manual_seed(0)
    module = PreferenceModule(
        PretrainedPolicy(model, **options), reference(), TDPO1(beta=0.5),
        lambda params: torch.optim.SGD(params, lr=0.005),
    )
    losses, update = Losses(), [SoftReferenceUpdate(0.6, every_n_steps=2)] if module.reference.moves else []
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=ModelParallelStrategy(ranks, 1) if ranks > 1 else "auto",
        max_steps=4, callbacks=[losses, *update], precision=precision,
        enable_checkpointing=False, log_every_n_steps=2, **QUIET,
    )
    data = PreferenceDataModule(model, SyntheticPairs(32), batch_size=8 // ranks, shuffle=False, packed=packed)
    trainer.fit(module, data)
    trained = {key: value for key, value in module.policy.named_parameters() if value.requires_grad}
    weights = {key: full_tensor(value).float() for key, value in trained.items()}
    seen[name] = {"losses": losses.steps, "weights": weights, "kl": trainer.callback_metrics["train/kl/chosen"].item()}
torch.save(seen, f"{output}.{ranks}.{trainer.global_rank}")
"""
)


def launch(tmp_path, script, *arguments):
    """Run a script as a user does: Lightning starts the other ranks, and each imports for itself."""
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)  # of a test before: ranks, and not one process, would begin again from it
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]


@pytest.fixture(scope="module")
def one(llama_dir, tmp_path_factory):
    """What one process sees of all kinds of policies and updates."""
    folder = tmp_path_factory.mktemp("one")
    run(folder, MATRIX, llama_dir, 1, folder / "seen")
    return torch.load(folder / "seen.1.0")


def test_ranks_train_as_one_process_with_the_same_global_batch(llama_dir, tmp_path, one):
    launch(tmp_path, MATRIX, llama_dir, 2, tmp_path / "seen")
    run(tmp_path, MATRIX, llama_dir, 4, tmp_path / "seen", ranks=4)
    for ranks in (2, 4):
        for rank in range(ranks):
            assert_alike(torch.load(tmp_path / f"seen.{ranks}.{rank}"), one)
    adaptive = [one[kind]["updates"] for kind in one if "adaptive" in kind]
    assert any(updates < 10 for updates in adaptive)


def test_shards_train_as_one_process(llama_dir, tmp_path, one):
    shutil.copytree(llama_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    launch(tmp_path, MATRIX, llama_dir, 2, tmp_path / "seen", tmp_path / "bare")
    two = [torch.load(tmp_path / f"seen.2.{rank}") for rank in (0, 1)]
    assert len(one) == 10
    for seen in two:
        assert_alike(seen, one)
        for kind, expected in one.items():
            assert torch.equal(seen[kind]["random"], expected["random"]), kind  # rank 1 goes on as if it had drawn


@pytest.mark.parametrize("kind", ["sharded", "ddp"])
def test_reward_models_train_as_one_process(llama_dir, tmp_path, kind):
    for ranks in (1, 2):
        run(tmp_path, REWARDS, llama_dir, ranks, tmp_path / "out", kind, ranks=ranks)
    one = torch.load(tmp_path / "out_seen.1.0")
    for rank in (0, 1):
        assert_alike(torch.load(tmp_path / f"out_seen.2.{rank}"), one)
    for seen in one.values():
        assert seen["losses"][-1] < 0.95 * seen["losses"][0]  # or any two runs would be close
        assert seen["weights"]["reward_head.weight"].abs().sum() > 0.01
    if kind == "ddp":
        flipped = [sorted((tmp_path / f"out.{ranks}/flipped.jsonl").read_text().splitlines()) for ranks in (1, 2)]
        places = [[json.loads(line)["location"] for line in lines] for lines in flipped]
        assert places[0] == places[1]


def test_divergences_under_shards_are_those_of_one_process(llama_dir, tmp_path):
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, param in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(param, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    for ranks in (1, 2):
        run(tmp_path, DIVERGENCES, llama_dir, ranks, tmp_path / "seen", tmp_path / "adapter", ranks=ranks)
    one, *two = (torch.load(tmp_path / f"seen.{name}") for name in ("1.0", "2.0", "2.1"))
    for kind, expected in one.items():
        assert expected["kl"] > 0.001
        tolerance = {"rtol": 0.05, "atol": 0.01} if "bf16" in kind else {"rtol": 1e-4, "atol": 1e-5}
        for found in (rank[kind] for rank in two):
            torch.testing.assert_close(found, expected, **tolerance, msg=lambda said, kind=kind: f"{kind}: {said}")


def comparable(weights):
    """Weights, with the product of a reference's factors in their place: round-off chooses among decompositions."""
    products = {
        name: weights[name.replace("lora_A", "lora_B")] @ factor
        for name, factor in weights.items()
        if "lora_A.reference" in name
    }
    return {name: weight for name, weight in weights.items() if ".reference." not in name} | products


def assert_alike(many, one):
    assert many.keys() == one.keys()
    for kind, (ours, theirs) in {kind: (many[kind], one[kind]) for kind in one}.items():
        assert ours["updates"] == theirs["updates"] > 0, kind
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=2e-5, abs=2e-6), kind
        assert ours["weights"].keys() == theirs["weights"].keys()
        found = comparable(ours["weights"])
        for name, weight in comparable(theirs["weights"]).items():
            torch.testing.assert_close(
                found[name],
                weight,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, k=kind, n=name: f"{k} {n} {text}",
            )


DRIFT = (
    COMMON
    + """
class Drift(Callback):
    def on_before_zero_grad(self, trainer, module, optimizer):
        if trainer.global_rank == 1 and trainer.global_step == 3:
            next(param for param in module.policy.parameters() if param.requires_grad).data[0] += 1e-6


module = PreferenceModule(
    PretrainedPolicy(sys.argv[1], **({"lora": LoRA(r=4)} if sys.argv[2] == "lora" else {})),
    AdapterReference() if sys.argv[2] == "lora" else CopyReference(), DPO(beta=0.5),
    lambda params: torch.optim.SGD(params, lr=0.05),
)
update = SoftReferenceUpdate(0.6, every_n_steps=2, compare_every=int(sys.argv[3]))
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=8, callbacks=[Drift(), update], enable_checkpointing=False,
    **QUIET,
)
trainer.fit(module, PreferenceDataModule(sys.argv[1], SyntheticPairs(32), batch_size=2))
print("trained", trainer.global_step)
"""
)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_ranks_that_drift_apart_stop(llama_dir, tmp_path, kind):
    stopped = run(tmp_path, DRIFT, llama_dir, kind, 1, ranks=2, check=False)
    assert all(stopped.codes)
    assert "the ranks have drifted apart: after step 4 the weights of 'policy' on rank 1 are not those on rank 0" in (
        stopped.stderr
    )
    assert "trained" not in stopped.stdout
    assert "trained 8" in run(tmp_path, DRIFT, llama_dir, kind, 0, ranks=2).stdout  # where they do not compare


RANDOM = (
    COMMON
    + """
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
for reference in CopyReference(), AdapterReference("factors"):
    policy = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1]))
    if isinstance(reference, AdapterReference):
        policy = get_peft_model(policy, LoraConfig(r=4, target_modules=["q_proj"]))
    module = PreferenceModule(policy, reference, DPO(beta=0.5))
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, enable_checkpointing=False,
        callbacks=[SoftReferenceUpdate(0.6, compare_every=1)], **QUIET,
    )
    trainer.fit(module, PreferenceDataModule(sys.argv[1], SyntheticPairs(32), batch_size=2))
    (Path(sys.argv[2]) / f"{reference.__class__.__name__}.{trainer.global_rank}").write_text(str(trainer.global_step))
"""
)


def test_references_are_copies_of_the_policy_of_rank_0_where_ranks_draw_other_weights(llama_dir, tmp_path):
    run(tmp_path, RANDOM, llama_dir, tmp_path, ranks=2)
    for name in "CopyReference.0", "CopyReference.1", "AdapterReference.0", "AdapterReference.1":
        assert (tmp_path / name).read_text() == "2"


KILLED = (
    COMMON
    + """
class Progress(Losses):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        (folder / f"pid.{trainer.global_rank}").write_text(str(os.getpid()))
        if trainer.is_global_zero:
            (folder / "step").write_text(str(trainer.global_step))


model, folder, ckpt_path = sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None
torch.manual_seed(0)
module = PreferenceModule(
    PretrainedPolicy(model), CopyReference(), DPO(beta=0.5), lambda params: torch.optim.AdamW(params, lr=0.003)
)
progress = Progress()
saved = ModelCheckpoint(folder, filename="last", every_n_train_steps=3, enable_version_counter=False)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=int(sys.argv[4]),
    callbacks=[SoftReferenceUpdate(0.6, every_n_steps=2), progress, saved], **QUIET,
)
trainer.fit(module, PreferenceDataModule(model, SyntheticPairs(400), batch_size=2), ckpt_path=ckpt_path)
if trainer.is_global_zero:
    (folder / "losses.json").write_text(json.dumps(progress.steps))
"""
)


def test_a_killed_rank_ends_the_others_and_leaves_a_checkpoint_that_resumes(llama_dir, tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), llama_dir, str(tmp_path), "", "100"]
    started = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while not (tmp_path / "step").exists() or int((tmp_path / "step").read_text() or 0) < 8:
        assert time.time() < deadline
        assert started.poll() is None
        time.sleep(0.02)
    os.kill(int((tmp_path / "pid.1").read_text()), signal.SIGKILL)
    began = time.time()
    assert started.wait(timeout=60) != 0
    assert time.time() - began < 60
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert step >= 6
    run(tmp_path, KILLED, llama_dir, tmp_path, tmp_path / "last.ckpt", step + 5, ranks=2)
    resumed = json.loads((tmp_path / "losses.json").read_text())
    run(tmp_path, KILLED, llama_dir, tmp_path, "", step + 5, ranks=2)
    assert resumed == json.loads((tmp_path / "losses.json").read_text())[step:]
    assert len(resumed) == 5


def test_two_nodes_find_each_other_by_torchrun(llama_dir, tmp_path):
    """Two agents with a rendezvous of their own on the loopback, one process each."""
    script = MATRIX.replace("devices=ranks, strategy=", "devices=1, num_nodes=ranks, strategy=")
    script = script.replace('"lora": (', '"no": (').replace("POLICIES.items()", "[('full', POLICIES['full'])]")
    (tmp_path / "script.py").write_text(script)
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"]
            + ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:29517", "--rdzv-id=pairs", "--local-addr=localhost"]
            + [str(tmp_path / "script.py"), llama_dir, "2", str(tmp_path / "nodes")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    for agent in agents:
        output, _ = agent.communicate(timeout=240)
        assert agent.returncode == 0, output[-3000:]
    run(tmp_path, script, llama_dir, 1, tmp_path / "one")
    one, both = torch.load(tmp_path / "one.1.0"), torch.load(tmp_path / "nodes.2.0")
    for kind in one:
        assert both[kind]["losses"] == pytest.approx(one[kind]["losses"], rel=2e-5, abs=2e-6), kind


RESUMED = (
    COMMON
    + """
model, folder = sys.argv[1], Path(sys.argv[2])
KINDS = {
    "full": ({}, CopyReference, SoftReferenceUpdate),
    "bfloat16": ({"dtype": "bfloat16"}, CopyReference, SoftReferenceUpdate),
    "lora": ({"lora": LoRA(r=4, dropout=0.1)}, AdapterReference, SoftReferenceUpdate),
    "nf4 lora": (
        {"dtype": "bfloat16", "lora": LoRA(r=4), "quantize": "nf4", "gradient_checkpointing": True}, AdapterReference,
        SoftReferenceUpdate,
    ),
    "window": ({}, WindowReference, lambda every_n_steps: HardReferenceUpdate(3)),
}


def fit(kind, steps, name, ckpt_path=None):
    options, reference, update = KINDS[kind]
    torch.manual_seed(0)
    module = PreferenceModule(
        PretrainedPolicy(model, **options), reference(), DPO(beta=0.5),
        lambda params: torch.optim.AdamW(params, lr=0.003), log_initial=False,
    )
    losses = Losses()
    saved = ModelCheckpoint(folder / kind, filename=name, every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), max_steps=steps, accumulate_grad_batches=2,
        precision="bf16-mixed" if options.get("quantize") else "32-true", gradient_clip_val=1.0,
        callbacks=[update(every_n_steps=2), losses, saved], **QUIET,
    )
    data = PreferenceDataModule(model, SyntheticPairs(36), batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    assert all(2 * local_shard(param).numel() == param.numel() for param in module.parameters())
    state = {name: local_shard(value) for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return losses.steps, state, trainer


for kind in KINDS:
    losses, state, trainer = fit(kind, 8, "whole")
    fit(kind, 4, "half")
    resumed, again, _ = fit(kind, 8, "resumed", folder / kind / "half.ckpt")
    shards = sorted(path.name for path in (folder / kind / "half.ckpt").iterdir())
    differ = [name for name in state if not torch.equal(state[name], again[name])]
    line = [kind, resumed == losses[-len(resumed):], len(resumed), differ, shards]
    with open(folder / f"resumed.{trainer.global_rank}", "a") as file:
        file.write(json.dumps(line) + "\\n")
"""
)


def test_shards_go_on_from_a_distributed_checkpoint(llama_dir, tmp_path):
    run(tmp_path, RESUMED, llama_dir, tmp_path, ranks=2)
    for rank in (0, 1):
        lines = [json.loads(line) for line in (tmp_path / f"resumed.{rank}").read_text().splitlines()]
        assert [line[0] for line in lines] == ["full", "bfloat16", "lora", "nf4 lora", "window"]
        for kind, alike, batches, differ, shards in lines:
            assert alike, kind
            assert 0 < batches < 16, kind
            assert not differ, kind
            assert shards == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"], kind
    for kind in ("lora", "nf4 lora"):
        held = FileSystemReader(tmp_path / kind / "half.ckpt").read_metadata().state_dict_metadata
        weights = [key for key in held if key.startswith("state_dict")]
        assert weights
        assert all("lora_" in key for key in weights)  # adapters without the base


MIXED = (
    COMMON
    + """
ranks, precision = int(sys.argv[2]), sys.argv[3]
seen = {"precisions": set()}


class Seen(Losses):
    def on_train_start(self, trainer, module):
        for model in (module.policy, module.reference.model):
            model.model.layers[0].mlp.up_proj.register_forward_hook(
                lambda layer, *_: seen["precisions"].add(str(layer.weight.dtype))
            )


torch.manual_seed(0)
module = PreferenceModule(
    PretrainedPolicy(sys.argv[1]), CopyReference(), DPO(beta=0.5), lambda params: torch.optim.SGD(params, lr=0.005),
    log_initial=False,
)
losses = Seen()
trainer = Trainer(
    accelerator="cpu", devices=ranks, strategy=ModelParallelStrategy(ranks, 1), max_steps=6, precision=precision,
    callbacks=[SoftReferenceUpdate(0.6, every_n_steps=2), losses], enable_checkpointing=False, **QUIET,
)
trainer.fit(module, PreferenceDataModule(sys.argv[1], SyntheticPairs(32), batch_size=8 // ranks, shuffle=False))
held = {str(one.dtype) for one in (*module.parameters(), *module.reference.model.parameters())}
seen |= {"losses": losses.steps, "precisions": sorted(seen["precisions"]), "held": sorted(held)}
if trainer.is_global_zero:
    print("seen:" + json.dumps(seen))
"""
)


def test_shards_are_sent_in_bfloat16_and_held_in_float32(llama_dir, tmp_path):
    def seen(ranks, precision):
        lines = run(tmp_path, MIXED, llama_dir, ranks, precision, ranks=ranks).stdout.splitlines()
        return json.loads(next(line for line in lines if line.startswith("seen:")).removeprefix("seen:"))

    exact, mixed = seen(1, "32-true"), seen(2, "bf16-mixed")
    assert (exact["precisions"], mixed["precisions"]) == (["torch.float32"], ["torch.bfloat16"])
    assert exact["held"] == mixed["held"] == ["torch.float32"]
    assert mixed["losses"] == pytest.approx(exact["losses"], rel=0.1)
    assert max(exact["losses"]) > 1.5 * min(exact["losses"])  # or any two runs would be close


REFUSED = (
    COMMON
    + """
kinds = {
    "cast": (PretrainedPolicy(sys.argv[1], lora=LoRA(r=4), quantize="nf4"), AdapterReference),
    "shards": (sys.argv[1], CopyReference),
    "copy": (sys.argv[1], lambda: CopyReference(device="cpu")),
    "other": (PretrainedPolicy(sys.argv[1], lora=LoRA(r=4 + int(os.environ.get("LOCAL_RANK", 0)))), AdapterReference),
}
policy, reference = kinds[sys.argv[2]]
module = PreferenceModule(policy, reference(), DPO())
ranks, precision = 2 if sys.argv[2] == "other" else 1, "bf16-true" if sys.argv[2] in ("cast", "shards") else "32-true"
trainer = Trainer(
    accelerator="cpu", devices=ranks, strategy=ModelParallelStrategy(ranks, 1), precision=precision, max_steps=1,
    **QUIET,
)
trainer.fit(module, PreferenceDataModule(sys.argv[1], SyntheticPairs(8), batch_size=2))
"""
)


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ("cast", 1, "trainer.precision bf16-true would cast 4-bit codes that are held as torch.float32"),
        ("shards", 1, "take bf16-mixed, or 32-true with a policy whose dtype is bfloat16"),
        ("copy", 1, "a sharded second model is on the policy's devices"),
        ("other", 2, "lora_A.default.weight: this weight is not on all ranks, or not of one shape"),
    ],
)
def test_what_shards_cannot_be_is_refused(llama_dir, tmp_path, kind, ranks, message):
    refused = run(tmp_path, REFUSED, llama_dir, kind, ranks=ranks, check=False)
    assert all(refused.codes)
    assert message in refused.stderr
