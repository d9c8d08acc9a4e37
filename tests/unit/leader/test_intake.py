"""Reading a submission: each VM judged by itself."""

import asyncio

import pytest

from snooze.common.api import VmRequest
from snooze.common.errors import InvalidRequest
from snooze.common.records import unpack_template
from snooze.common.resources import Capacity
from snooze.common.template_policy import TemplatePolicy
from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.intake import DEFAULT_MEMORY_KIB, Intake
from snooze.groupmanager.leader.submission_events import Candidate

TEMPLATE = """<domain type='kvm'><name>web</name><memory unit='KiB'>262144</memory>
<vcpu>2</vcpu><os><type>hvm</type></os></domain>"""
INTAKE = Intake(TemplatePolicy(), max_vms=10)


async def read(request: VmRequest) -> Candidate:
    return (await INTAKE.read([request]))[0]


async def test_a_vm_from_an_image() -> None:
    found = await read(
        VmRequest("web", vcpus=2, memory_kib=4096, image="debian", rx_kib_s=5.0, host="h1")
    )
    assert not found.problems
    assert (found.name, found.image, found.host) == ("web", "debian", "h1")
    assert found.demand == Capacity(2.0, 4096.0, 5.0, 0.0)
    assert len(found.vm_id) == 32


async def test_defaults_are_one_cpu_and_snoozes_memory() -> None:
    assert (await read(VmRequest("web", image="debian"))).demand == Capacity(
        1.0, float(DEFAULT_MEMORY_KIB)
    )


async def test_a_vm_from_a_template() -> None:
    found = await read(VmRequest(libvirt_xml=TEMPLATE, tx_kib_s=7.0))
    assert not found.problems
    assert (found.name, found.image) == ("web", "")
    assert found.demand == Capacity(2.0, 262144.0, 0.0, 7.0)
    assert unpack_template(found.template) == TEMPLATE


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (VmRequest(image="debian"), ".name"),
        (VmRequest("a/b", image="debian"), ".name"),
        (VmRequest("web"), ".image"),
        (VmRequest("web", image="../etc/passwd"), ".image"),
        (VmRequest("web", image=".."), ".image"),
        (VmRequest("web", image="debian", vcpus=0), ""),
        (VmRequest("web", image="debian", vcpus=-1), ""),
        (VmRequest("web", image="debian", vcpus=100_000), ""),
        (VmRequest("web", image="debian", memory_kib=1023), ""),
        (VmRequest("web", image="debian", rx_kib_s=float("inf")), ""),
        (VmRequest(libvirt_xml=TEMPLATE, vcpus=1), ".vcpus"),
        (VmRequest(libvirt_xml=TEMPLATE, memory_kib=1), ".memory_kib"),
        (VmRequest(libvirt_xml=TEMPLATE, image="debian"), ".image"),
        (VmRequest("other", libvirt_xml=TEMPLATE), ".name"),
        (VmRequest(libvirt_xml="<domain"), ".libvirt_xml"),
        (VmRequest(libvirt_xml=TEMPLATE.replace("262144", "7")), ""),
    ],
)
async def test_what_is_wrong_says_where(request_: VmRequest, where: str) -> None:
    problems = (await read(request_)).problems
    assert [problem.where for problem in problems] == [f"vms[0]{where}"]
    assert {problem.code for problem in problems} == {VmErrorCode.INVALID_TEMPLATE}


async def test_all_that_is_wrong_is_told_at_once() -> None:
    problems = (await read(VmRequest("a/b", vcpus=-1))).problems
    assert len(problems) == 3


async def test_dangers_are_refused() -> None:
    danger = TEMPLATE.replace(
        "</domain>",
        "<devices><filesystem type='mount'><source dir='/'/></filesystem></devices></domain>",
    )
    problems = (await read(VmRequest(libvirt_xml=danger))).problems
    assert problems
    assert problems[0].where.startswith("vms[0].libvirt_xml: ")


@pytest.mark.parametrize("count", [0, 11])
async def test_none_and_too_many_are_refused_whole(count: int) -> None:
    with pytest.raises(InvalidRequest):
        await INTAKE.read([VmRequest("web", image="debian")] * count)


async def test_a_long_submission_lets_others_have_their_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await Intake(TemplatePolicy(), 100).read([VmRequest(libvirt_xml=TEMPLATE)] * 40)
    task.cancel()
    assert turns >= 4


async def test_ids_are_never_used_twice() -> None:
    found = await INTAKE.read([VmRequest("web", image="debian")] * 10)
    assert len({candidate.vm_id for candidate in found}) == 10
