"""The private names of other libraries that lit_tr uses: a release that takes one away is told by the name."""

import ast
import importlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import datasets
import lightning
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint

import lit_tr

OBJECTS = {  # where an instance has the name, and its class does not
    "checkpoint": ModelCheckpoint,
    "config": transformers.LlamaConfig,
    "dataset": lambda: datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset(),
    "linear": lambda: torch.nn.Linear(1, 1),
    "module": lightning.LightningModule,
    "trainer": lambda: lightning.Trainer(accelerator="cpu", barebones=True),
}
CLI, FIT = "lightning.pytorch.cli:LightningCLI", "trainer:fit_loop"
LOADERS = "lightning.pytorch.utilities.combined_loader:CombinedLoader"
USED = [  # the name, the files of lit_tr, and what for
    (f"{CLI}._instantiate_trainer", "commands/fit", "adds callbacks and a logger"),
    (
        f"{CLI}._parse_ckpt_path",
        "commands/fit",
        "compares a checkpoint with the configuration before weights are loaded",
    ),
    (f"{CLI}._parser", "commands/fit", "the parser of a verb"),
    (f"{CLI}._run_subcommand", "commands/fit", "errors of a run become messages"),
    (f"{FIT}._combined_loader", "reference/window", "the validation loader whose batches are kept"),
    (f"{FIT}._data_fetcher", "resume", "an argument of _should_check_val_fx"),
    (f"{FIT}._data_source", "loading", "puts a loader between the given one and the loop"),
    (f"{FIT}.epoch_loop._batches_that_stepped", "module updates/base", "the step under which Lightning logs"),
    (f"{FIT}.epoch_loop._should_check_val_fx", "resume", "whether validation follows the step of a checkpoint"),
    ("lightning.pytorch:LightningModule._on_before_batch_transfer", "module", "the data hooks of a batch, by hand"),
    ("module:_trainer", "module resume", "whether a module has a trainer"),
    (
        "lightning.pytorch.core.optimizer:_init_optimizers_and_lr_schedulers",
        "commands/resume",
        "optimizers as the configuration has them",
    ),
    (f"{LOADERS}._load_state_dicts", "loading", "keeps Lightning from loading states of the first rank"),
    (f"{LOADERS}._state_dicts", "loading", "keeps Lightning from saving states of the first rank"),
    ("trainer:_accelerator_connector", "commands/interrupt", "whether SLURM starts the run again"),
    ("trainer:_logger_connector", "updates/base", "whether Lightning logs this step"),
    ("trainer:_results", "updates/base", "drops figures of the last update"),
    ("trainer:_signal_connector", "commands/interrupt", "a stop at the end of an optimizer step"),
    ("torch:_foreach_copy_", "reference/adapter reference/precision", "averages many weights at once"),
    ("torch:_foreach_mul_", "step_mean", "scales many gradients at once"),
    ("torch:_foreach_lerp_", "reference/precision", "averages many weights at once"),
    ("torch:ops.aten._local_scalar_dense", "planning/ledger", "numbers of fake tensors"),
    ("torch:ops.aten._scaled_dot_product_flash_attention_for_cpu", "planning/ledger", "arithmetic of attention"),
    (
        "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
        "planning/ledger",
        "arithmetic of attention",
    ),
    ("torch._subclasses.fake_tensor:FakeTensorMode", "planning/ledger", "a step without memory"),
    ("torch.utils._python_dispatch:TorchDispatchMode", "planning/ledger", "counts what a step allocates"),
    ("linear:_apply", "holder planning/references reference/base reference/copied", "moves references with the policy"),
    ("linear:_compiled_call_impl", "reference/base", "whether a layer is compiled"),
    ("config:_attn_implementation", "planning/plan policy/probe", "the attention that transformers chose"),
    ("checkpoint:_last_global_step_saved", "commands/runs", "whether the end of training is saved"),
    ("peft.tuners.tuners_utils:BaseTunerLayer._active_adapter", "policy/adapters", "switches adapters without a walk"),
    (
        "peft.tuners.tuners_utils:BaseTunerLayer._disable_adapters",
        "policy/adapters",
        "switches adapters without a walk",
    ),
    ("dataset:_ex_iterable", "data/rows/memory", "whether a stream can go on from its state"),
]
ROOT = Path(lit_tr.__file__).parent


@cache
def made(name):
    return OBJECTS[name]()


@pytest.mark.parametrize(("name", "files"), [(name, files) for name, files, _ in USED])
def test_it_is_there_in_the_installed_release(name, files):
    start, _, path = name.partition(":")
    found = made(start) if start in OBJECTS else importlib.import_module(start)
    library = getattr(found, "__module__", start).partition(".")[0]
    for part in path.split("."):
        assert hasattr(found, part), f"{library} {version(library)} has no {name} any more, which {files} takes"
        found = getattr(found, part)


def private(names):
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def used_and_own(tree):
    """Return the private names that a file takes from objects or other libraries, and those that it makes."""
    used, own = set(), {"_asdict", "_replace"}  # of named tuples, public
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own |= private([node.name])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own |= private([node.id])
        elif isinstance(node, ast.Attribute):
            stored = isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
            (own if stored else used).update(private([node.attr]))
        elif isinstance(node, ast.ImportFrom) and private(node.module.split(".")):
            used |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= private(name.name for name in node.names)
    return used, own


def test_the_list_is_that_of_the_source():
    texts = {file.relative_to(ROOT).with_suffix("").as_posix(): file.read_text() for file in ROOT.rglob("*.py")}
    found = {file: used_and_own(ast.parse(text)) for file, text in texts.items()}
    own = set().union(*(made for _, made in found.values()))
    listed = {(name.replace(":", ".").rpartition(".")[2], file) for name, files, _ in USED for file in files.split()}
    assert {(name, file) for file, (used, _) in found.items() for name in used - own} - listed == set()
    assert [(name, file) for name, file in listed if name not in texts[file]] == []
