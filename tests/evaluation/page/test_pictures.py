"""The styles of groups."""

from lit_tr.evaluation.page.groups import Group
from lit_tr.evaluation.page.pictures import KIND_STYLES, OTHERS, Styles


def test_a_kind_of_update_has_its_colour_whatever_else_is_there():
    groups = [
        Group("TR-DPO, soft (alpha 0.3)", "beta 0.1", [], "soft"),
        Group("TR-DPO, soft (alpha 0.6)", "beta 0.1", [], "soft"),
        Group("TR-DPO, cosine", "beta 0.1", [], "cosine"),
        Group("SimPO", "", []),
        Group("DPO, frozen reference", "beta 0.1", [], "frozen"),
        Group("DPO, frozen reference", "beta 1", [], "frozen"),
    ]
    styles = Styles.of(groups)
    colors = [styles(group)["color"] for group in groups]
    assert colors[0] == KIND_STYLES["soft"]["color"]
    assert colors[1:4] == [style["color"] for style in OTHERS[:3]]
    assert colors[4] == colors[5] == KIND_STYLES["frozen"]["color"]
    assert len({styles(group)["linestyle"] for group in groups}) == 3
