"""Reading a submission: every VM is judged by itself before the core sees any of it.

What is judged here needs no knowledge of the cluster: the template's XML, its dangers, the size.
What exists already (names, hosts, addresses) is the core's to judge.
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from snooze.common.admission import Admission
from snooze.common.api import VmRequest
from snooze.common.domain_template import name_problem, read_template
from snooze.common.errors import InvalidRequest, Problem
from snooze.common.records import pack_template
from snooze.common.resources import Capacity
from snooze.common.template_policy import TemplatePolicy, judge
from snooze.common.vms import DEFAULT_POLICY, VmErrorCode, VmPolicy
from snooze.groupmanager.leader.submission_events import Candidate

MIN_MEMORY_KIB = 1024
DEFAULT_MEMORY_KIB = 131_072
"""Source: Snooze's default for a template that names none."""
PAUSE_EVERY = 8
"""VMs that are read in one go before other work has its turn."""


@dataclass(frozen=True, slots=True)
class Intake:
    """How submissions are judged; ``treatment`` is the policy of VMs that name none.

    ``admission``: how many may be on their way into the record.
    """

    policy: TemplatePolicy
    max_vms: int
    treatment: VmPolicy = DEFAULT_POLICY
    admission: Admission = field(default_factory=lambda: Admission("submissions"))

    async def read(self, requests: Sequence[VmRequest]) -> list[Candidate]:
        """One candidate per VM, each with all that is wrong with it.

        Raises:
            InvalidRequest: no VM, or more than allowed.
        """
        if not requests:
            raise InvalidRequest("a submission needs at least one VM")
        if len(requests) > self.max_vms:
            raise InvalidRequest(
                f"{len(requests)} VMs in one request; the most is {self.max_vms}: split it"
            )
        candidates: list[Candidate] = []
        for index, request in enumerate(requests):
            candidates.append(self._read_one(request, f"vms[{index}]"))
            if index % PAUSE_EVERY == PAUSE_EVERY - 1:
                await asyncio.sleep(0)
        return candidates

    def _read_one(self, request: VmRequest, where: str) -> Candidate:
        vm_id = uuid.uuid4().hex
        if request.libvirt_xml:
            return self._from_template(request, where, vm_id)
        problems: list[Problem] = []
        name_wrong = name_problem(request.name) if request.name else "a VM needs a name"
        if name_wrong:
            problems.append(_problem(f"{where}.name", name_wrong))
        if not request.image:
            problems.append(
                _problem(f"{where}.image", "a VM needs an image, or a libvirt template")
            )
        elif "/" in request.image or request.image in {".", ".."} or "\0" in request.image:
            problems.append(
                _problem(f"{where}.image", f"{request.image!r} is not the name of an image")
            )
        demand = Capacity(
            float(1 if request.vcpus is None else request.vcpus),
            float(DEFAULT_MEMORY_KIB if request.memory_kib is None else request.memory_kib),
            request.rx_kib_s,
            request.tx_kib_s,
        )
        problems += _size_problems(demand, where)
        return Candidate(
            vm_id,
            request.name,
            demand,
            image=request.image,
            host=request.host,
            problems=tuple(problems),
            policy=request.policy.over(self.treatment),
        )

    def _from_template(self, request: VmRequest, where: str, vm_id: str) -> Candidate:
        problems = [
            _problem(f"{where}.{field}", "is the template's to say; leave it out")
            for field, given in (
                ("vcpus", request.vcpus is not None),
                ("memory_kib", request.memory_kib is not None),
                ("image", bool(request.image)),
            )
            if given
        ]
        try:
            template = read_template(request.libvirt_xml)
        except InvalidRequest as error:
            found = error.problems or (Problem("", error.message),)
            listed = [
                Problem(_join(f"{where}.libvirt_xml", p.where), p.message, p.code) for p in found
            ]
            return Candidate(
                vm_id,
                request.name,
                Capacity(1.0),
                host=request.host,
                problems=(*problems, *_coded(listed)),
            )
        dangers = [
            Problem(_join(f"{where}.libvirt_xml", p.where), p.message, p.code)
            for p in judge(template, self.policy)
        ]
        if request.name and request.name != template.name:
            problems.append(
                _problem(f"{where}.name", f"the template says {template.name!r}; leave it out")
            )
        demand = Capacity(
            float(template.vcpus), float(template.memory_kib), request.rx_kib_s, request.tx_kib_s
        )
        problems += [*_coded(dangers), *_size_problems(demand, where)]
        return Candidate(
            vm_id,
            template.name,
            demand,
            template=pack_template(request.libvirt_xml),
            host=request.host,
            problems=tuple(problems),
            policy=request.policy.over(self.treatment),
        )


def _problem(where: str, message: str) -> Problem:
    return Problem(where, message, VmErrorCode.INVALID_TEMPLATE)


def _coded(problems: Sequence[Problem]) -> list[Problem]:
    """The same, with the code under which a submission's VM fails."""
    return [_problem(p.where, p.message) for p in problems]


def _join(prefix: str, where: str) -> str:
    return f"{prefix}: {where}" if where else prefix


def _size_problems(demand: Capacity, where: str) -> list[Problem]:
    problems = demand.problems()
    if demand.cpu_cores < 1 and not problems:
        problems.append("cpu: a VM needs at least one vCPU")
    if demand.memory_kib < MIN_MEMORY_KIB and not problems:
        problems.append(f"memory: a VM needs at least {MIN_MEMORY_KIB} KiB")
    return [_problem(where, text) for text in problems]
