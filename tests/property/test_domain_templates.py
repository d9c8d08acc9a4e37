"""Templates nobody would write by hand: read or refused, never anything else."""

import string
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from snooze.common.domain_template import (
    DEFAULT_LIMITS,
    compose,
    memory_to_kib,
    name_problem,
    read_template,
)
from snooze.common.errors import InvalidRequest
from snooze.common.resources import Capacity
from snooze.common.template_policy import Danger, TemplatePolicy, judge, path_is_inside
from snooze.common.vms import VmSpec
from snooze.localcontroller.domain_xml import AdaptOptions, adapt, read_domain
from snooze.localcontroller.hypervisor.port import GuestSupport, HypervisorDescription

LENIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
HOST = HypervisorDescription(
    kind="qemu",
    version="1",
    uri="qemu:///system",
    hostname="h",
    guests=(GuestSupport("x86_64", "hvm", ("qemu",), "/usr/bin/qemu-system-x86_64", ("pc",)),),
)

tags = st.sampled_from(
    [
        "name",
        "memory",
        "vcpu",
        "uuid",
        "os",
        "type",
        "devices",
        "disk",
        "source",
        "interface",
        "serial",
        "emulator",
        "metadata",
        "hostdev",
        "backend",
        "seclabel",
        "driver",
        "new-thing",
        "kernel",
        "graphics",
        "listen",
        "cpu",
        "on_crash",
        "mac",
        "target",
        "backingStore",
    ]
)
names = st.sampled_from(
    [
        "type",
        "file",
        "dev",
        "path",
        "bus",
        "unit",
        "current",
        "mode",
        "arch",
        "machine",
        "address",
        "relabel",
        "bridge",
        "{urn:x}y",
        "{http://libvirt.org/schemas/domain/qemu/1.0}z",
    ]
)
texts = st.one_of(
    st.sampled_from(["", "1", "KiB", "file", "block", "pty", "unix", "/etc/shadow", "../x", "kvm"]),
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"
        ),
        max_size=12,
    ),
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 2) -> "etree._Element":  # pyright: ignore[reportPrivateUsage]
    element = etree.Element(draw(tags))
    for name, value in draw(st.dictionaries(names, texts, max_size=3)).items():
        element.set(name, value)
    element.text = draw(texts)
    if depth:
        for child in draw(st.lists(elements(depth=depth - 1), max_size=2)):
            element.append(child)
    return element


@st.composite
def domains(draw: st.DrawFn) -> str:
    """Well-formed, of a domain's shape, with anything in it."""
    root = etree.fromstring("<domain type='kvm'><name>a</name><memory>9</memory></domain>")
    for child in draw(st.lists(elements(), max_size=3)):
        root.append(child)
    return etree.tostring(root, encoding="unicode")


@LENIENT
@given(st.one_of(st.text(), st.text(alphabet="<>&;!?-[]'\"/ =adeimnox#%\n\0"), domains()))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        template = read_template(text)
    except InvalidRequest:
        return
    assert name_problem(template.name) is None
    assert 1 <= template.vcpus <= template.max_vcpus
    assert template.memory_kib > 0
    judge(template)


@LENIENT
@given(domains(), st.integers(0, 400), st.text(max_size=6))
def test_a_damaged_template_is_read_or_refused(text: str, at: int, junk: str) -> None:
    damaged = text[:at] + junk + text[at + len(junk) :]
    try:
        judge(read_template(damaged))
    except InvalidRequest:
        return


@LENIENT
@given(domains())
def test_allowing_all_leaves_only_the_domain_type(text: str) -> None:
    try:
        template = read_template(text)
    except InvalidRequest:
        return
    assert judge(template, TemplatePolicy(allowed=frozenset(Danger))) == []
    strict = {problem.code for problem in judge(template)}
    assert strict <= {danger.value for danger in Danger}


@LENIENT
@given(domains())
def test_what_was_adapted_is_the_vm_and_lets_no_new_path_in(text: str) -> None:
    try:
        template = read_template(text)
    except InvalidRequest:
        return
    spec = VmSpec(uuid.uuid4().hex, "vm", Capacity(2.0, 4096.0))
    policy = TemplatePolicy(image_directories=("/img",))
    allowed = not judge(template, policy)
    try:
        xml = adapt(template, spec, HOST, AdaptOptions("/img"))
    except InvalidRequest:
        return
    facts = read_domain(xml)
    assert (facts.vm_id, facts.name, facts.memory_kib) == (spec.vm_id, "vm", 4096)
    assert facts.tag is not None
    assert facts.tag.demand == spec.demand
    if allowed:
        assert all(path_is_inside(path, ("/img",)) for path in facts.disks)
        assert judge(read_template(xml), policy) == [], "adapting makes nothing dangerous"


@given(
    st.text(max_size=60),
    st.integers(1, 8192),
    st.integers(1, 2**36),
    st.text(string.printable, max_size=40),
)
def test_what_we_compose_we_can_read(name: str, vcpus: int, memory_kib: int, image: str) -> None:
    try:
        text = compose(name, vcpus, memory_kib, image.replace("\x0b", "").replace("\x0c", ""))
    except InvalidRequest:
        assert name_problem(name) is not None
        return
    template = read_template(text)
    assert (template.name, template.vcpus, template.memory_kib) == (name, vcpus, memory_kib)


@given(st.integers(0, 10**15), st.sampled_from(["b", "KB", "k", "KiB", "MB", "M", "GiB", "T"]))
def test_memory_is_never_rounded_down(value: int, unit: str) -> None:
    kib = memory_to_kib(str(value), unit)
    scale = {"b": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 10**6, "M": 2**20}
    in_bytes = value * {**scale, "GiB": 2**30, "T": 2**40}[unit]
    assert 0 <= kib * 1024 - in_bytes < 1024


@given(st.text(alphabet="/.ab\0", max_size=20))
def test_a_path_inside_has_no_way_out(path: str) -> None:
    if path_is_inside(path, ("/a",)):
        assert path.startswith("/")
        assert ".." not in path.split("/")
        assert len(path) <= DEFAULT_LIMITS.max_bytes
