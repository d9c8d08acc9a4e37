"""Whether something is done with a domain: of one that comes libvirt refuses to say what."""

from typing import cast

import libvirt
import pytest

from snooze.localcontroller.hypervisor.libvirt_connection import has_job

REFUSED = libvirt.VIR_ERR_OPERATION_UNSUPPORTED
UNBOUNDED = 2  # VIR_DOMAIN_JOB_UNBOUNDED


class Refused(libvirt.libvirtError):
    """libvirt's error, with a code of ours."""

    def __init__(self, code: int) -> None:
        super().__init__("refused")
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class Domain:
    """A domain that answers with a job's type, or with an error's code."""

    def __init__(self, job: int = 0, code: int = 0) -> None:
        self.job, self.code = job, code

    def jobInfo(self) -> list[int]:
        if not self.code:
            return [self.job]
        raise Refused(self.code)


def domain(job: int = 0, code: int = 0) -> libvirt.virDomain:
    return cast(libvirt.virDomain, Domain(job, code))


def test_jobs() -> None:
    assert not has_job(domain(libvirt.VIR_DOMAIN_JOB_NONE))
    assert has_job(domain(UNBOUNDED))


def test_a_guest_that_comes_has_one() -> None:
    """A look at all domains failed as a whole, and with it a host's samples and its joining."""
    assert has_job(domain(code=REFUSED))


def test_other_errors_are_errors() -> None:
    with pytest.raises(libvirt.libvirtError):
        has_job(domain(code=libvirt.VIR_ERR_OPERATION_FAILED))
