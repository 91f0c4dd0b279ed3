"""PretrainedReference: a model of its own that does not move."""

from torch import nn

from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError
from lit_tr.policy.adapters import causal_model, has_adapter
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference.averaging import Alpha
from lit_tr.reference.base import Reference


class PretrainedReference(Reference):
    """A model of its own, whatever the policy starts from: the SFT policy of the first of several rounds, say.

    For an adapter whose base is that model it costs nothing: it is the base, with the adapter switched off. Else it is
    a second model. It is not saved, but loaded again.

    Args:
        source: where it comes from; it has the policy's vocabulary.
    """

    moves = False

    def __init__(self, source: PretrainedPolicy) -> None:
        self.source = source

    def prepare(self, policy: nn.Module) -> None:
        """Load the model, unless it is the base of the policy's adapter.

        Raises:
            UserError: it cannot be loaded, or has another vocabulary.
        """
        base, source = causal_model(policy), self.source
        plain = not (source.adapter or source.lora)
        if plain and has_adapter(policy) and base.config.name_or_path == resolve(source.path):
            return
        device = next(policy.parameters()).device
        loaded = source.load_meta() if device.type == "meta" else source.load(device)
        self.model = loaded.requires_grad_(False).eval()
        ours, theirs = (one.config.get_text_config().vocab_size for one in (base, causal_model(self.model)))
        if ours != theirs:
            raise UserError(
                f"PretrainedReference: {source.path} has a vocabulary of {theirs} tokens and the policy one of {ours}: "
                "give a model with the policy's tokenizer"
            )

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Raise a `UserError`: it does not move."""
        raise UserError("PretrainedReference does not move: take CopyReference or AdapterReference")
