import json
from math import nan

from lit_tr.evaluation.evaluations import add, read


def test_lines_are_sorted_by_step_and_the_later_of_two_stands(tmp_path):
    file = tmp_path / "run" / "evaluation.jsonl"
    assert read(file) == []
    add(file, [{"step": 8, "label": "policy", "kl": 1.0}, {"step": 0, "label": "initial", "kl": 0.0}])
    add(file, [{"step": 8, "label": "reference", "kl": 0.5}, {"step": 8, "label": "policy", "kl": 2.0, "score": nan}])
    assert read(file) == [
        {"step": 0, "label": "initial", "kl": 0.0},
        {"step": 8, "label": "policy", "kl": 2.0},
        {"step": 8, "label": "reference", "kl": 0.5},
    ]
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 8, 8]
    assert [path.name for path in file.parent.iterdir()] == ["evaluation.jsonl"]
