"""One HTML page about runs: quality and distance, win rates, rewards, curves, and a reader of responses."""

from lit_tr.evaluation.page.found import Comparison, Found, Run, Scored, find
from lit_tr.evaluation.page.scores import judge_of, with_scores
from lit_tr.evaluation.page.write import write_page

__all__ = ["Comparison", "Found", "Run", "Scored", "find", "judge_of", "with_scores", "write_page"]
