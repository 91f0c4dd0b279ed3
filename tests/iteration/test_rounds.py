import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr.commands.iterate import _cells
from lit_tr.data import Objects
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.evaluation.prompts import source_of
from lit_tr.evaluation.responses import read
from lit_tr.evaluation.sampling import Sampling
from lit_tr.iteration import AllPairs, MaxMin, RankAgreement, Rounds, Serve, Stop
from lit_tr.iteration.rounds import Parts
from lit_tr.iteration.scores import Scoring
from lit_tr.iteration.training import Chain
from lit_tr.policy import PretrainedPolicy
from lit_tr.rewards import Ensemble, FunctionScorer, as_scorer

PROMPTS = [row["prompt"] for _, row in SyntheticPairs(size=12, seed=3).rows()]
FIT = {"model": {"policy": "BASE"}}
NOWHERE = "http://127.0.0.1:9/v1"


def letters(prompt, response):
    """A reward with few ties."""
    return float(sum(map(ord, response)) % 97)


def length(prompt, response):
    return float(len(response))


class Writer:
    """Trains nothing: writes the policy of the configuration with other weights."""

    def __init__(self):
        self.configs = []

    def __call__(self, folder, config):
        self.configs.append((folder.name, config))
        policy = config["model"]["policy"]
        path = policy if isinstance(policy, str) else policy["path"]
        model = AutoModelForCausalLM.from_pretrained(path)
        torch.manual_seed(len(folder.name) + int(folder.name[-1]))
        with torch.no_grad():
            for param in model.parameters():
                param += 0.02 * torch.randn_like(param)
        model.save_pretrained(folder / "policy")
        AutoTokenizer.from_pretrained(path).save_pretrained(folder / "policy")


@pytest.fixture
def rounds(tmp_path, llama_dir):
    """Return rounds in a folder, and what they do and say."""

    def made(name="out", parts=None, rewards=None, others=None, **options):
        writer, said, watched = Writer(), [], []

        @contextmanager
        def watch(label, total, done):
            watched.append((label, total, done))
            yield lambda more: None

        def default(names):
            return Parts(
                Scoring(FunctionScorer(letters)), MaxMin(), None, Scoring(FunctionScorer(length)), others or {}, FIT
            )

        given = {
            "chain": Chain(PretrainedPolicy(llama_dir), tmp_path / name),
            "parts": parts or default,
            "rewards": rewards or {"reward": "letters", "truth": "length"},
            "sampling": Sampling(samples=3, max_new_tokens=6),
            "prompts": 5,
            "source": Objects([{"prompt": one} for one in PROMPTS]),
            "held_out": source_of(SyntheticPairs(size=6, held_out=True)),
            "evaluated": 4,
            "train": writer,
            "say": said.append,
            "watch": watch,
        }
        found = Rounds(**given | options)
        found.chain.round(0)
        return found, writer, said, watched

    return made


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def base(monkeypatch, llama_dir):
    monkeypatch.setitem(FIT["model"], "policy", llama_dir)


@pytest.mark.usefixtures("base")
def test_a_round_is_a_folder_and_the_next_one_begins_with_its_policy(rounds, tmp_path, llama_dir):
    made, writer, said, _ = rounds(others={"{initial}": llama_dir})
    done = made.run(2)
    out = tmp_path / "out"
    assert [one["round"] for one in done] == [0, 1, 2]
    assert [json.loads((out / f"round_{i}/round.json").read_text()) for i in range(3)] == done
    prompts = [[one["prompt"] for one in lines(out / f"round_{i}/prompts.jsonl")] for i in (1, 2)]
    assert prompts == [PROMPTS[:5], PROMPTS[5:10]]
    for i in (1, 2):
        candidates = [read(out / f"round_{i}/candidates/{j}.jsonl") for j in (0, 1)]
        assert [{one.policy for one in some} for some in candidates] == [{f"round_{i - 1}"}, {"other: {initial}"}]
        assert [len(some) for some in candidates] == [15, 15]
        scored = read(out / f"round_{i}/scores.jsonl")
        ids = range((i - 1) * 5, i * 5)
        assert {one.key for one in scored} == {(str(id_), sample) for id_ in ids for sample in range(6)}
        assert all(one.score == letters(one.prompt, one.response) for one in scored)
        pairs = lines(out / f"round_{i}/pairs.jsonl")
        assert len(pairs) == done[i]["pairs"]
        for one in pairs:
            those = [row.score for row in scored if row.id == one["id"]]
            assert (one["score_chosen"], one["score_rejected"]) == (max(those), min(those))
    assert [name for name, _ in writer.configs] == ["round_1", "round_2"]
    assert writer.configs[1][1]["model"]["policy"] == {"path": str((out / "round_1/policy").absolute())}
    rows = writer.configs[1][1]["data"]["train"]["init_args"]
    assert rows["path"] == str((out / "round_2/pairs.jsonl").absolute())
    assert said[0].startswith(f"round 1: {done[1]['pairs']} pairs of 5 prompts")


@pytest.mark.usefixtures("base")
def test_figures_by_hand(rounds, tmp_path):
    made, *_ = rounds()
    done = made.run(2)
    out = tmp_path / "out"
    held_out = [read(out / f"round_{i}/held_out.jsonl") for i in range(3)]
    assert {one.kl for one in held_out[0]} == {0.0}
    for i, responses in enumerate(held_out):
        assert {one.policy for one in responses} == {f"round_{i}"}
        assert done[i]["kl"] == pytest.approx(fmean(one.kl for one in responses))
        assert done[i]["length"] == fmean(one.tokens for one in responses)
    for name, reward in (("reward", letters), ("truth", length)):
        scores = [{one.id: reward(one.prompt, one.response) for one in responses} for responses in held_out]
        for i, of_round in enumerate(scores):
            assert done[i][name] == pytest.approx(fmean(of_round.values()))
        for key, before in ((f"{name}_win_rate", 1), (f"{name}_initial_win_rate", 0)):
            wins = [(scores[2][id_] > other) + 0.5 * (scores[2][id_] == other) for id_, other in scores[before].items()]
            assert done[2][key] == fmean(wins)
    assert "reward_win_rate" not in done[0]
    rows = [row for _, row in SyntheticPairs(size=6, held_out=True).rows()][:4]
    margins = [letters("", row["chosen"]) - letters("", row["rejected"]) for row in rows]
    assert {one["agreement"] for one in done} == {fmean((margin > 0) + 0.5 * (margin == 0) for margin in margins)}
    assert not (out / "round_1/held_out.pairs.jsonl").exists()  # a reward that stays the same is asked once
    evaluations = lines(out / "evaluation.jsonl")
    assert [(one["step"], one["label"]) for one in evaluations] == [(0, "initial"), (1, "policy"), (2, "policy")]
    assert [one["score"] for one in evaluations] == [one["truth"] for one in done]
    assert [one["proxy"] for one in evaluations] == [one["reward"] for one in done]
    assert [one.get("win_rate") for one in evaluations] == [one.get("truth_initial_win_rate") for one in done]


@pytest.mark.usefixtures("base")
def test_one_round_and_one_more_are_two_and_a_third_run_does_nothing(rounds, tmp_path):
    first, *_ = rounds("grown")
    first.run(1)
    more, writer, *_ = rounds("grown")
    found = more.run(2)
    assert [name for name, _ in writer.configs] == ["round_2"]
    at_once, *_ = rounds("at_once")
    assert found == at_once.run(2)
    before = files(tmp_path / "grown")
    again, writer, said, watched = rounds("grown")
    assert again.run(2) == found
    assert (writer.configs, said, watched) == ([], [], [])
    assert files(tmp_path / "grown") == before
    assert again.run(1) == found[:2]
    assert len(lines(tmp_path / "grown/evaluation.jsonl")) == 3  # what is done stays


@pytest.mark.usefixtures("base")
def test_one_held_out_prompt_has_no_errors(rounds, tmp_path):
    made, *_ = rounds(evaluated=1)
    done = made.run(1)
    assert "NaN" not in (tmp_path / "out/round_1/round.json").read_text()
    assert "reward_standard_error" not in done[1]
    assert [*_cells(done[1], ["reward"])][2].endswith("±nan")


@pytest.mark.parametrize("count", [7, 3])
def test_prompts_begin_again_behind_the_last(rounds, llama_dir, count):
    made, *_ = rounds(source=Objects([{"prompt": one} for one in PROMPTS[:count]]))
    for number in (1, 2, 3):
        made.chain.round(number).mkdir(parents=True)
        (made.chain.round(number) / "policy").symlink_to(llama_dir)
        expected = [PROMPTS[i % count] for i in range((number - 1) * 5, number * 5)]
        assert [one.shown for one in made._prompts(number, made.parts({}))] == expected[:count]


@pytest.mark.usefixtures("base")
def test_rounds_end_early_and_say_why(rounds):
    made, writer, said, _ = rounds(stop=Stop(kl=1e-9))
    assert len(made.run(3)) == 2
    assert len(writer.configs) == 1
    assert said[-1].startswith("no round 2: the policy is 0.")
    again, writer, said, _ = rounds(stop=Stop(kl=1e-9))
    assert len(again.run(3)) == 2
    assert writer.configs == []


@pytest.mark.usefixtures("base")
def test_a_judge_that_changes_with_the_rounds_compares_with_itself(rounds, tmp_path):
    """Where the reward names the policy, responses of both sides of a win rate are scored by this round's."""

    def parts(names):
        sign = 1 if names["policy"].endswith("round_1/policy") else -1
        reward = FunctionScorer(lambda prompt, response: sign * letters(prompt, response), "self")
        return Parts(Scoring(reward), MaxMin(), None, None, {}, FIT)

    made, *_ = rounds(parts=parts, rewards={"reward": {"path": "{policy}"}, "truth": None})
    done = made.run(2)
    held_out = [read(tmp_path / f"out/round_{i}/held_out.jsonl") for i in range(3)]
    scores = [{one.id: letters(one.prompt, one.response) for one in responses} for responses in held_out]
    for key, before in (("reward_win_rate", 1), ("reward_initial_win_rate", 0)):
        assert done[2][key] == fmean(
            (scores[2][id_] > other) + 0.5 * (scores[2][id_] == other) for id_, other in scores[before].items()
        )
    assert done[1]["reward"] == pytest.approx(-fmean(scores[1].values()))
    assert done[1]["agreement"] == pytest.approx(1 - done[2]["agreement"])
    names = {path.name for path in (tmp_path / "out/round_2").glob("held_out.reward*.jsonl")}
    assert names == {"held_out.reward.jsonl", "held_out.reward.of_0.jsonl", "held_out.reward.of_1.jsonl"}


@pytest.mark.usefixtures("base")
def test_statistics_of_held_out_responses_are_those_of_the_first(rounds, tmp_path):
    def parts(names):
        reward = Ensemble([FunctionScorer(letters), FunctionScorer(length)])
        return Parts(Scoring(reward), AllPairs(), None, None, {}, FIT)

    made, *_ = rounds(parts=parts, rewards={"reward": "ensemble", "truth": None})
    made.run(1)
    out = tmp_path / "out"
    first = json.loads((out / "round_0/held_out.reward.statistics.json").read_text())["statistics"]
    assert not (out / "round_1/held_out.reward.statistics.json").exists()
    for i in (0, 1):
        for one in read(out / f"round_{i}/held_out.reward.jsonl"):
            expected = (letters(one.prompt, one.response) - first[0][0]) / first[0][1]
            assert one.features["letters"] == pytest.approx(expected)


@pytest.mark.usefixtures("base")
def test_scores_of_a_confidence_are_kept(rounds, tmp_path):
    asked = []

    def other(prompt, response):
        asked.append(response)
        return length(prompt, response)

    def parts(names):
        return Parts(Scoring(FunctionScorer(letters)), MaxMin(), RankAgreement(other), None, {}, FIT)

    def fails(folder, config):
        raise UserError("no training")

    options = {"parts": parts, "rewards": {"reward": "letters", "truth": None}}
    made, *_ = rounds(train=fails, **options)
    with pytest.raises(UserError, match="no training"):
        made.run(1)
    assert len(asked) == 15
    assert len(read(tmp_path / "out/round_1/scores.1.jsonl")) == 15
    (tmp_path / "out/round_1/pairs.json").unlink()  # as of a kill before the pairs were whole
    made, *_ = rounds(**options)
    [_, found] = made.run(1)
    assert len(asked) == 15
    assert 0 < found["confidence"] < 1


@pytest.mark.usefixtures("base")
def test_a_training_before_the_first_round_is_what_rounds_begin_with(rounds, tmp_path, llama_dir):
    chain = Chain(PretrainedPolicy(llama_dir), tmp_path / "warm", warmed_up=True)
    warm_up = FIT | {"data": {"train": "own.jsonl"}}
    made, writer, *_ = rounds(chain=chain, warm_up=warm_up)
    done = made.run(1)
    (where, first), (_, second) = writer.configs
    assert (where, first["data"], first["model"]["policy"]) == ("round_0", {"train": "own.jsonl"}, llama_dir)
    assert second["model"]["policy"] == {"path": str((tmp_path / "warm/round_0/policy").absolute())}
    assert done[0]["kl"] == 0
    again, writer, *_ = rounds(chain=chain, warm_up=warm_up)
    assert (again.run(1), writer.configs) == (done, [])


@pytest.mark.usefixtures("base")
def test_candidates_that_make_no_pair_are_one_message_and_stay(rounds, tmp_path):
    def parts(names):
        return Parts(Scoring(as_scorer(lambda prompt, response: 1.0)), MaxMin(), None, None, {}, FIT)

    made, writer, *_ = rounds(parts=parts, rewards={"reward": "same", "truth": None})
    with pytest.raises(UserError, match=r"round 1: no pair can be made of the candidates of 5 prompts \(5 tied\)"):
        made.run(1)
    assert writer.configs == []
    assert len(read(tmp_path / "out/round_1/scores.jsonl")) == 15


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": Objects([])}, "there are no prompts in it"),
        ({"held_out": Objects([])}, "there are no prompts in it"),
        ({"source": Objects([{"prompt": "a"}, {"nothing": 1}])}, "let more be left out by max_bad_rows"),
        ({"sampling": Sampling(max_new_tokens=900)}, "max_new_tokens 900 leaves no room for a prompt"),
        ({"chain": Chain(PretrainedPolicy("no/policy"), Path("nowhere"))}, "no/policy"),
    ],
)
def test_what_cannot_be_begun_is_refused_before_anything_is_written(rounds, tmp_path, options, said):
    made, *_ = rounds(**options)
    with pytest.raises(UserError, match=said):
        made.check()
    assert not (tmp_path / "out").exists()


def test_rows_without_a_prompt_can_be_left_out(rounds):
    made, *_ = rounds(source=Objects([{"prompt": "a b"}, {"nothing": 1}, {"prompt": "c d"}]))
    replace(made, max_bad_rows=1).check()


def test_prompts_that_a_server_would_refuse_are_left_out_and_counted(rounds):
    def parts(names):
        return Parts(Scoring(FunctionScorer(letters)), MaxMin(), None, None, {}, FIT, serve=Serve("false", NOWHERE))

    long = "river " * 300
    found, _, said, _ = rounds("some", parts, source=Objects([{"prompt": one} for one in (long, *PROMPTS)]))
    with pytest.raises(UserError, match="'false' ended with exit code 1"):
        found.run(1)
    assert said == ["round 1: 1 of 5 prompts are too long for the model and left out"]
    kept = (found.chain.round(1) / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in kept] == PROMPTS[:4]
    found, _, _, _ = rounds("none", parts, source=Objects([{"prompt": long}]))
    with pytest.raises(UserError, match="1 of 1 prompts are too long for the model and left out: give other prompts"):
        found.run(1)
