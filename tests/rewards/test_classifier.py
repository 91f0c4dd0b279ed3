import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_tr.errors import UserError
from lit_tr.policy.logprobs import decoder
from lit_tr.rewards.classifier import sequence_classifier
from tests.policy.test_packed import EAGER, KINDS, random_model

NONE_IN_TRANSFORMERS = ("cohere", "granite", "gemma4_text")


@pytest.mark.parametrize("kind", [kind for kind in KINDS | EAGER if kind not in NONE_IN_TRANSFORMERS])
def test_a_saved_classifier_gives_the_head_of_the_last_token(kind, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    model = random_model(kind)
    rows, head = torch.randint(3, 97, (2, 9)), torch.randn(1, 32)
    with torch.no_grad():
        expected = decoder(model)(rows).last_hidden_state[:, -1] @ head.T
    made = sequence_classifier(model, head, tokenizer)
    made.save_pretrained(tmp_path)
    attention = "eager" if kind in EAGER else None  # transformers before 5.21 would leave out Gemma 2's caps
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=attention).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NONE_IN_TRANSFORMERS)
def test_a_kind_that_transformers_has_no_classifier_of_is_refused(kind, tokenizer):
    with pytest.raises(UserError, match="transformers has no sequence classifier of such a model"):
        sequence_classifier(random_model(kind), torch.randn(1, 32), tokenizer)
