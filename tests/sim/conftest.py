"""What simulated processes leave behind when they are killed is no leak of the tests."""

import gc
import warnings
from collections.abc import Iterator

import pytest


def collect() -> None:
    """Where nobody is warned of it: the warnings of other tests stay errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    collect()


def pytest_sessionfinish() -> None:
    collect()
