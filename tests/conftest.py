"""Options, markers and fixtures that all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expectations in tests/cases")
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--zoo", metavar="FOLDER", help="folder of real models, laid out as for benchmarks.zoo")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of this suite."""
    config.addinivalue_line("markers", "backend: goes through the models of the onnx package")
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless they are asked for."""
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether the expectations of golden cases are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))
