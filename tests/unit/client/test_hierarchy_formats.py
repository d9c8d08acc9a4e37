"""The hierarchy for other programs: well-formed whatever the names are."""

import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snooze.client.hierarchy_formats import GRAPHML, as_dot, as_graphml, nodes_of
from snooze.common.api import (
    HierarchyHost,
    HierarchyManager,
    HierarchyView,
    HostView,
    ManagerView,
    VmView,
)
from snooze.common.resources import ZERO
from snooze.common.vm_lifecycle import VmState

HOSTILE = [
    '"];}',
    "back\\slash\\",
    "a\nb",
    "<&>'",
    "]]>",
    "\x1b[2J",
    "ünï ☃",
    "",
    "\\N\\G",
    "\udcff",
]


def tree(names: list[str]) -> HierarchyView:
    """Two managers; the first has a host whose VMs are called ``names``, the last is unplaced."""
    vms = [VmView(f"id-{n}", name, VmState.RUNNING, ZERO) for n, name in enumerate(names)]
    host = HostView("lc-1", "host-1", "127.0.0.1:6001", "active", ZERO, ZERO, ZERO)
    asleep = HostView("lc-2", "host-2", "127.0.0.1:6002", "asleep", ZERO, ZERO, ZERO)
    return HierarchyView(
        "gm-1",
        3,
        [
            HierarchyManager(
                ManagerView("gm-1", "m-1", "127.0.0.1:5001", leader=True),
                [HierarchyHost(host, vms[:-1]), HierarchyHost(asleep)],
            ),
            HierarchyManager(ManagerView("gm-2", "m-2", "127.0.0.1:5002")),
        ],
        vms[-1:],
    )


def test_the_tree() -> None:
    nodes = list(nodes_of(tree(["a", "b", "c"])))
    assert [(node.kind, node.label, node.above) for node in nodes] == [
        ("leader", "leader m-1", ""),
        ("manager", "m-1", "leader"),
        ("host", "host-1", "m0"),
        ("vm", "a", "m0h0"),
        ("vm", "b", "m0h0"),
        ("host", "host-2", "m0"),
        ("manager", "m-2", "leader"),
        ("vm", "c", "leader"),
    ]
    assert len({node.key for node in nodes}) == len(nodes)


def check_graphml(text: str, names: list[str]) -> None:
    root = ElementTree.fromstring(text)
    keys = {key.get("id") for key in root.findall(f"{{{GRAPHML}}}key")}
    nodes = root.findall(f".//{{{GRAPHML}}}node")
    ids = {node.get("id") for node in nodes}
    labels: list[str] = []
    for node in nodes:
        data = {item.get("key"): item.text or "" for item in node}
        assert set(data) == keys
        if data["kind"] == "vm":
            labels.append(data["label"])
    edges = [(e.get("source"), e.get("target")) for e in root.findall(f".//{{{GRAPHML}}}edge")]
    assert len(edges) == len(nodes) - 1
    assert {end for edge in edges for end in edge} <= ids
    assert len(labels) == len(names)
    for label, name in zip(labels, names, strict=True):
        # What XML cannot carry is replaced; line ends are normalised by every parser.
        expected = re.sub(
            "\r\n?",
            "\n",
            re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", name),
        )
        assert label == expected


def test_graphml_of_hostile_names() -> None:
    check_graphml(as_graphml(tree(HOSTILE)), HOSTILE)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_graphml_of_any_names(names: list[str]) -> None:
    check_graphml(as_graphml(tree(names)), names)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_every_dot_label_stays_in_its_quotes(names: list[str]) -> None:
    for line in as_dot(tree(names)).splitlines()[3:-1]:
        assert re.fullmatch(
            r'  \w+ \[label="(?:[^"\\]|\\\\|\\"|\\n)*", fillcolor="#[0-9a-f]{6}"\];'
            r"|  \w+ -> \w+;",
            line,
        )


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz_draws_hostile_names() -> None:
    drawn = subprocess.run(
        ["dot", "-Tplain"],
        input=as_dot(tree(HOSTILE)).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert drawn.stderr == b""
    kinds = [line.split()[0] for line in drawn.stdout.decode().splitlines()]
    nodes = len(list(nodes_of(tree(HOSTILE))))
    assert kinds.count("node") == nodes
    assert kinds.count("edge") == nodes - 1
