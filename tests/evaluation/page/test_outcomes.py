"""What pictures of outcomes show."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg

from lit_tr.evaluation.page.outcomes import Steered, frontier
from lit_tr.evaluation.page.pictures import Styles
from lit_tr.evaluation.seeds import Mean


def test_the_strengths_of_lines_that_lie_on_each_other_do_not():
    path = [Steered(one, Mean(one, one, one), Mean(one, one, one)) for one in (0.0, 1.0, 2.0)]
    figure = frontier("score", {}, [], Styles({}, []), [], dict.fromkeys("abc", path)).figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"] * 3
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
