import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.logprobs import response_log_probs

IDS = st.lists(st.integers(1, 511), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(examples=st.lists(st.builds(TokenizedExample, IDS, IDS, IDS), min_size=1, max_size=4))
def test_padding_does_not_matter_and_sums_are_those_of_float64(llama_dir, examples):
    """Each response alone, unpadded, in float64, token by token."""
    model = LlamaForCausalLM.from_pretrained(llama_dir).eval()
    batch = Collator(packed=False)(examples)
    log_probs = response_log_probs(model, batch).detach()
    rows = [(e.prompt, e.chosen) for e in examples] + [(e.prompt, e.rejected) for e in examples]
    exact = model.double()
    for (prompt, response), log_prob in zip(rows, log_probs, strict=True):
        distributions = exact(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected = sum(distributions[len(prompt) - 1 + i, token] for i, token in enumerate(response))
        torch.testing.assert_close(log_prob.double(), expected.detach(), rtol=1e-5, atol=1e-4)
    assert batch.lengths.tolist() == [len(response) for _, response in rows]
