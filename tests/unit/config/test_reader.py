"""Reading settings: every mistake at once, each with its key, its place and its remedy."""

from pathlib import Path

import pytest

from snooze.common.config import (
    BootstrapSettings,
    GroupManagerSettings,
    LocalControllerSettings,
    Settings,
    load,
    parse,
)
from snooze.common.config_reader import MAX_FILE_BYTES, MAX_PROBLEMS
from snooze.common.errors import SettingsError


def problems_of(
    text: str,
    root: type[Settings] = GroupManagerSettings,
    environment: dict[str, str] | None = None,
    overrides: dict[str, object] | None = None,
) -> dict[str, str]:
    """``{key: message}``; each key may be wrong but once."""
    with pytest.raises(SettingsError) as caught:
        parse(text, root, environment=environment, overrides=overrides)
    problems = caught.value.problems
    found = {problem.where: problem.message for problem in problems}
    assert len(found) == len(problems)
    return found


def test_an_empty_file_gives_the_defaults() -> None:
    assert parse("", GroupManagerSettings) == GroupManagerSettings()


def test_values_are_taken_with_their_types() -> None:
    settings = parse(
        """
        [network]
        control_port = 0
        [heartbeat]
        interval_s = 2          # a whole number will do for a float
        timeout_s = 7
        [coordination]
        hosts = ["a:2181", "[::1]:2182"]
        [placement.overcommit]
        cpu = 4.0
        """,
        GroupManagerSettings,
    )
    assert settings.network.control_port == 0
    assert (settings.heartbeat.interval_s, settings.heartbeat.timeout_s) == (2.0, 7.0)
    assert isinstance(settings.heartbeat.interval_s, float)
    assert settings.coordination.hosts == ("a:2181", "[::1]:2182")
    assert settings.placement.overcommit.cpu == 4.0
    assert settings.placement.overcommit.memory == 1.0


def test_all_mistakes_are_told_at_once_with_key_line_and_what_is_allowed() -> None:
    found = problems_of(
        """role = "groupmanager"
[network]
listn_address = "0.0.0.0"
control_port = "5000"
monitoring_port = 70000
[hartbeat]
[log]
level = "wraning"
format = 3
[addresses]
subnets = ["10.0.0.0/24", 7]
"""
    )
    assert found == {
        "network.listn_address": "no such key; did you mean listen_address? (line 3)",
        "network.control_port": 'must be a whole number from 0 to 65535, not "5000" (line 4)',
        "network.monitoring_port": "must be a whole number from 0 to 65535, not 70000 (line 5)",
        "hartbeat": "no such table; did you mean heartbeat? (line 6)",
        "log.level": 'must be one of "debug", "info", "warning", "error", not "wraning"; '
        "did you mean warning? (line 8)",
        "log.format": 'must be one of "text", "json", not 3 (line 9)',
        "addresses.subnets[1]": "must be text, not 7 (line 11)",
    }


def test_a_key_in_the_wrong_table_is_led_to_the_right_one() -> None:
    found = problems_of("monitoring_port = 1\n[network]\nquarantine_s = 3")
    assert "did you mean network.monitoring_port?" in found["monitoring_port"]
    assert "did you mean addresses.quarantine_s?" in found["network.quarantine_s"]


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("[heartbeat]\ninterval_s = 3.0", "heartbeat.timeout_s", "longer than"),
        ("[network]\ncontrol_port = 6000", "network.monitoring_port", "control_port too"),
        ('[network]\nlisten_address = "h1"', "network.listen_address", "no IP address"),
        ('[network]\nadvertised_address = "::"', "network.advertised_address", "nobody"),
        ('[coordination]\nhosts = ["a"]', "coordination.hosts[0]", "host:port"),
        ('[coordination]\nhosts = ["a:1", "a:1"]', "coordination.hosts[1]", "twice"),
        ('[coordination]\nroot = "/a/"', "coordination.root", "ZooKeeper path"),
        ('[coordination]\nroot = "/a\\n"', "coordination.root", "ZooKeeper path"),
        ('[addresses]\nsubnets = ["10.0.0.1/24"]', "addresses.subnets[0]", "no IPv4 subnet"),
        ('[addresses]\nsubnets = ["10.0.0.0/8"]', "addresses.subnets[0]", "widest"),
        ('[addresses]\nsubnets = ["10.0.0.0/31"]', "addresses.subnets[0]", "narrowest"),
        (
            '[addresses]\nsubnets = ["10.0.0.0/24", "10.0.0.128/25"]',
            "addresses.subnets[1]",
            "overlaps 10.0.0.0/24",
        ),
        ("[placement.headroom]\ncpu = nan", "placement.headroom.cpu", "not nan"),
        ("[submission]\nstart_timeout_s = inf", "submission.start_timeout_s", "not inf"),
        ("[submission]\nmax_vms = true", "submission.max_vms", "not true"),
        ("[submission]\nmax_vms = 2024-01-01", "submission.max_vms", "not 2024-01-01"),
        ("placement = 3", "placement", "must be a table"),
        ("[log.level]", "log.level", "not a table"),
        ('role = "bootstrap"', "role", 'must be "groupmanager", not "bootstrap"'),
    ],
)
def test_group_manager_contradictions(text: str, key: str, part: str) -> None:
    found = problems_of(text)
    assert list(found) == [key]
    assert part in found[key]


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("[join]\nretry_min_s = 9", "join.retry_max_s", "shorter"),
        ("[join]\nbootstrap_nodes = []", "join.bootstrap_nodes", "1 to 64 elements"),
        ('[join]\nbootstrap_nodes = ["h:0"]', "join.bootstrap_nodes[0]", "port between"),
        ('[images]\ndirectories = ["a"]', "images.directories[0]", "absolute"),
        ('[images]\ndirectories = ["/a/../b"]', "images.directories[0]", '".."'),
        ('[images]\ndirectories = ["//"]', "images.directories[0]", "every file"),
        ('[images]\ndisk_directory = "/srv"', "images.disk_directory", "none of"),
        ('[templates]\nemulators = ["kvm"]', "templates.emulators[0]", "absolute"),
        ('[templates.bridges]\nbr0 = "a/b"', "templates.bridges.br0", "network interface"),
        ("[templates.bridges]\nbr0 = 1", "templates.bridges.br0", "must be text"),
        (
            '[templates]\nallowed_dangers = ["host-device"]',
            "templates.allowed_dangers[0]",
            "did you mean host-devices?",
        ),
        ('[hypervisor]\nuri = "qemu"', "hypervisor.uri", "libvirt address"),
        (
            '[hypervisor]\nmigration_uri = "qemu+tcp://{addr}/system"',
            "hypervisor.migration_uri",
            "{address} does",
        ),
        (
            '[hypervisor]\nmigration_data_uri = "tcp://{addr}"',
            "hypervisor.migration_data_uri",
            "{address} does",
        ),
        ('[hypervisor]\nmigration_data_uri = "ssh://h"', "hypervisor.migration_data_uri", "tcp://"),
        ('[templates]\ngraphics_listen = "any"', "templates.graphics_listen", "no IP address"),
        ('[node]\nid = "a b"', "node.id", "letters, digits"),
        ('[node]\nstate_directory = "x"', "node.state_directory", "absolute path"),
    ],
)
def test_local_controller_contradictions(text: str, key: str, part: str) -> None:
    found = problems_of(text, LocalControllerSettings)
    assert list(found) == [key]
    assert part in found[key]


def test_no_contradiction_is_invented_from_a_value_that_is_wrong_anyway() -> None:
    found = problems_of('[heartbeat]\ninterval_s = "a"\ntimeout_s = 0.5')
    assert list(found) == ["heartbeat.interval_s"]


def test_lines_that_are_no_toml_are_told_and_the_rest_is_read_all_the_same() -> None:
    found = problems_of(
        """[network]
control_port 5000
monitoring_port = 70000
[log
level = "loud"
[http]
max_connections = 0
max_connections = 1
"""
    )
    assert set(found) == {
        "line 2",
        "network.monitoring_port",
        "line 4",
        "line 8",
        "http.max_connections",
    }


def test_what_is_under_an_unreadable_header_is_not_judged_as_if_it_were_under_another() -> None:
    assert set(problems_of("[network]\n[http\nbody = 1\n")) == {"line 2"}


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "[" + "a." * 2_000 + "a]",
        "a = '''",
        "a = " + "1" * 5000,
        "network.control_port = 0x" + "f" * 9000,
        "=\n" * 1000,
        "\0",
        "\ud800",
        "x" * (MAX_FILE_BYTES + 1),
    ],
)
def test_hostile_text_is_refused_in_bounded_time_and_length(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, BootstrapSettings)
    assert 1 <= len(caught.value.problems) <= 30


@pytest.mark.parametrize("line", ["key{} = 1\n", "join.key{} = 1\n", "[table{}]\n"])
def test_endless_mistakes_are_not_all_told(line: str) -> None:
    text = "".join(line.format(number) for number in range(20_000))
    for file in (text, f"node.role = localcontroller\n{text}"):
        with pytest.raises(SettingsError) as caught:
            parse(file, LocalControllerSettings)
        assert len(caught.value.problems) <= MAX_PROBLEMS + 1


def test_an_error_lists_every_problem_for_people_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gm.toml"
    path.write_text("[log]\nlevel = 1\nformat = 2\n")
    with pytest.raises(SettingsError) as caught:
        load(path, GroupManagerSettings, environment={})
    assert str(caught.value) == f"{path}: 2 mistakes"
    assert [note.split(":")[0] for note in caught.value.__notes__] == [
        "  log.level",
        "  log.format",
    ]


def test_a_secret_is_not_repeated_in_an_error() -> None:
    found = problems_of('[wakeup]\noptions = ["-P", "geheim"]', LocalControllerSettings)
    assert "geheim" not in str(found)
    found = problems_of(f'[wakeup]\noptions = "-P {"geheim" * 200}"', LocalControllerSettings)
    assert "geheim" not in str(found)


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "No such file"), (b"[log]\nlevel = '\xff'", "UTF-8"), (b"#" * 2_000_000, "longer")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=part):
        load(path, BootstrapSettings, environment={})


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbf[log]\nlevel = 'error'")
    assert load(path, BootstrapSettings, environment={}).log.level == "error"


class TestOverrides:
    def test_environment_over_file_and_program_over_environment(self) -> None:
        settings = parse(
            "[network]\ncontrol_port = 1\nmonitoring_port = 2\n[log]\nlevel = 'error'",
            GroupManagerSettings,
            environment={
                "SNOOZE_NETWORK__CONTROL_PORT": "3",
                "SNOOZE_NETWORK__MONITORING_PORT": "4",
                "SNOOZE_PLACEMENT__OVERCOMMIT__CPU": "2",
                "HOME": "/",
                "SNOOZE_URL": "http://elsewhere",
            },
            overrides={"network": {"monitoring_port": 5}},
        )
        assert (settings.network.control_port, settings.network.monitoring_port) == (3, 5)
        assert settings.placement.overcommit.cpu == 2.0
        assert settings.log.level == "error"

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("JOIN__BOOTSTRAP_NODES", "a:1, b:2", ("a:1", "b:2")),
            ("JOIN__BOOTSTRAP_NODES", '["a:1"]', ("a:1",)),
            ("IMAGES__DIRECTORIES", "/a b", ("/a b",)),
            ("TEMPLATES__ALLOWED_DANGERS", "secrets", ("secrets",)),
            ("TEMPLATES__ALLOWED_DANGERS", "", ()),
            ("TEMPLATES__BRIDGES", '{br0 = "br1"}', {"br0": "br1"}),
            ("NODE__ID", "17", "17"),
            ("HYPERVISOR__SIMULATED__CPUS", "7", 7),
            ("CAPACITY__RX_KIB_S", "1e3", 1000.0),
        ],
    )
    def test_texts_become_what_the_key_takes(self, name: str, text: str, value: object) -> None:
        settings: object = parse("", LocalControllerSettings, environment={f"SNOOZE_{name}": text})
        for part in name.lower().split("__"):
            settings = getattr(settings, part)
        assert settings == value

    def test_mistakes_name_the_variable(self) -> None:
        found = problems_of(
            "",
            environment={
                "SNOOZE_LOG__LEVEL": "loud",
                "SNOOZE_LOG__LEVLE": "info",
                "SNOOZE_HTTP__MAX_CONNECTIONS": "many",
                "SNOOZE_JOIN__RETRY_MIN_S": "is a local controller's",
            },
        )
        assert set(found) == {"log.level", "SNOOZE_LOG__LEVLE", "http.max_connections"}
        assert "environment SNOOZE_LOG__LEVEL" in found["log.level"]
        assert "did you mean SNOOZE_LOG__LEVEL?" in found["SNOOZE_LOG__LEVLE"]

    def test_load_takes_the_processs_own_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "settings.toml"
        path.write_text("")
        monkeypatch.setenv("SNOOZE_NETWORK__CONTROL_PORT", "4242")
        assert load(path, BootstrapSettings).network.control_port == 4242

    def test_overrides_are_checked_too(self) -> None:
        found = problems_of("", overrides={"network": {"control_prt": 1}})
        assert "set by the program" in found["network.control_prt"]


class TestPrinting:
    OPTIONS = "-I lanplus -H 10.0.0.9 -U user -P geheim"

    def test_a_password_is_in_no_repr(self) -> None:
        settings = parse(f'[wakeup]\noptions = "{self.OPTIONS}"', LocalControllerSettings)
        assert settings.wakeup.options == self.OPTIONS
        for shown in (repr(settings), str(settings), f"{settings}", repr(settings.wakeup)):
            assert "geheim" not in shown
            assert "-H 10.0.0.9 -U user -P ***" in shown

    def test_nor_in_what_rich_prints(self) -> None:
        from rich.pretty import pretty_repr

        settings = parse(f'[wakeup]\noptions = "{self.OPTIONS}"', LocalControllerSettings)
        assert "geheim" not in pretty_repr(settings)


def test_settings_cannot_be_changed() -> None:
    settings = parse("", GroupManagerSettings)
    with pytest.raises(AttributeError):
        setattr(settings.network, "control_port", 1)  # noqa: B010 (type checkers refuse the plain form)
