"""What pictures of training show."""

import pytest

from lit_tr.evaluation.page.found import Run
from lit_tr.evaluation.page.groups import grouped
from lit_tr.evaluation.page.pictures import Styles
from lit_tr.evaluation.page.training import training
from tests.evaluation.page.folders import config


def test_updates_are_marked_at_their_own_steps_on_the_curve(tmp_path):
    rows = [{"step": "0", "train/loss": "0.7"}, {"step": "10", "train/loss": "0.2"}]
    rows += [{"step": "5", "reference/alpha": "0.6"}, {"step": "12", "reference/alpha": "0.6"}]
    groups = grouped([Run(tmp_path / "a", config(), rows), Run(tmp_path / "b", config(update=None), rows[:2])])
    [picture] = training(groups, Styles.of(groups))
    [marks] = [
        line for line in picture.figure.axes[0].lines if line.get_linestyle() == "None" and len(line.get_xdata())
    ]
    assert [*marks.get_xdata()] == [6, 13]
    fall = 0.5 / 1.8  # of the mean, up to step 10
    assert [*marks.get_ydata()] == pytest.approx([0.7 - 0.6 * fall, 0.7 - fall])
