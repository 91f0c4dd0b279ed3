import itertools
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from transformers import AutoModel, AutoTokenizer

from lit_tr.data import DistributionMatching, Mixture, PreferenceDataModule, Rows, Source
from lit_tr.data.cache import CacheBuilder
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import matching
from lit_tr.errors import UserError
from tests.data.rows.stops import assert_goes_on


def row(prompt, label, number=0):
    return {"prompt": prompt, "completion": f" answer {number}", "label": label}


def rows_of(counts):
    """Rows by prompt: how many desirable and how many undesirable ones."""
    return [
        row(prompt, label, number)
        for prompt, both in counts.items()
        for label, count in zip((True, False), both, strict=True)
        for number in range(count)
    ]


COUNTS = {"write a poem": (30, 10), "fix the code": (6, 30), "prove it": (2, 0)}
CHAT = [{"role": "system", "content": "be short"}, {"role": "user", "content": "write a poem"}]


def examples(source):
    return [one for record in source.records() for one in record.conversion(record.row)]


def weights(source):
    """The weight of each undesirable example, by its prompt."""
    return {one.prompt: one.labels["weight"][1] for one in examples(source) if one.rejected is not None}


def by_hand(vectors, counts):
    """The density ratio at each prompt, of a logistic regression that is solved here: scikit-learn's has C 1."""
    up, down = (np.array([both[kind] for both in counts.values()], dtype=float) for kind in (0, 1))
    total = up.sum() + down.sum()
    up, down = up * total / (2 * up.sum()), down * total / (2 * down.sum())

    def loss(theta):
        logits = vectors @ theta[1:] + theta[0]
        return theta[1:] @ theta[1:] / 2 + up @ np.logaddexp(0, -logits) + down @ np.logaddexp(0, logits)

    theta = minimize(loss, np.zeros(vectors.shape[1] + 1), tol=1e-12).x
    return dict(zip(counts, np.exp(vectors @ theta[1:] + theta[0]), strict=True))


def test_weights_are_density_ratios_of_a_logistic_regression_on_tf_idf():
    """TF-IDF by hand: no word is in two prompts; idf is log((1 + n) / (1 + rows with the word)) + 1."""
    total = sum(map(sum, COUNTS.values()))
    words = [word for prompt in COUNTS for word in prompt.split() if len(word) > 1]
    idf = {word: np.log((1 + total) / (1 + sum(c for p, both in COUNTS.items() for c in both if word in p.split()))) + 1
           for word in words}  # fmt: skip
    vectors = np.array([[idf[word] * (word in prompt.split()) for word in words] for prompt in COUNTS])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = by_hand(vectors, COUNTS)
    found = weights(DistributionMatching(rows_of(COUNTS), ratios=(0.01, 100.0)))
    assert set(found) == {"write a poem", "fix the code"}
    assert found == {prompt: pytest.approx(expected[prompt], rel=1e-3) for prompt in found}
    assert found["fix the code"] < 0.4 < 2 < found["write a poem"]
    clamped = weights(DistributionMatching(rows_of(COUNTS), ratios=(0.5, 1.5)))
    assert clamped == {"write a poem": 1.5, "fix the code": 0.5}


def test_embeddings_are_normalized_means_of_an_encoders_last_hidden_states(llama_dir):
    tokenizer, model = AutoTokenizer.from_pretrained(llama_dir), AutoModel.from_pretrained(llama_dir)
    vectors = []
    for prompt in COUNTS:  # one by one, without padding
        with torch.no_grad():
            hidden = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0].double().mean(dim=0)
        vectors.append((hidden / hidden.norm()).numpy())
    expected = by_hand(np.array(vectors), COUNTS)
    found = weights(DistributionMatching(rows_of(COUNTS), encoder=llama_dir, ratios=(0.01, 100.0)))
    assert found == {prompt: pytest.approx(expected[prompt], rel=5e-3) for prompt in found}


def test_desirable_rows_weigh_1_and_pairs_are_of_both_kinds():
    pairs = [{"prompt": prompt, "chosen": " yes", "rejected": " no"} for prompt in ("write a poem", "prove it")]
    found = examples(DistributionMatching([*pairs, *rows_of({"write a poem": (4, 0), "prove it": (0, 4)})]))
    assert [one.labels for one in found if one.rejected is None] == [{}] * 4
    assert {one.labels["weight"][0] for one in found if one.rejected is not None} == {1.0}
    by_prompt = {one.prompt: one.labels["weight"][1] for one in found if one.rejected is not None}
    assert by_prompt["prove it"] < 1 < by_prompt["write a poem"]


def test_chats_go_by_their_messages():
    chats = [{**one, "prompt": CHAT} for one in rows_of({"": (3, 1)})]
    found = examples(DistributionMatching([*chats, *rows_of({"fix the code": (1, 3)})]))
    assert min(one.labels["weight"][1] for one in found if one.rejected and one.prompt == CHAT) > 1


def test_the_sample_is_drawn_with_its_seed_from_all_rows():
    many = rows_of({f"word{number % 7} of {number}": (1, 1) for number in range(300)})
    one, again, other = (DistributionMatching(many, sample=20, seed=seed) for seed in (0, 0, 1))
    assert weights(one) == weights(again) != weights(other)
    desirable, undesirable = one._sampled()
    assert len(set(desirable)) == len(set(undesirable)) == 20
    assert max(int(text.split()[-1]) for text in desirable) > 200


def test_bad_rows_are_left_to_who_tokenizes(write_rows):
    path = write_rows([*rows_of(COUNTS), {"prompt": "no response", "label": True}])
    assert DistributionMatching(Rows(path))._weights == DistributionMatching(rows_of(COUNTS))._weights


@pytest.mark.parametrize("order", [None, 2])
def test_it_goes_on_from_any_state(write_rows, order):
    source = DistributionMatching(Rows(write_rows(rows_of(COUNTS))))
    found = assert_goes_on(source, [(False, 3), (True, 2), (False, 5)], order, lambda one: one.location, True)
    assert len(found) == 78


def test_a_token_cache_holds_the_weights_and_is_found_again(tokenizer, tmp_path):
    """300 rows more than one process takes, so that others read on with the weights of the first one."""
    counts = {**COUNTS, **{f"task {number}": (1, 1) for number in range(150)}}
    build = CacheBuilder(RowProcessor(tokenizer), tmp_path, processes=2)
    first = DistributionMatching(rows_of(counts))
    made = build(first, "train")
    expected = [(1.0, w) for one in examples(first) if one.rejected for w in [one.labels["weight"][1]]]
    assert [one.labels["weight"] for one in made[:] if one.rejected] == expected
    again = DistributionMatching(rows_of(counts))
    assert build(again, "train")[:] == made[:]
    assert "_weights" not in vars(again)  # nobody computed them
    keys = [
        DistributionMatching(rows_of(counts), **options).fingerprint()
        for options in ({}, {"seed": 1}, {"sample": 5}, {"ratios": (0.1, 10.0)}, {"encoder": "e"})
    ]
    assert len({*keys, DistributionMatching(rows_of(COUNTS)).fingerprint()}) == 6
    assert keys[0] == first.fingerprint()
    assert DistributionMatching(lambda: iter(rows_of(COUNTS))).fingerprint() is None


def test_a_batch_has_the_weights(llama_dir):
    data = PreferenceDataModule(llama_dir, DistributionMatching(rows_of(COUNTS)), batch_size=78, shuffle=False)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    chosen, rejected, _ = batch.split_labels()
    assert chosen["weight"].isnan().all()  # BCO takes 1
    assert len(set(rejected["weight"].tolist())) == 2


class Changing(Source):
    """Other prompts at each reading."""

    readings = itertools.count()

    def rows(self):
        reading = next(self.readings)
        yield "0", row("same", True)
        yield "1", row(f"prompt {reading}", False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistributionMatching([row("a", True)], sample=0), "sample 0 must be at least 1"),
        (lambda: DistributionMatching([row("a", True)], ratios=(2.0, 1.0)), "the first one not higher"),
        (lambda: weights(DistributionMatching([row("write", True)])), "no undesirable rows"),
        (lambda: weights(DistributionMatching([row("write", False)])), "no desirable rows"),
        (lambda: weights(DistributionMatching([row("?", True), row("!", False)])), "name an encoder"),
        (lambda: weights(DistributionMatching(rows_of(COUNTS), encoder="nowhere")), "nowhere: no encoder"),
        (lambda: weights(DistributionMatching(Changing())), "the same each time"),
        (lambda: PreferenceDataModule("t", DistributionMatching(rows_of(COUNTS)), buffer=8), "leave out buffer"),
        (
            lambda: PreferenceDataModule("t", Mixture([rows_of(COUNTS), DistributionMatching([])]), buffer=8),
            "leave out buffer",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_scikit_learn_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"pip install 'lit-tr\[matching\]'"):
        weights(DistributionMatching(rows_of(COUNTS)))


def test_long_sets_are_embedded_in_parts(llama_dir, monkeypatch):
    whole = weights(DistributionMatching(rows_of(COUNTS), encoder=llama_dir))
    monkeypatch.setattr(matching, "AT_A_TIME", 7)
    monkeypatch.setattr(matching, "BLOCK", 11)
    found = weights(DistributionMatching(rows_of(COUNTS), encoder=llama_dir))
    assert found == {prompt: pytest.approx(weight, rel=1e-4) for prompt, weight in whole.items()}


def test_an_encoder_of_a_hub_that_does_not_answer_is_one_message(no_hub):
    with pytest.raises(UserError, match=f"nobody/encoder: no encoder .* {no_hub} does not answer"):
        weights(DistributionMatching(rows_of(COUNTS), encoder="nobody/encoder"))
