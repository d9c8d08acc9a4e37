"""So many are let in, the others refused at once, and places come free whatever happens."""

import contextlib

import pytest

from snooze.common.admission import RETRY_AFTER_S, Admission
from snooze.common.errors import TooBusy


def test_the_surplus_is_refused_and_told_when_to_return() -> None:
    admission = Admission("submissions", limit=2)
    with admission.admit(), admission.admit():
        with pytest.raises(TooBusy, match="too many submissions") as caught, admission.admit():
            pass
        assert caught.value.retry_after_s == RETRY_AFTER_S
        assert (admission.under_way, admission.refused) == (2, 1)
    with admission.admit():
        assert admission.under_way == 1


def test_a_place_comes_free_when_its_call_fails() -> None:
    admission = Admission("calls", limit=1)
    for _ in range(3):
        with contextlib.suppress(ValueError), admission.admit():
            raise ValueError
    assert (admission.under_way, admission.refused) == (0, 0)
