import copy

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.evaluation import generate
from lit_tr.evaluation.generate import in_batches
from lit_tr.evaluation.sampling import Sampling
from lit_tr.policy import PretrainedPolicy


@pytest.fixture(scope="module")
def model():
    return PretrainedPolicy(TINY).load()


def prompts(tokenizer, *texts):
    return [tokenizer(text)["input_ids"] for text in texts]


def test_responses_end_and_are_text_without_special_tokens(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud and very old market like?")
    samples = generate(model, tokenizer, ids, max_new_tokens=120)
    for prompt, sample in zip(ids, samples, strict=True):
        assert sample.prompt == prompt
        assert sample.response[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in sample.response[:-1]
        assert sample.text == tokenizer.decode(sample.response[:-1])
    assert samples[0].prompt_text == "Describe a cold river."


def test_samples_are_seeded_and_leave_the_random_state_and_the_mode_alone(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.")
    state = torch.get_rng_state()
    first, again, other = (generate(model, tokenizer, ids, seed=seed)[0].response for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_samples_follow_the_models_own_distribution(llama_dir, tokenizer):
    """First tokens of 4,000 samples against the probabilities: Pearson's chi-squared, 10 likeliest and the rest."""
    model = LlamaForCausalLM.from_pretrained(llama_dir)
    prompt = [5, 17, 300]
    # a longer prompt beside it, so that the others are padded on the left
    samples = generate(model, tokenizer, [prompt] * 4000 + [[9] * 8], max_new_tokens=1, batch_size=4001)[:-1]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    top = probabilities.topk(10)
    counts = torch.bincount(torch.tensor([sample.response[0] for sample in samples]), minlength=512)
    expected = torch.cat([top.values, 1 - top.values.sum(0, keepdim=True)]) * 4000
    observed = torch.cat([counts[top.indices], 4000 - counts[top.indices].sum(0, keepdim=True)])
    chi_squared = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_squared < 29.6  # 99.9 % point for 10 degrees of freedom


def test_other_prompts_of_the_batch_change_no_sample(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud and very old market like?", "Write.", "Tell me.")
    together = generate(model, tokenizer, ids, samples=2)
    for size in (1, 2, 3):
        assert generate(model, tokenizer, ids, samples=2, batch_size=size) == together
    assert together[0].response != together[1].response


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (2.0, 0.6), (1.0, 0.9)])
def test_temperature_and_top_p_bend_the_distribution_as_they_should(llama_dir, tokenizer, temperature, top_p):
    """First tokens against probabilities made here: divided logits, then the smallest set of at least top_p."""
    model = LlamaForCausalLM.from_pretrained(llama_dir)
    prompt = [5, 17, 300]
    drawn = generate(model, tokenizer, [prompt], 1, samples=4000, batch_size=4000, temperature=temperature, top_p=top_p)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    probabilities = (logits / temperature).exp() / (logits / temperature).exp().sum()
    order = probabilities.argsort(descending=True)
    count = int((probabilities[order].cumsum(0) < top_p).sum()) + 1 if top_p < 1 else len(order)
    kept = torch.zeros_like(probabilities).scatter(0, order[:count], probabilities[order[:count]])
    expected = kept / kept.sum() * 4000
    counts = torch.bincount(torch.tensor([one.response[0] for one in drawn]), minlength=512)
    assert counts[expected == 0].sum() == 0
    top = expected.topk(10).indices
    rest = torch.ones(512, dtype=torch.bool).index_fill(0, top, False)
    observed = torch.cat([counts[top], counts[rest].sum()[None]])
    wanted = torch.cat([expected[top], expected[rest].sum()[None]])
    assert ((observed - wanted) ** 2 / wanted.clamp(min=1e-9)).sum() < 29.6  # 99.9 % point, 10 degrees of freedom


def test_greedy_takes_the_likeliest_token(model, tokenizer):
    [prompt] = prompts(tokenizer, "Describe a cold river.")
    [found] = generate(model, tokenizer, [prompt], 6, greedy=True)
    ids = list(prompt)
    with torch.no_grad():
        for token in found.response:
            assert model.eval()(torch.tensor([ids])).logits[0, -1].argmax() == token
            ids.append(token)
    [cold] = generate(model, tokenizer, [prompt], 6, temperature=0)
    assert cold == found
    assert not found.finished


def test_batches_hold_rows_of_about_a_length_and_keep_to_the_budget(model, tokenizer):
    lengths = [3, 40, 5, 41, 4, 30, 3]
    made = in_batches(
        *(model, tokenizer, [[9] * length for length in lengths], [str(i) for i in range(7)]),
        *(Sampling(max_new_tokens=10), (), 100),
    )
    batches = [[number for number, _ in batch] for batch in made]
    assert batches == [[3], [1, 5], [2, 4, 0, 6]]  # 51, 2 x 50, 4 x 15 tokens
    assert all(len(batch) * (lengths[batch[0]] + 10) <= 100 for batch in batches)


def test_a_batch_without_memory_is_halved(model, tokenizer, monkeypatch):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud market like?", "Write.", "Tell me.")
    whole = generate(model, tokenizer, ids)
    sizes = []

    def scarce(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return type(model).generate(model, input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", scarce, raising=False)
    assert generate(model, tokenizer, ids) == whole
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0}, "top_p must be in"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"greedy": True, "samples": 2}, "greedy responses to a prompt are all the same"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_settings_out_of_range_are_named(options, said):
    with pytest.raises(UserError, match=said):
        Sampling(**options)


def test_a_shipped_repetition_penalty_does_not_bend_the_samples(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud market like?")
    plain = generate(model, tokenizer, ids)
    shipped = copy.copy(model)
    shipped.generation_config = GenerationConfig(repetition_penalty=9.0, min_p=0.5, top_k=1, no_repeat_ngram_size=1)
    assert generate(shipped, tokenizer, ids) == plain
