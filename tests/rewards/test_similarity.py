import math
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.rewards.similarity import Pooled, TfIdf, similarities

PAIRS = [("a cold river", "The river is cold."), ("a cold river", "HOT"), ("a hot ship", "a hot hot river")]


def tf_idf(pairs):
    """Smooth idf, `log((1 + n) / (1 + df)) + 1`, times counts, of length 1; by hand."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    split = {text: text.lower().replace(".", "").split() for text in texts}
    words = sorted({word for those in split.values() for word in those})
    idf = [math.log((1 + len(texts)) / (1 + sum(word in those for those in split.values()))) + 1 for word in words]
    vectors = {text: np.array([those.count(word) for word in words]) * idf for text, those in split.items()}
    return [vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]) for a, b in pairs]


def test_tf_idf_is_that_of_the_texts_that_are_given():
    for cosine in (False, True):
        assert similarities(TfIdf(), PAIRS, cosine) == pytest.approx(tf_idf(PAIRS))
    assert similarities(TfIdf(), [], True) == []


def test_fitted_it_is_that_of_a_sample():
    first, second = TfIdf(), TfIdf()
    first.fit([text for pair in PAIRS for text in pair])
    second.restore(first.state())
    for encoder in (first, second):
        assert similarities(encoder, PAIRS[2:], True) == pytest.approx(tf_idf(PAIRS)[2:])
    assert similarities(first, [("words", "unknown")], True) == [0.0]
    assert TfIdf().state() is None


def pooled(folder, text):
    model = AutoModel.from_pretrained(folder, dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_embeddings_are_the_means_of_the_last_states(llama_dir, batch_size):
    encoder = Pooled(llama_dir, "cpu", batch_size)
    vectors = [[pooled(llama_dir, text) for text in pair] for pair in PAIRS]
    dots = [a @ b for a, b in vectors]
    assert similarities(encoder, PAIRS, cosine=False) == pytest.approx(dots, rel=1e-4)
    sizes = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in vectors]
    assert similarities(encoder, PAIRS, cosine=True) == pytest.approx(np.divide(dots, sizes), rel=1e-4)


def test_an_empty_text_is_near_to_nothing():
    for encoder in (Pooled(TINY, "cpu"), TfIdf()):
        for cosine in (False, True):
            assert similarities(encoder, [("a river", ""), ("a river", "a river")], cosine)[0] == 0.0


def test_of_a_text_that_is_too_long_the_end_counts():
    encoder = Pooled(TINY, "cpu")
    longest = encoder.model.config.max_position_embeddings
    words = ["river "] * longest + ["icy "] * longest
    end = encoder.tokenizer("".join(words))["input_ids"][-longest:]
    assert len(end) == longest
    [long] = encoder(["".join(words)])
    assert long == pytest.approx(encoder._pooled([end])[0], abs=1e-5)


def test_statistics_of_another_encoder_are_refused():
    with pytest.raises(UserError, match="encoder a: the statistics are of b"):
        Pooled("a").restore(Pooled("b").state())


def test_what_cannot_be_compared_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no words in prompts and responses"):
        similarities(TfIdf(), [("...", "")], True)
    with pytest.raises(UserError, match=f"{tmp_path}: no tokenizer can be loaded from here"):
        similarities(Pooled(str(tmp_path)), PAIRS, True)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(UserError, match=r"needs scikit-learn: pip install 'lit-tr\[evaluation\]'; or give encoder"):
        TfIdf()
