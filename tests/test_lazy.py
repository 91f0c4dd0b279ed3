import pytest

import lit_tr
from lit_tr import commands, errors, policy, reference
from lit_tr.lazy import lazy


@pytest.mark.parametrize("package", [lit_tr, commands, policy, reference], ids=lambda package: package.__name__)
def test_each_public_name_is_found_and_listed(package):
    assert {*dir(package)} == {*package.__all__}
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_a_name_comes_from_its_module_and_modules_are_attributes():
    get, names = lazy("lit_tr", {"errors": ["UserError"]})
    assert get("UserError") is errors.UserError
    assert get("errors") is errors
    assert names() == ["UserError"]


@pytest.mark.parametrize("name", ["nothing", "DriftError", "__wrapped__"])
def test_what_is_not_there_is_no_attribute(name):
    get, _ = lazy("lit_tr", {"errors": ["UserError"]})
    with pytest.raises(AttributeError, match=f"module 'lit_tr' has no attribute '{name}'"):
        get(name)
    assert not hasattr(lit_tr, "nothing")
