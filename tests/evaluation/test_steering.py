"""Against the distribution of all responses of two models so small that they can be enumerated, and dense logits."""

import functools
import json
from collections import Counter
from statistics import fmean, stdev

import pytest
import torch
from scipy.stats import chisquare

from lit_tr.data import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.answering import ResponseFile
from lit_tr.evaluation.generate import in_batches
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.evaluation.prompts import Prompt, read_prompts
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.steering import Steer, SteeredPolicy, open_steered
from tests.commands.test_export import KINDS, train
from tests.evaluation.test_kl import END, LENGTH, pair, responses, words  # noqa: F401

PROMPTS = [[1, 2], [4, 3, 1, 1]]  # one is padded
SAMPLES = 1500


@pytest.fixture(scope="module")
def trained(llama_dir, tmp_path_factory):
    """Return the checkpoint of a run of a kind, trained once."""
    return functools.cache(lambda kind: str(train(tmp_path_factory.mktemp("run"), llama_dir, **KINDS[kind])))


def dense(initial, policy, prompt, response, strength):
    """Log-probs of the steered and of the initial policy at each position of a response, without a cache, float64."""
    with torch.no_grad():
        both = [
            model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            for model in (initial, policy)
        ]
    return (both[0] + strength * (both[1] - both[0])).log_softmax(-1), both[0]


def divergence(p, q):
    return (p.exp() * (p - q)).sum(-1)


def enumerated(initial, policy, prompt, strength):
    """The probability of each response, and the divergence: a sum over all responses."""
    probabilities, kl = {}, 0.0
    for response in responses():
        steered, start = dense(initial, policy, prompt, response, strength)
        at = range(len(response)), response
        probability = steered[at].sum().exp().item()
        probabilities[tuple(response)] = probability
        kl += probability * (steered[at] - start[at]).sum().item()
    assert sum(probabilities.values()) == pytest.approx(1)
    return probabilities, kl


def held(model, tokenizer, name):
    return LocalPolicy(name, tokenizer, 16, {"weights": name}, lambda: (model, None), batch_tokens=700)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_responses_and_their_divergence_are_those_of_all_enumerated(pair, words, strength):  # noqa: F811
    initial, policy = pair
    steered = SteeredPolicy(held(policy, words, "p"), held(initial, words, "i"), strength)
    prompts = [Prompt(str(i), "", ids, False) for i, ids in enumerate(PROMPTS)]
    requests = [(prompt, sample) for sample in range(SAMPLES) for prompt in prompts]
    found = [one for batch in steered.respond(requests, Sampling(max_new_tokens=LENGTH)) for one in batch]
    for number, prompt in enumerate(PROMPTS):
        probabilities, kl = enumerated(initial, policy, prompt, strength)
        rows = [one for one in found if one.id == str(number)]
        drawn = [tuple(int(word[1:]) for word in one.response.split()) + (END,) * bool(one.finished) for one in rows]
        counts = Counter(drawn)
        likely = [one for one, probability in probabilities.items() if probability * SAMPLES >= 5]
        rest = SAMPLES - sum(counts[one] for one in likely)
        expected = [probabilities[one] * SAMPLES for one in likely]
        assert chisquare([*(counts[one] for one in likely), rest], [*expected, SAMPLES - sum(expected)]).pvalue > 0.001
        kls = [one.kl for one in rows]
        assert abs(fmean(kls) - kl) < 3.5 * stdev(kls) / SAMPLES**0.5
        for one, response in list(zip(rows, drawn, strict=True))[:50]:
            by_hand = divergence(*dense(initial, policy, prompt, [*response], strength)).sum().item()
            assert one.kl == pytest.approx(by_hand, abs=1e-5)
        assert {one.strength for one in rows} == {strength}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("options", [{}, {"greedy": True}, {"temperature": 0.7, "top_p": 0.9}])
def test_strength_0_is_the_initial_policy_and_1_the_policy(trained, kind, options):
    checkpoint, sampling = trained(kind), Sampling(max_new_tokens=12, **options)
    rows = Objects([{"prompt": text} for text in ("Describe a cold river.", "Write about a very old and quiet ship.")])
    names = ["same"]  # it names the random numbers
    policies = [open_policies([f"{checkpoint}{which}"], names=names)[0] for which in (":initial", "")]
    steered = open_steered([checkpoint], [0.0, 1.0, 3.0], names=names)
    requests = [(one, 0) for one in read_prompts(rows, policies[0].reader(sampling)).found]
    plain, moved = ([[*one.respond(requests, sampling)] for one in some] for some in (policies, steered))
    texts = [[one.response for batch in some for one in batch] for some in (*plain, *moved)]
    assert texts[:2] == texts[2:4]
    assert len({*map(tuple, texts)}) == 3
    kls = [[one.kl for batch in some for one in batch] for some in moved]
    assert kls[0] == [0.0, 0.0]
    assert all(0 < near < far for near, far in zip(*kls[1:], strict=True))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_padded_batches_with_caches_give_the_dense_logits(trained, kind):
    """The divergence at each position, of whole sequences that are computed at once and alone."""
    strength, sampling, used = 1.7, Sampling(max_new_tokens=12), []
    [steered] = open_steered([trained(kind)], [strength], Loading(device="cpu"))
    [unsteered] = open_policies([trained(kind)])
    prompts = [steered.policy.tokenizer(text).input_ids for text in ("Describe a cold, old river.", "A ship?")]

    def steer(mask):
        used.append(Steer(steered.policy.active, strength, mask))
        return used[-1]

    with steered.initial.active() as model:
        [batch] = in_batches(model, steered.policy.tokenizer, prompts, ["a", "b"], sampling, steer=steer)
    for row, (number, made) in enumerate(batch):
        ids = torch.tensor([prompts[number] + made.response])
        both = []
        for side in (steered.initial, unsteered):
            with side.active() as model, torch.no_grad():
                both.append(model(ids).logits[0, len(prompts[number]) - 1 : -1].double().log_softmax(-1))
        p = (both[0] + strength * (both[1] - both[0])).log_softmax(-1)
        expected = divergence(p, both[0]).tolist()
        assert used[0].kl[row, : len(expected)].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert max(expected) > 0.01


def test_strengths_and_adapters_share_the_models(trained):
    for kind, count in (("full", 2), ("lora", 1)):
        steered = open_steered([trained(kind)], [0.5, 2.0])
        models = set()
        for one in steered:
            for side in (one.policy, one.initial):
                with side.active() as model:
                    models.add(id(model))
        assert len(models) == count


def test_a_file_is_gone_on_with_and_keeps_to_its_strength(trained, tmp_path):
    weak, strong = open_steered([trained("lora")], [0.5, 2.0])
    sampling = Sampling(max_new_tokens=6, samples=4)
    prompts = read_prompts(Objects([{"prompt": "Describe a cold river."}]), weak.reader(sampling)).found
    weak.batch_tokens = 60
    whole = ResponseFile(tmp_path / "whole.jsonl", weak, prompts, sampling).complete()
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "part.settings.json").write_text((tmp_path / "whole.settings.json").read_text())
    again = ResponseFile(tmp_path / "part.jsonl", weak, prompts, sampling).complete()
    assert [one.response for one in again] == [one.response for one in whole]
    assert [one.kl for one in again] == pytest.approx([one.kl for one in whole], rel=1e-4)
    assert weak.name.endswith("-steered-0.5")
    assert json.loads(lines[0])["policy"] == weak.name
    with pytest.raises(UserError, match=r"policy.strength: 0.5, now 2.0"):
        ResponseFile(tmp_path / "whole.jsonl", strong, prompts, sampling)


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_a_strength_is_a_number_from_0_on(trained, strength):
    with pytest.raises(UserError, match="steer: a strength is a number from 0 on, not"):
        open_steered([trained("full")], [strength])


def test_only_a_checkpoint_knows_the_initial_policy(llama_dir):
    with pytest.raises(UserError, match="steering begins at the initial policy, which only a checkpoint knows"):
        open_steered([llama_dir], [1.0])
