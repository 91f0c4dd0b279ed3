import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from lit_tr.embedded import TINY, resolve
from lit_tr.errors import UserError
from lit_tr.rewards import Candidate, Relevance
from lit_tr.rewards.pooling import MODES, Pooling, pooling_of
from lit_tr.rewards.similarity import Pooled

TEXTS = ["a cold river", "The river is cold and icy, and it is long.", "hot"]
OLD, NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules"
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve(TINY))  # that of all tests may have tokens that this encoder has not


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizer):
    """Folder of a random BERT in float32, with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=512, max_position_embeddings=64, initializer_range=0.5, pad_token_id=None, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(bert, tmp_path):
    """Write a copy of the folder with modules, as sentence-transformers does."""

    def written(pooling, *more, types=(f"{OLD}.Transformer", f"{OLD}.Pooling")):
        for file in bert.iterdir():
            (tmp_path / file.name).symlink_to(file)
        folders = {"Transformer": "", "Pooling": "1_Pooling"}
        names = [*types, *more]
        rows = [
            {"idx": i, "name": str(i), "path": folders.get(name.rpartition(".")[2], f"{i}_More"), "type": name}
            for i, name in enumerate(names)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(rows))
        if pooling is not None:
            (tmp_path / "1_Pooling").mkdir()
            (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
        return str(tmp_path)

    return written


def old(*on):
    return {"word_embedding_dimension": 16, "include_prompt": True} | {flag: name in on for name, flag in FLAGS.items()}


def by_hand(folder, tokenizer, mode):
    """Pool the hidden states of each text alone, without padding."""
    model, found = BertModel.from_pretrained(folder).eval(), []
    for text in TEXTS:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].double().numpy()
        of = {"cls": states[0], "max": states.max(0), "mean": states.sum(0) / len(states), "lasttoken": states[-1]}
        found.append(of[mode])
    return np.array(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_way_is_read_and_computed(write, bert, tokenizer, mode, batch_size):
    folder = write(old(mode))
    assert pooling_of(folder) == Pooling(mode)
    vectors = Pooled(folder, "cpu", batch_size)(TEXTS)
    assert vectors == pytest.approx(by_hand(bert, tokenizer, mode), rel=1e-4, abs=1e-5)


def test_vectors_are_normalized_where_the_files_say_so(write, bert, tokenizer):
    types = (f"{NEW}.transformer.Transformer", f"{NEW}.pooling.Pooling")
    folder = write({"embedding_dimension": 16, "pooling_mode": "cls"}, f"{NEW}.normalize.Normalize", types=types)
    assert pooling_of(folder) == Pooling("cls", normalized=True)
    expected = by_hand(bert, tokenizer, "cls")
    expected /= np.sqrt((expected**2).sum(1, keepdims=True))
    assert Pooled(folder, "cpu")(TEXTS) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_it_is_the_mean_where_nothing_is_said(write, bert, tokenizer):
    assert pooling_of(str(bert)) == Pooling("mean")
    assert Pooled(str(bert), "cpu")(TEXTS) == pytest.approx(by_hand(bert, tokenizer, "mean"), rel=1e-4, abs=1e-5)
    assert pooling_of(write({"word_embedding_dimension": 16})) == Pooling("mean")


@pytest.mark.parametrize(
    ("pooling", "more", "said"),
    [
        (old("mean"), [f"{OLD}.Dense"], "its modules are Transformer, Pooling, Dense. Give another one"),
        (old("mean"), [f"{OLD}.Normalize", "mine.Whitening"], "Transformer, Pooling, Normalize, Whitening"),
        (old("mean_sqrt_len"), [], "its pooling is mean_sqrt_len, and one of cls, max, mean, lasttoken is computed"),
        (old("weightedmean"), [], "its pooling is weightedmean"),
        (old("cls", "mean"), [], "its pooling is cls and mean"),
        ({"pooling_mode": ["max", "mean"]}, [], "its pooling is max and mean"),
    ],
)
def test_what_is_not_computed_is_refused(write, pooling, more, said):
    folder = write(pooling, *more)
    with pytest.raises(UserError, match=rf"^{folder}: .*{said}"):
        Pooled(folder, "cpu")(TEXTS)


def test_files_that_cannot_be_read_are_named(write, tmp_path):
    folder = write(None)
    with pytest.raises(UserError, match=rf"^{folder}: there is no 1_Pooling/config.json"):
        pooling_of(folder)
    for text, said in (
        ("[", "modules.json cannot be read"),
        ('{"a": 1}', "modules cannot be read"),
        ("[]", "are none"),
    ):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(UserError, match=rf"^{folder}: .*{said}"):
            pooling_of(folder)


def test_a_reward_takes_it(write):
    folder, asked = write(old("lasttoken")), "a cold river"
    [score] = Relevance("prompt", folder, "cpu").score([Candidate(asked, "hot")])
    vectors = Pooled(folder, "cpu")([asked, "hot"])
    assert score == pytest.approx(vectors[0] @ vectors[1] / math.prod(np.linalg.norm(vectors, axis=1)))
