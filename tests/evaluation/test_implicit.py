import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr.embedded import TINY, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation.implicit import Implicit
from lit_tr.evaluation.policies import Loading
from lit_tr.rewards import Candidate

CPU = Loading(dtype="float32", device="cpu")
SOME = [
    Candidate("Describe a cold river.", " The river is icy."),
    Candidate("Write about a hot ship.", " It is warm. Hot."),
]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def log_prob(folder, prompt, response):
    """Log-prob of the response and its end, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    head = tokenizer(prompt, add_special_tokens=False).input_ids
    ids = torch.tensor([*tokenizer(prompt + response, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
    with torch.no_grad():
        found = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return found[len(head) - 1 :].sum().item()


def expected(llama_dir, one, beta=0.1):
    ours, theirs = (log_prob(folder, one.prompt, one.response) for folder in (resolve(TINY), llama_dir))
    return beta * (ours - theirs)


def test_it_is_beta_times_the_log_ratio(llama_dir):
    found = Implicit(TINY, llama_dir, loading=CPU).score(SOME)
    assert found == pytest.approx([expected(llama_dir, one) for one in SOME], abs=1e-4)


@pytest.mark.parametrize("reference", [None, TINY])
def test_without_another_policy_it_is_the_mean_log_prob_of_a_token(reference):
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    of_tokens = [
        log_prob(resolve(TINY), one.prompt, one.response) / (len(tokenizer(one.response).input_ids) + 1) for one in SOME
    ]
    assert Implicit(TINY, reference, loading=CPU).score(SOME) == pytest.approx(of_tokens, abs=1e-5)


def test_text_becomes_a_chat_where_there_is_a_template(llama_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    tokenizer.chat_template = TEMPLATE
    for name, path in (("ours", resolve(TINY)), ("theirs", llama_dir)):
        AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    folders = str(tmp_path / "ours"), str(tmp_path / "theirs")
    chats = [Candidate([{"role": "user", "content": one.prompt}], one.response) for one in SOME]
    as_chat = Implicit(*folders, loading=CPU).score(SOME)
    assert as_chat == pytest.approx(Implicit(*folders, loading=CPU).score(chats), abs=1e-5)
    as_text = Implicit(*folders, chat=False, loading=CPU).score(SOME)
    assert as_text == pytest.approx([expected(llama_dir, one) for one in SOME], abs=1e-4)


def test_what_cannot_be_scored_has_no_score(llama_dir):
    strange = [SOME[0], Candidate("", " The river is icy."), Candidate("Describe a cold river.", " icy" * 999)]
    scorer = Implicit(TINY, llama_dir, loading=CPU)
    assert [math.isnan(one) for one in scorer.score(strange)] == [False, True, True]
    assert all(map(math.isnan, scorer.score(strange[1:])))


def test_different_vocabularies_are_refused(llama_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    tokenizer.add_tokens(["river-like"])
    AutoModelForCausalLM.from_pretrained(llama_dir).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="different vocabularies"):
        Implicit(llama_dir, str(tmp_path), loading=CPU).score(SOME)
