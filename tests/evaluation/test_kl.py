"""Against the exact KL divergence of models so small that all their responses can be enumerated."""

import random
from contextlib import nullcontext
from functools import partial
from itertools import product
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from statsmodels.api import OLS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_tr.data.tokenization import TokenizedExample
from lit_tr.embedded import TINY
from lit_tr.evaluation import generate
from lit_tr.evaluation.kl import Estimate, divergences, over_prompts
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy import head as output_head
from lit_tr.reference import AdapterReference, FrozenReference

END, VOCABULARY, LENGTH = 0, 5, 3
PROMPTS = ([1, 2], [4, 3, 1])
SEEDS, SAMPLES = 60, 64


@pytest.fixture(scope="module")
def words():
    """A tokenizer of five words, the first of which ends a response."""
    names = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(names, "w1")), eos_token="w0", pad_token="w0")


def small_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def pair():
    return small_model(1), small_model(2)


def responses():
    """All responses: of up to `LENGTH` tokens, the last one the end or the `LENGTH`-th."""
    for length in range(1, LENGTH + 1):
        for *begun, last in product(range(VOCABULARY), repeat=length):
            if END not in begun and (last == END or length == LENGTH):
                yield [*begun, last]


@torch.no_grad()
def log_prob(model, prompt, response):
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum().item()


def enumerated(policy, other, prompt):
    """The exact divergence: a sum over all responses."""
    both = [[log_prob(model, prompt, response) for model in (policy, other)] for response in responses()]
    ours, theirs = torch.tensor(both, dtype=torch.float64).T
    assert ours.exp().sum().item() == pytest.approx(1)
    return (ours.exp() * (ours - theirs)).sum().item()


def given(model):
    return lambda: nullcontext(model)


def of_seeds(policy, other, words):
    """The two estimates of each seed, each a mean over samples with its standard error; prompts are drawn as well."""
    for seed in range(SEEDS):
        prompts = random.Random(seed).choices(PROMPTS, k=SAMPLES)
        samples = generate(policy, words, prompts, max_new_tokens=LENGTH, seed=seed)
        found = divergences([one.tokenized() for one in samples], given(policy), {"it": given(other)})["it"]
        yield [over_prompts(values.tolist(), range(SAMPLES)) for values in (found.exact, found.log_ratios)]


def test_both_estimates_are_unbiased_and_the_exact_one_varies_less(pair, words):
    expected = fmean(enumerated(*pair, prompt) for prompt in PROMPTS)
    estimates = list(zip(*of_seeds(*pair, words), strict=True))
    for found in estimates:
        means = [one.mean for one in found]
        assert abs(fmean(means) - expected) < 3 * stdev(means) / SEEDS**0.5
        assert fmean(one.standard_error for one in found) == pytest.approx(stdev(means), rel=0.25)
        covered = fmean(abs(one.mean - expected) < 1.96 * one.standard_error for one in found)
        assert covered >= 0.88
    exact, log_ratio = (stdev([one.mean for one in found]) ** 2 for found in estimates)
    print(f"KL {expected:.3f}; variance of the exact sum {exact:.5f}, of the log-ratio {log_ratio:.5f}")
    assert exact < log_ratio / 3  # measured: 0.0156 against 0.0641


def test_each_sample_by_hand(pair):
    """The sum over positions of sum_v p(v) log(p(v) / q(v)), and log p - log q of each token; in the order given."""
    policy, other = pair
    rows = [([1, 2], [3, 4, 0]), ([4, 3, 1, 1], [0]), ([2], [1, 2, 3])]
    samples = [TokenizedExample(prompt, response, None) for prompt, response in rows]
    found = divergences(samples, given(policy), {"it": given(other), "itself": given(policy)})
    for i, (prompt, response) in enumerate(rows):
        with torch.no_grad():
            p, q = (m(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].softmax(-1) for m in pair)
        assert found["it"].exact[i].item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-5)
        ratios = (p / q).log()[range(len(response)), response]
        assert found["it"].token_log_ratios[i].tolist() == pytest.approx(ratios.tolist(), abs=1e-5)
        assert found["it"].log_ratios[i].item() == pytest.approx(ratios.sum().item(), abs=1e-5)
    assert found["itself"].exact.tolist() == found["itself"].log_ratios.tolist() == [0, 0, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_chunks_batches_and_packs_change_nothing(monkeypatch, tokenizer, packed):
    policy, other = PretrainedPolicy(TINY).load(), PretrainedPolicy(TINY).load()
    torch.nn.init.normal_(next(other.parameters()), std=0.1)
    prompts = [tokenizer(text).input_ids for text in ("Describe a cold river.", "What is a loud castle like?")] * 20
    samples = [one.tokenized() for one in generate(policy, tokenizer, prompts, max_new_tokens=24)]
    whole = divergences(samples, given(policy), {"it": given(other)})["it"]
    assert whole.exact.min() > 1
    monkeypatch.setattr(output_head, "CHUNK", 512 * 7)  # the logits of 7 tokens
    parts = divergences(samples, given(policy), {"it": given(other)}, packed)["it"]
    torch.testing.assert_close(parts.exact, whole.exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.log_ratios, whole.log_ratios, rtol=1e-4, atol=1e-4)
    assert [len(one) for one in parts.token_log_ratios] == [len(one.chosen) for one in samples]


@pytest.mark.parametrize("packed", [False, True])
def test_adapters_on_one_base(tokenizer, packed):
    """Three policies on one base give what three models give; the adapter is on the head as well."""
    policy = PretrainedPolicy(TINY, lora=LoRA(r=4, targets=["q_proj", "lm_head"])).load()
    reference, initial = AdapterReference(), FrozenReference()
    reference.prepare(policy)
    initial.prepare(policy)
    for name, param in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.05 if ".reference." in name else 0.1)
    prompts = [tokenizer("Describe a cold river.").input_ids] * 8
    samples = [one.tokenized() for one in generate(policy, tokenizer, prompts, max_new_tokens=16)]
    others = {"reference": partial(reference.active, policy), "initial": partial(initial.active, policy)}
    found = divergences(samples, given(policy), others, packed)
    for name, held in (("reference", reference), ("initial", initial)):
        with torch.no_grad(), held.active(policy) as model:
            theirs = [model(torch.tensor([one.prompt + one.chosen])).logits[0] for one in samples]
        for one, logits, exact in zip(samples, theirs, found[name].exact, strict=True):
            with torch.no_grad():
                ours = policy(torch.tensor([one.prompt + one.chosen])).logits[0]
            p, q = (x[len(one.prompt) - 1 : -1].double().log_softmax(-1) for x in (ours, logits))
            assert exact.item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-4)
            assert exact > 0.01
    assert not torch.allclose(found["reference"].exact, found["initial"].exact)


def test_standard_errors_are_over_prompts():
    assert over_prompts([1.0, 3.0, 6.0, 6.0], [(1,), (1,), (2,), (2,)]) == Estimate(4.0, 2.0, 2)
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 20, 60)  # some have more samples than others
    values = rng.normal(size=60) + prompts
    robust = OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": prompts})
    found = over_prompts(values.tolist(), prompts.tolist())
    assert (found.mean, found.standard_error) == pytest.approx((robust.params[0], robust.bse[0]))
    one = over_prompts([1.0, 3.0], ["a", "a"])
    assert (one.mean, one.prompts) == (2.0, 1)
    assert one.standard_error != one.standard_error  # of one prompt nothing is known
