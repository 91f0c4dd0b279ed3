import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


class Counted(TorchDispatchMode):
    """Counts matrix products and attention that are computed, and activation functions."""

    def __init__(self):
        super().__init__()
        self.products = self.attention = self.activations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.products += func in PRODUCTS
        self.attention += "attention" in name and "backward" not in name
        self.activations += func == torch.ops.aten.silu.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a random Llama of 2 layers that is as wide as products that are kept."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **size, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(
        path
    )
    return str(path)


def step(folder, packed, **options):
    """Return the log-probs, the gradients, and what was computed for them."""
    torch.manual_seed(1)
    policy = PretrainedPolicy(folder, **options).load()
    for name, param in policy.named_parameters():
        if "lora_B" in name:
            param.data.normal_(std=0.1)
    batch = Collator(packed=packed)([TokenizedExample([5, 6, 7], [8, 9], [10]), TokenizedExample([11], [12], [13, 14])])
    torch.manual_seed(2)  # of LoRA's dropout
    with Counted() as counted:
        log_probs = response_log_probs(policy, batch)
        (log_probs * torch.linspace(-1, 2, len(log_probs))).sum().backward()
    return log_probs, {name: param.grad for name, param in policy.named_parameters() if param.requires_grad}, counted


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(r=4, dropout=0.5)}, {"lora": LoRA(r=4, dropout=0.5), "quantize": "nf4"}]
)
def test_selective_checkpointing_changes_no_gradient_and_repeats_no_wide_product(folder, packed, options):
    kept, ours, plain = step(folder, packed, **options)
    again, theirs, selective = step(folder, packed, **options, gradient_checkpointing="selective")
    assert torch.equal(kept, again)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert torch.equal(gradient, theirs[name]), name
    assert options or selective.products == plain.products  # those over LoRA's rank are computed again
    assert selective.attention == plain.attention
    assert selective.activations == plain.activations + 2  # once more in each layer


def test_all_is_computed_again_without_selection(folder):
    _, _, plain = step(folder, True)
    _, _, again = step(folder, True, gradient_checkpointing=True)
    assert again.products >= plain.products + 2 * 6  # the last product of a layer is not needed
    assert again.attention > plain.attention


def test_compiled_layers_choose_what_they_keep(folder):
    with pytest.raises(UserError, match="compiled layers choose themselves what they keep"):
        PretrainedPolicy(folder, compile=True, gradient_checkpointing="selective")
