"""The hierarchy for eyes and for other programs: a tree, GraphML (yEd, Gephi) and DOT (Graphviz).

Every format shows the same: the leader at the root, its group managers, their hosts, their VMs, and
the VMs that have no host yet. The colours are those of Snooze's old client: leader red, managers
green, hosts blue (grey when they sleep), VMs yellow.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from rich.text import Text
from rich.tree import Tree

from snooze.client.tables import vm_state
from snooze.client.terminal import plain
from snooze.client.units import cores_text, memory_text, pair_text
from snooze.common.api import HierarchyManager, HierarchyView, HostView, VmView

COLOURS: Final = {
    "leader": "#d9534f",
    "manager": "#5cb85c",
    "host": "#5b9bd5",
    "sleeping": "#c8c8c8",
    "vm": "#f0d75a",
}
GRAPHML: Final = "http://graphml.graphdrawing.org/xmlns"
ATTRIBUTES: Final = ("kind", "label", "id", "state", "address", "colour")

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Node:
    """One vertex of the tree, and the key of the vertex above it (empty for the root)."""

    key: str
    above: str
    kind: str
    label: str
    id: str
    state: str
    address: str
    colour: str


def nodes_of(view: HierarchyView) -> Iterator[Node]:
    """The vertices, each after the one above it; keys are unique within one hierarchy."""
    leader = next((m.manager for m in view.managers if m.manager.id == view.leader_id), None)
    label = f"leader {leader.hostname or leader.id}" if leader else "no leader"
    address = leader.address if leader else ""
    state = f"epoch {view.epoch}"
    yield Node("leader", "", "leader", label, view.leader_id, state, address, COLOURS["leader"])
    for m, branch in enumerate(view.managers):
        manager = branch.manager
        above = f"m{m}"
        yield Node(
            above,
            "leader",
            "manager",
            manager.hostname or manager.id,
            manager.id,
            "leader" if manager.leader else "",
            manager.address,
            COLOURS["manager"],
        )
        for h, twig in enumerate(branch.hosts):
            host, key = twig.host, f"{above}h{h}"
            colour = COLOURS["host" if host.status.lower() == "active" else "sleeping"]
            label = host.hostname or host.id
            yield Node(key, above, "host", label, host.id, host.status, host.address, colour)
            yield from _vm_nodes(twig.vms, key)
    yield from _vm_nodes(view.unplaced, "leader", prefix="u")


def _vm_nodes(vms: list[VmView], above: str, prefix: str = "") -> Iterator[Node]:
    for v, vm in enumerate(vms):
        key, state = f"{prefix or above}v{v}", vm.state.value
        yield Node(key, above, "vm", vm.name, vm.vm_id, state, vm.ip_address, COLOURS["vm"])


def as_graphml(view: HierarchyView) -> str:
    """The tree as GraphML 1.0.

    Source: http://graphml.graphdrawing.org/specification.html
    """
    ElementTree.register_namespace("", GRAPHML)
    root = ElementTree.Element(f"{{{GRAPHML}}}graphml")
    for name in ATTRIBUTES:
        attributes = {"id": name, "for": "node", "attr.name": name, "attr.type": "string"}
        ElementTree.SubElement(root, f"{{{GRAPHML}}}key", attributes)
    graph = ElementTree.SubElement(
        root, f"{{{GRAPHML}}}graph", {"id": "snooze", "edgedefault": "directed"}
    )
    nodes = list(nodes_of(view))
    for node in nodes:
        element = ElementTree.SubElement(graph, f"{{{GRAPHML}}}node", {"id": node.key})
        for name in ATTRIBUTES:
            data = ElementTree.SubElement(element, f"{{{GRAPHML}}}data", {"key": name})
            data.text = _NOT_XML.sub("�", str(getattr(node, name)))
    for node in nodes:
        if node.above:
            ElementTree.SubElement(
                graph, f"{{{GRAPHML}}}edge", {"source": node.above, "target": node.key}
            )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def as_dot(view: HierarchyView) -> str:
    """The tree in Graphviz's language.

    Source: https://graphviz.org/doc/info/lang.html
    """
    lines = [
        "digraph snooze {",
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fontname="sans-serif"];',
    ]
    nodes = list(nodes_of(view))
    for node in nodes:
        parts = (node.kind if node.kind != "leader" else "", node.label, node.state, node.address)
        label = "\\n".join(_dot_text(part) for part in parts if part)
        lines.append(f'  {node.key} [label="{label}", fillcolor="{node.colour}"];')
    lines += [f"  {node.above} -> {node.key};" for node in nodes if node.above]
    return "\n".join([*lines, "}", ""])


def _dot_text(text: str) -> str:
    """``text`` within a quoted DOT string: a backslash would begin an escape of the label."""
    return plain(text).replace("\\", "\\\\").replace('"', '\\"')


def as_tree(view: HierarchyView) -> Tree:
    """The tree for a terminal."""
    leader = next((m.manager for m in view.managers if m.manager.id == view.leader_id), None)
    root = Text.assemble(("leader ", "bold red"))
    name = (leader.hostname or leader.id) if leader else "none"
    root.append(plain(name), style="bold")
    root.append(f"  epoch {view.epoch}", style="dim")
    tree = Tree(root, guide_style="dim")
    for branch in view.managers:
        _add_manager(tree, branch)
    if view.unplaced:
        waiting = tree.add(Text(f"without a host: {_plural(len(view.unplaced), 'VM')}", "yellow"))
        for vm in view.unplaced:
            waiting.add(_vm_text(vm))
    return tree


def _add_manager(tree: Tree, branch: HierarchyManager) -> None:
    manager = branch.manager
    label = Text.assemble(("manager ", "bold green"))
    label.append(plain(manager.hostname or manager.id), style="bold")
    if manager.leader:
        label.append(" (leads)", style="red")
    vms = sum(len(twig.vms) for twig in branch.hosts)
    size = f"{_plural(len(branch.hosts), 'host')}, {_plural(vms, 'VM')}"
    label.append(f"  {plain(manager.address)}  {size}", style="dim")
    below = tree.add(label)
    for twig in branch.hosts:
        twigs = below.add(_host_text(twig.host))
        for vm in sorted(twig.vms, key=lambda vm: vm.name):
            twigs.add(_vm_text(vm))


def _host_text(host: HostView) -> Text:
    text = Text.assemble(("host ", "bold blue"))
    text.append(plain(host.hostname or host.id), style="bold")
    if host.status.lower() != "active":
        text.append(f" {plain(host.status)}", style="yellow")
    cores = f"{cores_text(host.reserved.cpu_cores)}/{cores_text(host.capacity.cpu_cores)} cores"
    memory = pair_text(host.reserved.memory_kib, host.capacity.memory_kib)
    text.append(f"  {cores}  {memory}", style="dim")
    return text


def _vm_text(vm: VmView) -> Text:
    text = Text.assemble((plain(vm.name), "yellow"))
    text.append("  ").append_text(vm_state(vm))
    size = f"{cores_text(vm.demand.cpu_cores)} × {memory_text(vm.demand.memory_kib)}"
    text.append(f"  {size}  {plain(vm.ip_address)}".rstrip(), style="dim")
    return text


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
