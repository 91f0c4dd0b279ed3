"""Tests of the CUDA path, skipped where there is no card: `pytest tests/gpu`.

Those that take `device` can be tried without one: `pytest tests/gpu --device cpu`. One that is parametrized by a
`device` of its own runs on that.
"""

import pytest
import torch
import torch._dynamo


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda", help="what the tests of tests/gpu run on")


@pytest.fixture(autouse=True)
def on_a_card(request):
    """Skip what needs a card where there is none; let no compiled function fall back to eager without an error."""
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture
def device(request):
    return request.config.getoption("--device", "cuda")  # unknown where tests/gpu is not named on the command line


@pytest.fixture
def record(record_property):
    """Record figures of a test, which h100.py shows."""

    def figures(**values):
        for name, value in values.items():
            record_property(name.replace("_", " "), f"{value:.2g}" if isinstance(value, float) else value)

    return figures
