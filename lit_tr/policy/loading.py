"""Load language models from folders and hubs, on 4-bit bases and with LoRA adapters."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import distributed, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import find_adapter_config_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained
from lit_tr.policy.adapters import has_adapter
from lit_tr.policy.checkpointing import selective
from lit_tr.policy.compiled import options
from lit_tr.policy.layers import is_layer
from lit_tr.policy.quantization import keep_layout, make_nf4, nf4
from lit_tr.policy.targets import target_names

CAST_PRECISIONS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Precisions of a Trainer that cast all weights, and what they cast to."""
FLASH = ("flash_attn", "kernels")
"""Modules that bring FlashAttention 2: its own, and one that takes it from the hub."""


@dataclass(frozen=True)
class LoRA:
    """A new LoRA adapter (Hu et al. 2021, arXiv 2106.09685).

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: dropout on the adapter's input.
        targets: names of the linear layers that get an adapter, or `all-linear` for all except the output head,
            `attention` for those of attention blocks, `mlp` for the others.
        rslora: scale by alpha / sqrt(r), rank-stabilized LoRA (Kalajdzievski 2023, arXiv 2312.03732): for high ranks.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError(f"{self}: r must be at least 1, alpha above 0, dropout in [0, 1)")


@dataclass(frozen=True)
class PretrainedPolicy:
    """Where the policy comes from, and how it is loaded.

    Args:
        path: folder or hub id of a causal language model; `embedded:tiny` is the one that ships with lit_tr.
        dtype: precision of the weights. Full fine-tuning needs float32 (computing in `bf16-mixed`): a step of 1e-6 is
            lost in bfloat16.
        quantize: `nf4` quantizes the linear layers to 4 bits (QLoRA, arXiv 2305.14314), frozen, under an adapter.
        lora: train a new adapter instead of the weights.
        adapter: folder or hub id of a LoRA adapter to continue training, such as an SFT policy's.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: `true` all of
            a layer; `selective` all but matrix products and attention, which saves an eighth of a step's peak in the
            same time (SmolLM2-135M on the CPU, bfloat16).
        compile: compile the layers with torch.compile. That takes 15 seconds and more at the start, and saves a sixth
            of the memory beyond weights and optimizer (SmolLM2-135M on the CPU, bfloat16).
        attention: attention implementation of transformers; None takes transformers' choice. Packs are computed for
            `sdpa` and `eager`, where `why_not_packed` proves them; others get padded rows.
        trust_remote_code: run model code that comes with the weights. It can do anything on this machine.
    """

    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: Literal["nf4"] | None = None
    lora: LoRA | None = None
    adapter: str | None = None
    gradient_checkpointing: bool | Literal["selective"] = False
    compile: bool = False
    attention: str | None = None
    trust_remote_code: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.lora and self.adapter:
            raise UserError("PretrainedPolicy: give lora for a new adapter or adapter to start from one, not both")
        if self.quantize and not (self.lora or self.adapter):
            raise UserError("PretrainedPolicy: 4-bit weights cannot be trained; give lora or adapter with quantize")
        if self.compile and self.gradient_checkpointing == "selective":
            raise UserError(
                "PretrainedPolicy: compiled layers choose themselves what they keep; give compile with "
                "gradient_checkpointing true or false, not selective"
            )

    @property
    def has_adapter(self) -> bool:
        """Whether the policy has an adapter."""
        return bool(self.lora or self.adapter)

    def load(self, device: torch.device | str = "cpu", in_shards: bool = False) -> nn.Module:
        """Return the policy, in training mode, on a device.

        Args:
            device: the device.
            in_shards: load it for `shard`: into host memory on rank 0, and without values on the meta device on other
                ranks. In 4 bits it is on the device of each rank, with codes that can be sharded.

        Raises:
            UserError: the model or adapter cannot be loaded.
        """
        if in_shards and not self.quantize:
            if distributed.get_rank() > 0:
                return self.load_meta()
            device = "cpu"
        adapter = self._checked()
        model = self._prepared(self._load_base(device, in_shards))
        if self.lora:
            model = self._add_adapter(model, self.lora)
        if adapter:
            said = f"{self.adapter}: no adapter for {self.path} could be loaded"
            with explained(said, OSError, ValueError, RuntimeError):
                model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        return model.train()

    def load_meta(self) -> nn.Module:
        """Return the policy on the meta device: weights have shapes and no values, and no weight file is read.

        Raises:
            UserError: the configuration of the model or adapter cannot be loaded.
        """
        given = self._checked()
        said = f"{self.path}: no configuration of a causal language model in this folder or hub id"
        with explained(said, OSError, ValueError, ImportError):
            path, inner = resolve(self.path), None
            if find_adapter_config_file(path):  # transformers loads its base, with the adapter
                inner = PeftConfig.from_pretrained(path)
                path = resolve(str(inner.base_model_name_or_path))
            config = AutoConfig.from_pretrained(path, trust_remote_code=self.trust_remote_code)
            with torch.device("meta"), no_init_weights():
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=getattr(torch, self.dtype),
                    attn_implementation=self.attention,
                    trust_remote_code=self.trust_remote_code,
                )
                if inner:
                    inject_adapter_in_model(inner, model)
        model.tie_weights()
        with torch.device("meta"):
            if self.quantize:
                make_nf4(model)
            model = self._prepared(model)
            if self.lora:
                model = self._add_adapter(model, self.lora)
            if given:
                with explained(f"{self.adapter}: no configuration of an adapter", OSError, ValueError):
                    adapter = PeftConfig.from_pretrained(given)
                adapter.inference_mode = False
                model = get_peft_model(model, adapter)
        return model.train()

    def _checked(self) -> str | None:
        """Check what would fail after the weights are there, and return where the adapter is, if there is one."""
        if self.attention == "flash_attention_2" and not any(map(find_spec, FLASH)):
            raise UserError(
                "PretrainedPolicy: attention flash_attention_2 needs a package that is not installed: pip install "
                "flash-attn, or take another attention, such as sdpa"
            )
        return resolve(self.adapter) if self.adapter else None

    def _prepared(self, model: PreTrainedModel) -> Any:
        keep_layout(model)
        if self.gradient_checkpointing:
            # by its name in transformers 5.24 and later, or before
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            chosen = {"context_fn": selective} if self.gradient_checkpointing == "selective" else {}
            enable({"use_reentrant": False, **chosen})
        if self.compile:
            for layer in model.modules():
                if is_layer(layer):
                    self._compile(layer)
        return model

    def _compile(self, layer: nn.Module) -> None:
        """Compile a layer, or its parts where it is checkpointed: a checkpoint within runs uncompiled as a whole."""
        for part in layer.children() if self.gradient_checkpointing else [layer]:
            part.compile(**options())

    def _load_base(self, device: torch.device | str, in_shards: bool = False) -> PreTrainedModel:
        dtype = getattr(torch, self.dtype)
        said = f"{self.path}: no causal language model could be loaded from this folder or hub id"
        with explained(said, OSError, ValueError, ImportError), _bar_in_terminals_alone():
            return AutoModelForCausalLM.from_pretrained(
                resolve(self.path),
                dtype=dtype,
                quantization_config=nf4(dtype, in_shards) if self.quantize else None,
                attn_implementation=self.attention,
                device_map={"": device},
                trust_remote_code=self.trust_remote_code,
            )

    def _add_adapter(self, model: PreTrainedModel, lora: LoRA) -> nn.Module:
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=target_names(model, lora.targets),
            use_rslora=lora.rslora,
            task_type="CAUSAL_LM",
        )
        with explained(f"{self.path}: no adapter on the layers {lora.targets!r}", ValueError):
            return get_peft_model(model, config)


@contextmanager
def _bar_in_terminals_alone() -> Iterator[None]:
    """Leave transformers' bar of loaded weights out of logs and notebooks."""
    if sys.stderr.isatty() or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()


@dataclass(frozen=True)
class GivenPolicy:
    """A model in memory to train: a causal language model with Hugging Face's interface, or PEFT's model of one.

    Args:
        model: the model.
    """

    model: nn.Module

    @property
    def has_adapter(self) -> bool:
        """Whether the policy has an adapter."""
        return has_adapter(self.model)

    def load(self, device: torch.device | str = "cpu", in_shards: bool = False) -> nn.Module:
        """Return the model, in training mode, on a device."""
        keep_layout(self.model)
        return self.model.to(device).train()


def source_of(policy: Any) -> PretrainedPolicy | GivenPolicy:
    """Return the source of a policy given as a path, a `PretrainedPolicy` or a model; else raise a `UserError`."""
    if isinstance(policy, str | Path):
        return PretrainedPolicy(str(policy))
    if isinstance(policy, nn.Module):
        return GivenPolicy(policy)
    if not isinstance(policy, PretrainedPolicy | GivenPolicy):
        raise UserError(f"PreferenceModule: policy must be a path, a PretrainedPolicy or a model, and is {policy!r}")
    return policy
