"""What holds for every test: none is timed by its examples, and what it logged can be reported."""

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is no defect.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lanes report in UTF-8; hostile texts that a test has logged are not."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
