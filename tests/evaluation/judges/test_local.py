import math
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr.embedded import TINY, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Asker, Question
from lit_tr.evaluation.judges import LLMJudge, Pair
from lit_tr.evaluation.judges.local import LIKELIEST, LocalModel, by_length
from lit_tr.policy import LoRA, PretrainedPolicy

TEXTS = ["Describe a cold river.", "Tell me about a loud market, and about an old ship.", "Write."]
EXACT = "float32"


@pytest.fixture(scope="module")
def tiny():
    return AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=EXACT).eval(), AutoTokenizer.from_pretrained(
        resolve(TINY)
    )


def questions(**more):
    return [Question((("user", text),), **more) for text in TEXTS]


def laid_out(tokenizer, text):
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return tokenizer(text + "\n\n", return_tensors="pt").input_ids


@pytest.mark.parametrize("size", [1, 3])
def test_first_tokens_are_those_of_each_question_alone(tiny, size):
    model, tokenizer = tiny
    answers = Asker(LocalModel(TINY, device="cpu", dtype=EXACT, batch_size=size)).ask(questions())
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = laid_out(tokenizer, text)
        with torch.no_grad():
            values, tokens = model(ids).logits[0, -1].log_softmax(-1).topk(5)
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            assert answer.first[tokenizer.decode([token])] == pytest.approx(value, abs=1e-4)
        assert len(answer.first) <= LIKELIEST
        assert (answer.prompt_tokens, answer.tokens) == (ids.shape[1], 1)


def test_texts_are_the_likeliest(tiny):
    model, tokenizer = tiny
    answers = Asker(LocalModel(TINY, device="cpu", dtype=EXACT, batch_size=3)).ask(questions(max_tokens=8))
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = laid_out(tokenizer, text)
        made = model.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer.first is None


def test_draws_are_seeded_and_leave_the_random_state():
    state = torch.get_rng_state()
    hot = [Question((("user", TEXTS[0]),), max_tokens=12, temperature=1.5, draw=draw) for draw in (0, 1)]
    first, second = Asker(LocalModel(TINY, device="cpu", dtype=EXACT)).ask(hot)
    assert [one.text for one in Asker(LocalModel(TINY, device="cpu", dtype=EXACT)).ask(hot)] == [
        first.text,
        second.text,
    ]
    assert first.text != second.text
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_a_judge_in_both_orders():
    [verdict] = LLMJudge(Asker(LocalModel(TINY, device="cpu", dtype=EXACT))).compare(
        [Pair("Describe a river.", "It is icy.", "No.")]
    )
    assert verdict.preference is None or math.isfinite(verdict.preference)


def test_new_weights_have_another_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0")
    before = LocalModel(str(tmp_path)).name
    assert before == LocalModel(str(tmp_path)).name
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert before != LocalModel(str(tmp_path)).name
    assert LocalModel("owner/model").name == "owner/model"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        Asker(LocalModel(str(tmp_path))).ask(questions())


def test_batches_are_by_length_the_longest_first():
    assert [*by_length(["a", "bbb", "cc"], [1, 3, 2], 2)] == [["bbb", "cc"], ["a"]]


def test_an_adapter_is_a_model_too(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    [answer] = Asker(LocalModel(str(tmp_path / "adapter"), device="cpu", dtype=EXACT)).ask(questions()[:1])
    with torch.no_grad():
        logits = adapted.eval()(laid_out(AutoTokenizer.from_pretrained(resolve(TINY)), TEXTS[0])).logits[0, -1]
    assert max(answer.first.values()) == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)


def test_the_base_of_an_adapter_may_be_in_4_bits(tmp_path):
    policy = PretrainedPolicy(TINY, quantize="nf4", lora=LoRA(r=4)).load()
    torch.nn.init.normal_(next(param for name, param in policy.named_parameters() if "lora_B" in name))
    policy.save_pretrained(tmp_path / "adapter")
    judge = LocalModel(str(tmp_path / "adapter"), device="cpu", dtype=EXACT, quantize="nf4")
    [answer] = Asker(judge).ask(questions()[:1])
    with torch.no_grad():
        ids = laid_out(judge.tokenizer, TEXTS[0])
        values, tokens = policy.eval()(ids).logits[0, -1].log_softmax(-1).topk(5)
    for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
        assert answer.first[judge.tokenizer.decode([token])] == pytest.approx(value, abs=1e-4)
    whole = LocalModel(str(tmp_path / "adapter"), device="cpu", dtype=EXACT)
    assert whole.name != judge.name  # or the cache would take the answers of one for those of the other
    [other] = Asker(whole).ask(questions()[:1])
    assert other.first != pytest.approx(answer.first, abs=1e-4)


def test_a_question_without_room_has_an_empty_answer():
    long = Question((("user", "river " * 5000),), max_tokens=8)
    short = Question((("user", TEXTS[0]),), max_tokens=8)
    empty, said = Asker(LocalModel(TINY, device="cpu")).ask([long, short])
    assert (empty.text, empty.tokens) == ("", 0)
    assert empty.prompt_tokens > 1000
    assert said.text
