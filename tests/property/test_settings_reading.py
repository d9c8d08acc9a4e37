"""Whatever stands in a settings file: settings or a list of problems, nothing else, no secret."""

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common.config import ROOTS, Role, Settings, parse
from snooze.common.config_text import toml_text
from snooze.common.errors import SettingsError
from snooze.common.java_properties import parse_properties
from snooze.common.legacy_keys import IGNORED, ROLE_KEY, RULES
from snooze.common.redaction import redact_options
from snooze.common.settings_schema import leaves
from snooze.common.toml_values import is_table, toml_value

ROLES = st.sampled_from(list(ROOTS))
KEYS = sorted({".".join(path) for root in ROOTS.values() for path, _ in leaves(root)})
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.text(max_size=9), st.integers(-3, 3)), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)


def attempt(
    text: str,
    role: Role,
    environment: dict[str, str] | None = None,
    overrides: dict[str, object] | None = None,
) -> Settings | None:
    try:
        return parse(text, ROOTS[role], environment=environment, overrides=overrides)
    except SettingsError as error:
        explained = [problem for problem in error.problems if problem.where and problem.message]
    assert explained
    return None


@given(st.text(), ROLES)
def test_any_text_is_read_or_refused(text: str, role: Role) -> None:
    attempt(text, role)


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
    ROLES,
)
def test_any_values_are_read_or_refused_the_same_from_a_file_and_from_a_program(
    values: dict[str, object], role: Role
) -> None:
    tables: dict[str, object] = {}
    lines: list[str] = []
    for key, value in values.items():
        *path, last = key.split(".")
        below = tables
        for part in path:
            inner = below.setdefault(part, {})
            assert is_table(inner)
            below = inner
        below[last] = value
        lines.append(f"{key} = {toml_value(value)}\n")
    text = f'role = "{role}"\n' + "".join(lines)
    assert attempt(text, role) == attempt("", role, overrides=tables)


@given(
    st.dictionaries(
        st.sampled_from([f"SNOOZE_{key.replace('.', '__').upper()}" for key in KEYS]),
        st.text(max_size=20),
    ),
    ROLES,
)
def test_any_environment_is_read_or_refused(environment: dict[str, str], role: Role) -> None:
    attempt("", role, environment=environment)


OLD_KEYS = sorted({key for rule in RULES for key in rule.keys} | set(IGNORED) | {ROLE_KEY})
OLD_VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["1", "0", "-1", "nan", "2020-01-01", "0, 0.9, 1", "qemu", "{}", "a:1,b:2"]),
)


@given(st.dictionaries(st.sampled_from([*OLD_KEYS, *KEYS]), OLD_VALUES, max_size=8), ROLES)
def test_any_original_file_is_read_or_refused(entries: dict[str, str], role: Role) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in entries.items())
    attempt(f"node.role = {role}\n{text}", role)


@settings(deadline=None)
@given(ROLES, st.integers(1, 65535), st.text(max_size=200))
def test_what_is_written_is_read_back(role: Role, port: int, options: str) -> None:
    overrides: dict[str, object] = {"network": {"control_port": port, "advertised_address": "h"}}
    if role == "localcontroller":
        overrides["wakeup"] = {"options": options}
    settings = attempt("", role, overrides=overrides)
    if settings is not None:
        assert attempt(toml_text(settings), role) == settings


@given(VALUES.filter(lambda value: value == value))
def test_values_of_toml_are_read_back(value: object) -> None:
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(st.lists(st.tuples(PLAIN, PLAIN)))
def test_properties_written_as_java_writes_them_are_read_back(pairs: list[tuple[str, str]]) -> None:
    def escaped(text: str) -> str:
        return "".join(f"\\u{unit:04x}" for unit in units(text))

    def units(text: str) -> list[int]:
        raw = text.encode("utf-16-be")
        return [int.from_bytes(raw[at : at + 2]) for at in range(0, len(raw), 2)]

    text = "".join(f"{escaped(key)}={escaped(value)}\n" for key, value in pairs)
    found, mistakes = parse_properties(text)
    assert mistakes == []
    assert [(entry.key, entry.value) for entry in found] == [
        (key, value.strip()) for key, value in pairs
    ]


@given(st.text())
def test_any_text_is_properties_or_told(text: str) -> None:
    found, mistakes = parse_properties(text)
    assert len(found) + len(mistakes) <= text.count("\n") + text.count("\r") + 1


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@given(WORDS, WORDS, WORDS)
def test_a_password_of_ipmitool_is_hidden_and_the_rest_is_not(
    host: str, user: str, password: str
) -> None:
    shown = redact_options(f"-I lanplus -H {host} -U {user} -P {password}")
    assert shown == f"-I lanplus -H {host} -U {user} -P ***"
