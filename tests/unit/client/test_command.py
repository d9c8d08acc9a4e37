"""The command as people and scripts see it: words, JSON, exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import Result

from snooze.client import vm_commands
from snooze.client.fake_cluster import Failure, FakeCluster
from snooze.common.api import DecisionView, HierarchyView, HostView, TaskState, TaskView, VmView
from snooze.common.errors import ERRORS_BY_CODE, ErrorReport, SnoozeError
from snooze.common.vm_lifecycle import VmState

Run = Callable[..., Result]

WAKING = ("waking", "waking", "try 1")
DOWN = ("going_down", "going_down", "asked for")
DOMAIN = "<domain type='kvm'><name>db</name></domain>"


def words(text: str) -> list[list[str]]:
    """The cells of a table."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


def test_submit_from_an_image(run: Run, fake: FakeCluster) -> None:
    done = run("submit", "--name", "web", "--image", "tiny.qcow2", "--count", "2", "--vcpus", "4")
    assert done.exit_code == 0, done.output
    assert words(done.stdout) == [
        ["NAME", "STATE", "HOST", "ADDRESS"],
        ["web-1", "running", "host-1", "192.168.122.10"],
        ["web-2", "running", "host-1", "192.168.122.11"],
    ]
    assert done.stderr == ""


def test_submit_templates_from_files_and_standard_input(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "db.xml"
    path.write_text(DOMAIN)
    done = run("submit", str(path), "-", "--rx", "12M", text=DOMAIN)
    assert done.exit_code == 0, done.output
    assert len(words(done.stdout)) == 3


def test_submit_a_cluster_file(run: Run, fake: FakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text('name = "shop"\n[[vms]]\nname = "web"\ncount = 3\nimage = "tiny.qcow2"\n')
    assert run("submit", "-f", str(path)).exit_code == 0
    assert {vm.virtual_cluster for vm in fake.vms.values()} == {"shop"}
    both = run("submit", "-f", str(path), "--name", "x")
    assert both.exit_code == 2
    assert "--file says everything" in both.stderr


def test_policies_of_a_vm_are_said_at_submission_and_shown(run: Run, fake: FakeCluster) -> None:
    policies = ("--on-failure", "ask", "--priority", "3", "--pinned")
    slow = ("--slow-migration", "pause", "--max-downtime", "900")
    done = run("submit", "--name", "web", "--image", "tiny.qcow2", *policies, *slow)
    assert done.exit_code == 0, done.output
    shown = run("info", "web").stdout
    assert "ask, priority 3, not moved by itself" in shown
    assert "pause, paused for at most 900 ms" in shown
    wrong = run("submit", "--name", "web", "--image", "tiny.qcow2", "--slow-migration", "hurry")
    assert wrong.exit_code == 2
    assert "postcopy" in wrong.output


def test_json_is_the_apis_own(run: Run, fake: FakeCluster) -> None:
    done = run("submit", "--name", "web", "--image", "tiny.qcow2", "-o", "json")
    task = msgspec.json.decode(done.stdout, type=TaskView)
    assert task.state is TaskState.DONE
    for command, kind in (
        (("list",), list[VmView]),
        (("info", "web"), VmView),
        (("hosts",), list[HostView]),
        (("tasks",), list[TaskView]),
        (("task", task.id), TaskView),
        (("hierarchy",), HierarchyView),
        (("managers",), list[object]),
        (("images",), list[object]),
    ):
        done = run(*command, "--output", "json")
        assert done.exit_code == 0, done.output
        assert msgspec.json.decode(done.stdout, type=kind)
    assert json.loads(run("list", "-o", "json").stdout)[0]["demand"] == [2, 2097152, 12800, 12800]


def test_lists(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web")
    fake.add_vm("theirs", VmState.STOPPED, managed=False)
    assert words(run("list").stdout) == [
        ["NAME", "STATE", "HOST", "ADDRESS", "VCPUS", "MEMORY"],
        ["theirs", "stopped (not ours)", "host-1", "192.168.122.11", "2", "2.0 GiB"],
        ["web", "running", "host-1", "192.168.122.10", "2", "2.0 GiB"],
    ]
    assert words(run("hosts").stdout)[1] == [
        "host-1",
        "active",
        "2",
        "4/16",
        "4.0/64.0 GiB",
        "manager-1",
        "lc-1",
    ]
    assert words(run("managers").stdout)[1][:3] == ["manager-1", "leader", "127.0.0.1:5001"]
    assert words(run("images").stdout)[1] == ["tiny.qcow2", "qcow2", "2.0 GiB", "300.0 MiB", "3"]


def test_empty_lists_say_so(run: Run) -> None:
    assert "snooze submit" in run("list").stdout
    assert run("tasks").stdout == "No tasks.\n"


def test_details(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web", VmState.FAILED, reason="qemu died")
    shown = dict(line for line in words(run("info", "web").stdout) if len(line) == 2)
    assert shown["state"] == "failed"
    assert shown["reason"] == "qemu died"
    assert shown["asked for"] == "2 cores, 2.0 GiB, in 12.5 MiB/s, out 12.5 MiB/s"
    assert run("info", "web", "--xml").stdout == fake.vms["web"].xml + "\n"


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        ("start", VmState.STOPPED, "running"),
        ("suspend", VmState.RUNNING, "paused"),
        ("resume", VmState.PAUSED, "running"),
        ("shutdown", VmState.RUNNING, "stopped"),
        ("reboot", VmState.RUNNING, "running"),
        ("destroy", VmState.RUNNING, "destroyed"),
    ],
)
def test_commands_on_several_vms(
    run: Run, fake: FakeCluster, command: str, before: VmState, after: str
) -> None:
    for name in ("a", "b", "c"):
        fake.add_vm(name, before)
    done = run(command, "a", "b", "a", "c")
    assert done.exit_code == 0, done.output
    assert words(done.stdout)[1:] == [
        [name, command, "done", after, "host-1"] for name in ("a", "b", "c")
    ]


def test_migrate_and_its_task(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web")
    done = run("migrate", "web", "--to", "host-2")
    assert words(done.stdout)[1] == ["web", "migrate", "done", "running", "host-2"]
    shown = run("task", f"{1:032x}").stdout
    assert "512.0 MiB of 512.0 MiB" in shown
    assert "64.0 KiB/s" in shown


def test_resize(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web")
    assert run("resize", "web", "--memory", "4G", "--rx", "0").exit_code == 0
    assert fake.vms["web"].demand.as_list() == [2, 4 * 1024**2, 0, 12800]
    nothing = run("resize", "web")
    assert nothing.exit_code == 2
    assert "--vcpus" in nothing.stderr


def test_one_refusal_does_not_stop_the_others(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("a")
    fake.add_vm("b", VmState.STOPPED)
    done = run("suspend", "absent", "b", "a")
    assert done.exit_code == 4
    assert words(done.stdout)[1:] == [["a", "suspend", "done", "paused", "host-1"]]
    assert done.stderr.count("Error: ") == 2
    answers = json.loads(run("resume", "absent", "a", "-o", "json").stdout)
    assert answers[0]["error"]["code"] == "not_found"
    assert answers[1]["state"] == "done"


def test_the_same_trouble_is_told_once(run: Run) -> None:
    done = run("suspend", "a", "b", "c", "--url", "127.0.0.1:1")
    assert done.exit_code == 9
    assert done.stderr.count("Error: ") == 1


def test_without_waiting(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web")
    done = run("suspend", "web", "--no-wait", "-o", "json")
    (task,) = json.loads(done.stdout)
    assert task["state"] == "pending"
    assert run("task", task["id"], "--wait", "-o", "json").exit_code == 0
    assert fake.tasks[task["id"]].state is TaskState.DONE
    submitted = run("submit", "--name", "db", "--image", "tiny.qcow2", "--no-wait")
    assert submitted.stdout.split() == [f"{2:032x}"]
    assert run("resume", "web", "absent", "--no-wait").stdout.split() == [f"{3:032x}"]


def test_a_wait_that_is_too_long(run: Run, fake: FakeCluster) -> None:
    fake.add_vm("web")
    fake.stuck = True
    done = run("suspend", "web", "--wait-timeout", "0.1")
    assert done.exit_code == 9
    assert "it goes on" in done.stderr


def test_failures_of_a_submission(run: Run, fake: FakeCluster) -> None:
    fake.capacity_vms = 1
    partial = run("submit", "--name", "web", "--image", "tiny.qcow2", "--count", "2")
    assert partial.exit_code == 8
    assert words(partial.stdout)[2] == ["web-2", "failed", "-", "-"]
    assert "web-2: no host has room" in partial.stderr
    full = run("submit", "--name", "db", "--image", "tiny.qcow2", "--count", "2")
    assert full.exit_code == 6
    assert "snooze hosts" in full.stderr


def test_problems_are_listed(run: Run) -> None:
    done = run("submit", "--name", "web", "--image", "absent", "--count", "30")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "vms[0].image: no image 'absent'" in done.stderr
    assert "and 10 more" in done.stderr
    assert "Nothing was changed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("info", "absent"), 4, "snooze list"),
        (("task", "absent"), 4, "no task"),
        (("submit",), 2, "--name"),
        (("submit", "--name", "a", "--image", "b", "--memory", "2"), 2, "no unit"),
        (("submit", "absent.xml"), 2, "No such file"),
        (("list", "--url", "ftp://a"), 3, "http://"),
        (("list", "--url", "127.0.0.1:1"), 9, "snooze up"),
        (("info", ".."), 2, "cannot be the name"),
        (("nonsense",), 2, "No such command"),
        (("submit", "--count", "0"), 2, "count"),
        (("list", "-o", "xml"), 2, "xml"),
        (("migrate", "web"), 2, "--to"),
    ],
)
def test_mistakes(run: Run, arguments: tuple[str, ...], exit_code: int, message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == exit_code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "steps", "exit_code", "said"),
    [
        ("wake", [WAKING, ("active", "joining", ""), ("active", "active", "")], 0, "it is up"),
        ("wake", [("active", "maintenance", "")], 0, "it is up"),
        ("wake", [WAKING, ("failed", "failed", "its BMC refused")], 8, "failed: its BMC refused"),
        ("wake", [("asleep", "asleep", "")], 8, "host-3 is not up: it is asleep"),
        ("wake", [("active", "unreachable", "")], 8, "it is out of reach"),
        ("sleep", [DOWN, ("asleep", "asleep", "idle")], 0, "it is asleep"),
        ("sleep", [DOWN, ("active", "active", "stays up: VM a came")], 8, "stays up: VM a came"),
        ("sleep", [("waking", "waking", "VM web")], 8, "host-3 is not asleep: it is waking"),
    ],
)
def test_who_sleeps_or_wakes_a_host_sees_it_done(
    run: Run,
    fake: FakeCluster,
    command: str,
    steps: list[tuple[str, str, str]],
    exit_code: int,
    said: str,
) -> None:
    fake.will_be("host-3", *steps)
    done = run("host", command, "host-3")
    assert done.exit_code == exit_code, done.output
    assert said in (done.stderr if exit_code else done.stdout)
    assert not fake.power_steps["lc-3"], "looked at until it was so"


def test_the_power_of_a_host_need_not_be_waited_for(run: Run, fake: FakeCluster) -> None:
    fake.will_be("host-3", *[WAKING] * 1000)
    done = run("host", "wake", "host-3", "--no-wait")
    assert (done.exit_code, done.stdout) == (0, "host-3: it is being woken\n")
    late = run("host", "wake", "host-3", "--wait-timeout", "0")
    assert late.exit_code == 9
    assert "host-3 is waking: try 1 after 0 s; it goes on" in late.stderr
    fake.fail_next(Failure.NO_LEADER, times=2, path="/v1/hosts/host-3")
    fake.will_be("host-3", WAKING, ("active", "active", ""))
    done = run("host", "wake", "host-3", "-o", "json")
    assert json.loads(done.stdout)["power"] == "active", "the host, through a change of leader"


def test_who_decided_is_named(run: Run, fake: FakeCluster) -> None:
    decision_id = "d" * 32
    fake.decisions[decision_id] = decided = DecisionView(
        decision_id, 0, "overload", "auto", "done", "gm-2", "host-1 is overloaded"
    )
    assert "by manager-2 (127.0.0.1:5002, gm-2)" in run("decisions", "show", decision_id).stdout
    fake.decisions[decision_id] = msgspec.structs.replace(decided, decider="gone")
    assert " by gone\n" in run("decisions", "show", decision_id).stdout


def test_a_decision_is_exported(run: Run, fake: FakeCluster, tmp_path: Path) -> None:
    decision_id = "d" * 32
    fake.decisions[decision_id] = DecisionView(
        decision_id, 0, "overload", "auto", "done", "gm-2", "", inputs=msgspec.Raw(b'{"a":1}')
    )
    file = tmp_path / "decision.json"
    assert run("decisions", "export", decision_id[:8], str(file)).exit_code == 0
    assert file.read_bytes() == b'{"a":1}'
    done = run("decisions", "export", decision_id, str(tmp_path))
    assert done.exit_code == 2
    assert f"{tmp_path} cannot be written: Is a directory" in done.stderr


@pytest.mark.parametrize("kind", list(ERRORS_BY_CODE.values()))
def test_every_error_has_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[SnoozeError]
) -> None:
    async def fails(*_: object) -> None:
        raise ErrorReport(kind.code, "it went wrong", retry_after_s=2).as_error()

    monkeypatch.setattr(vm_commands, "_submit", fails)
    done = run("submit", "--name", "a", "--image", "b")
    assert done.exit_code == kind.exit_code
    assert done.stderr.startswith("Error: it went wrong.")
    assert "wait 2 s" in done.stderr


def test_the_cluster_may_recover_meanwhile(run: Run, fake: FakeCluster) -> None:
    fake.fail_next(Failure.LOSE_ANSWER)
    fake.fail_next(Failure.NO_LEADER, times=2)
    assert run("submit", "--name", "web", "--image", "tiny.qcow2").exit_code == 0
    assert list(fake.vms) == ["web"]


@pytest.mark.parametrize("arguments", [("list",), ("list", "-o", "json"), ("hierarchy",)])
def test_nonsense_is_said(run: Run, fake: FakeCluster, arguments: tuple[str, ...]) -> None:
    fake.fail_next(Failure.NONSENSE)
    done = run(*arguments)
    assert done.exit_code == 9
    assert "not what Snooze answers" in done.stderr


def test_url_before_or_after_the_command(run: Run, fake: FakeCluster) -> None:
    nowhere = "http://127.0.0.1:1"
    assert run("--url", nowhere, "list").exit_code == 9
    assert run("--url", nowhere, "list", "--url", fake.url).exit_code == 0
    assert run("--url", f"{nowhere},{fake.url}", "list").exit_code == 0
    assert run("list").exit_code == 0


def test_events(run: Run, fake: FakeCluster) -> None:
    for number in range(5):
        fake.emit("vm.running", f"web-{number}", "runs on host-1", cause="task-1")
    lines = run("events", "-n", "2").stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("vm.running           runs on host-1  (task-1)")
    numbers = [json.loads(line)["seq"] for line in run("events", "-o", "json").stdout.splitlines()]
    assert numbers == [1, 2, 3, 4, 5]


def test_version_with_and_without_a_cluster(run: Run) -> None:
    assert "led by gm-1 at 127.0.0.1:5001: 2 managers, 3 hosts, 0 VMs" in run("version").stdout
    alone = run("version", "--url", "127.0.0.1:1")
    assert alone.exit_code == 0
    assert "no cluster answers at http://127.0.0.1:1" in alone.stdout
    assert json.loads(run("version", "-o", "json").stdout)["cluster"]["epoch"] == 3


def test_text_from_the_cluster_is_harmless(run: Run, fake: FakeCluster) -> None:
    hostile = "a\x1b[2J\x07[red]b\n\u202ec"
    fake.add_vm(hostile, reason=hostile)
    fake.emit("vm.running", hostile, hostile)
    for command in ("list", "hierarchy", "events"):
        shown = run(command).stdout
        assert r"a\x1b[2J\x07[red]b\n\u202ec" in shown
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", shown)
    done = run("info", "no\x1b[2Jsuch")
    assert "\x1b" not in done.stderr


def test_a_pipe_gets_whole_lines(run: Run, fake: FakeCluster) -> None:
    name = "x" * 300
    fake.add_vm(name)
    lines = run("list").stdout.splitlines()
    assert len(lines) == 2
    assert name in lines[1]
    assert all(line == line.rstrip() for line in lines)
