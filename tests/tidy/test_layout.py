"""The house as ARCHITECTURE.md and STYLE.md plan it: floors, purity, sizes, one clock, no print."""

import ast

import pytest

from tests.tidy.source import REPOSITORY, ROOMS, Module, by_name, modules

MAX_LINES = 600
MAX_LINES_OF_TESTS = 700

FLOORS: dict[str, set[str]] = {
    "common": set(),
    "configs": set(),
    "scheduling": {"common"},
    "lab": {"common"},
    "bootstrap": {"common", "scheduling"},
    "groupmanager": {"common", "scheduling"},
    "localcontroller": {"common", "scheduling"},
    "client": {
        "common",
        "scheduling",
        "bootstrap",
        "groupmanager",
        "localcontroller",
        "lab",
        "configs",
    },
    "simulation": {
        "common",
        "scheduling",
        "bootstrap",
        "groupmanager",
        "localcontroller",
        "client",
    },
}
"""What each room may import besides itself."""

IMPURE = {
    "asyncio",
    "aiohttp",
    "kazoo",
    "libvirt",
    "time",
    "datetime",
    "random",
    "socket",
    "subprocess",
    "logging",
    "os",
    "threading",
    "secrets",
}

SHELLS_OF_SCHEDULING = {"scheduling.__main__", "scheduling.plugins", "scheduling.guard"}
"""The command, and what loads plug-ins and watches over their calls."""

WORDS_OF_THE_STORE = {"common.coordination.port", "common.coordination.leadership"}
"""Ports whose types the election's events carry, beside what shells do with them."""

WORDS_OF_TIME = {"common.time_plans"}
"""Calendars: the moment is always an argument, and ``datetime`` only takes it apart."""

CLOCK_READERS = {
    "time": {
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "localtime",
        "gmtime",
    },
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}

PRINTS = {"benchmarks", "client", "lab", "tests"}
READS_CLOCK = {"simulation.scale", "common.clock"}
HAS_CLOCK = {"benchmarks", "lab", "tests"}


def names(found: list[Module]) -> list[str]:
    return sorted(module.name for module in found)


def test_no_module_is_too_long() -> None:
    long = {
        m.name: m.lines
        for m in by_name().values()
        if m.lines > (MAX_LINES_OF_TESTS if m.room == "tests" else MAX_LINES)
    }
    assert long == {}, "make two of it"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_floors_below_only(room: str) -> None:
    allowed = FLOORS[room] | {room}
    strange = [
        f"{module.name} imports {name}"
        for module in modules(room)
        for name in module.ours()
        if by_name()[name].room not in allowed
    ]
    assert strange == []


def test_no_room_imports_tests_or_benchmarks() -> None:
    strange = [
        f"{module.name} imports {name}"
        for module in modules(*ROOMS)
        for name in module.imports()
        if name.partition(".")[0] in {"tests", "benchmarks"}
    ]
    assert strange == []


def deciders() -> list[Module]:
    """Cores, and the scheduler's decisions."""
    return [
        module
        for module in modules(*ROOMS)
        if module.name.endswith("_core")
        or (module.room == "scheduling" and module.name not in SHELLS_OF_SCHEDULING)
    ]


def test_there_are_cores() -> None:
    assert len([module for module in deciders() if module.name.endswith("_core")]) >= 6
    assert by_name().keys() >= SHELLS_OF_SCHEDULING


def test_what_decides_is_pure() -> None:
    impure = [
        f"{module.name} imports {name}"
        for module in deciders()
        for name in module.imports()
        if name.partition(".")[0] in IMPURE
    ]
    assert impure == []


def test_what_decides_touches_no_files() -> None:
    touching = [
        f"{module.name}:{node.lineno}"
        for module in deciders()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "exec", "eval"}
    ]
    assert touching == []


def test_what_cores_stand_on_is_pure_too() -> None:
    """A core must not reach the world through a module of ours that it imports."""
    reached: dict[str, str] = {}
    todo = [(module.name, module.name) for module in deciders()]
    while todo:
        name, via = todo.pop()
        if name not in {*reached, *SHELLS_OF_SCHEDULING, *WORDS_OF_THE_STORE, *WORDS_OF_TIME}:
            reached[name] = via
            todo += [(imported, f"{via} > {imported}") for imported in by_name()[name].ours()]
    impure = [
        f"{via} imports {name}"
        for module, via in reached.items()
        for name in by_name()[module].imports()
        if name.partition(".")[0] in IMPURE
    ]
    assert impure == []


def reads_clock(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
            return attribute in CLOCK_READERS.get(owner, set())
        case ast.Attribute(value=ast.Attribute(attr=owner), attr=attribute):
            return owner in {"datetime", "date"} and attribute in CLOCK_READERS[owner]
        case ast.ImportFrom(module="time", names=imported):
            return any(alias.name in CLOCK_READERS["time"] for alias in imported)
        case _:
            return False


def test_the_clock_is_read_in_one_place() -> None:
    reading = [
        f"{module.name}:{getattr(node, 'lineno', 0)}"
        for module in by_name().values()
        if module.room not in HAS_CLOCK and module.name not in READS_CLOCK
        for node in ast.walk(module.tree)
        if reads_clock(node)
    ]
    assert reading == [], "take a Clock (common/clock.py)"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("time.time()", True),
        ("datetime.now()", True),
        ("datetime.datetime.now()", True),
        ("from time import monotonic", True),
        ("clock.monotonic_s()", False),
        ("datetime.fromtimestamp(1)", False),
        ("time.sleep(1)", False),
    ],
)
def test_a_reading_of_the_clock_is_seen(source: str, found: bool) -> None:
    assert any(reads_clock(node) for node in ast.walk(ast.parse(source))) is found


def test_nobody_prints_but_those_who_speak_to_people() -> None:
    printing = [
        f"{module.name}:{node.lineno}"
        for module in by_name().values()
        if module.room not in PRINTS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert printing == []


def test_every_module_says_what_it_is() -> None:
    silent = [m for m in modules(*ROOMS) if not ast.get_docstring(m.tree)]
    assert names(silent) == []


@pytest.mark.parametrize("room", [*ROOMS, "benchmarks"])
def test_every_room_has_a_page_that_tells_what_it_holds(room: str) -> None:
    page = REPOSITORY / room / "README.md"
    assert page.is_file()
    assert len(page.read_text().split()) > 20
