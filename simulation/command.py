"""``snooze-sim``: clusters in virtual time, broken by seed.

Exit codes: 0 all held, 1 something did not, 2 the call makes no sense.
"""

import difflib
import math
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from snooze.common.errors import InvalidRequest
from snooze.simulation.drawing import draw
from snooze.simulation.many import minimised, play, run_seed, run_seeds
from snooze.simulation.mutants import MUTANTS
from snooze.simulation.run import Result, Run, recipe_of
from snooze.simulation.scale import Scale, Size
from snooze.simulation.scenario import expected_of, load
from snooze.simulation.scenario import tell as tell_scenario

app = typer.Typer(
    help="Runs whole clusters in virtual time, breaks them by seed, and says whether all held.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MAX_SEEDS = 10_000_000

Output = Annotated[str, typer.Option("--output", help="text or json (one object a line).")]


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _wrong(message: str) -> typer.Exit:
    sys.stderr.write(f"snooze-sim: {message}\n")
    return typer.Exit(2)


def _seeds(text: str) -> list[int]:
    """``7``, or ``1-200``."""
    first, dash, last = text.partition("-")
    try:
        start, end = int(first), int(last if dash else first)
    except ValueError:
        raise _wrong(f"--seeds {text!r}: a number, or two with a dash between, as 1-200") from None
    if not 0 <= start <= end:
        raise _wrong(f"--seeds {text}: the first must not be above the last, nor below 0")
    if end - start >= MAX_SEEDS:
        raise _wrong(f"--seeds {text}: at most {MAX_SEEDS} in one run")
    return list(range(start, end + 1))


def _check_output(output: str) -> None:
    if output not in {"text", "json"}:
        raise _wrong(f"--output {output!r}: text or json")


@app.command()
def run(
    seeds: Annotated[str, typer.Option("--seeds", help="A range, as 1-200, or one seed.")],
    jobs: Annotated[int, typer.Option("--jobs", help="Processes; 0: one for each core.")] = 0,
    output: Output = "text",
    minimise: Annotated[
        bool, typer.Option(help="Make the script of the first failure as small as it gets.")
    ] = True,
) -> None:
    """Run a range of seeds; the last line says how it went."""
    _check_output(output)
    if jobs < 0:
        raise _wrong(f"--jobs {jobs}: 0 or more")
    wanted = _seeds(seeds)
    failed: list[Result] = []
    events, virtual_s, accepted = 0, 0.0, 0
    for result in run_seeds(wanted, jobs):
        events += result.events
        virtual_s += result.virtual_s
        accepted += result.accepted
        if output == "json":
            _write(msgspec.json.encode(result).decode())
        if result.failure:
            failed.append(result)
            if output == "text":
                _write(f"seed {result.seed}: {result.failure}")
    failed.sort(key=lambda result: result.seed)
    if failed and minimise:
        _show_minimised(failed[0], output)
    line = (
        f"{len(wanted) - len(failed)} of {len(wanted)} seeds held; {virtual_s / 3600:.1f} virtual "
        f"hours, {events} events, {accepted} accepted submissions"
    )
    if failed:
        line += f"; failed: {', '.join(str(result.seed) for result in failed[:20])}"
    if output == "json":
        summary = {
            "seeds": len(wanted),
            "failed": [result.seed for result in failed],
            "virtual_s": round(virtual_s, 3),
            "events": events,
            "accepted": accepted,
        }
        _write(msgspec.json.encode(summary).decode())
    else:
        _write(line)
    raise typer.Exit(1 if failed else 0)


def _show_minimised(result: Result, output: str) -> None:
    script = minimised(result)
    if output == "json":
        _write(msgspec.json.encode({"seed": result.seed, "minimised": script}).decode())
        return
    again = play(result.seed, script)
    _write(f"seed {result.seed}, with the fewest deeds that still break it:")
    for deed in script:
        _write(f"  {deed}")
    _write(f"  => {again.failure}")
    _write(f"to see it as a story: snooze-sim replay {result.seed} --minimised --trace")


@app.command()
def replay(
    seed: Annotated[int, typer.Argument(help="The seed.")],
    trace: Annotated[bool, typer.Option("--trace", help="Tell it as a story.")] = False,
    only: Annotated[
        str, typer.Option("--only", help="Only these deeds of its script: 0,3,7-9.")
    ] = "",
    minimised_only: Annotated[
        bool, typer.Option("--minimised", help="First leave out every deed that is not needed.")
    ] = False,
    mutant: Annotated[str, typer.Option("--mutant", help="With a product broken so.")] = "",
    script_only: Annotated[
        bool, typer.Option("--script", help="Show the script, run nothing.")
    ] = False,
    output: Output = "text",
) -> None:
    """Run one seed again, exactly as it was."""
    _check_output(output)
    if mutant and mutant not in MUTANTS:
        raise _wrong(f"no mutant {mutant!r}; there are: {', '.join(MUTANTS)}")
    if seed < 0:
        raise _wrong("a seed is 0 or more")
    recipe = recipe_of(seed)
    script = draw(seed, recipe.shape, recipe.length_s, recipe.trouble)
    if only:
        script = [script[index] for index in _indices(only, len(script))]
    if script_only:
        for index, deed in enumerate(script):
            _write(f"{index:3} {deed}")
        return
    if minimised_only:
        first = run_seed(seed, mutant)
        if not first.failure:
            raise _wrong(f"seed {seed} holds: there is nothing to minimise")
        script = minimised(first, mutant)

    def tell(now_s: float, who: str, what: str) -> None:
        if output == "json":
            _write(
                msgspec.json.encode({"at_s": round(now_s, 6), "who": who, "what": what}).decode()
            )
        else:
            _write(f"[{now_s:9.3f}] {who:8} {what}")

    from snooze.simulation.mutants import unbroken

    broken = MUTANTS[mutant].apply if mutant else unbroken
    with broken():
        one = Run(
            seed,
            script,
            recipe.shape,
            recipe.length_s,
            chatty=trace,
            listener=tell if trace else None,
        )
        result = one.go()
    if output == "json":
        _write(msgspec.json.encode(result).decode())
    elif result.failure:
        _write(f"seed {seed}: {result.failure}")
    else:
        _write(
            f"seed {seed} held: {len(script)} deeds, {result.accepted} accepted submissions, "
            f"{result.elections} elections, {result.virtual_s:g} virtual seconds, "
            f"{result.events} events, digest {result.digest}"
        )
    raise typer.Exit(1 if result.failure else 0)


def _indices(text: str, count: int) -> list[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            start, end = int(first), int(last if dash else first)
        except ValueError:
            raise _wrong(f"--only {text!r}: numbers and ranges, as 0,3,7-9") from None
        if not 0 <= start <= end < count:
            raise _wrong(f"--only {text}: the script has the deeds 0 to {count - 1}")
        chosen.update(range(start, end + 1))
    return sorted(chosen)


@app.command()
def mutants(
    name: Annotated[str, typer.Argument(help="One mutant; left out, all of them.")] = "",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes; 0: one for each core.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="Only list them.")] = False,
) -> None:
    """Break the product on purpose, and show that a few seeds find each break."""
    if name and name not in MUTANTS:
        raise _wrong(f"no mutant {name!r}; there are: {', '.join(MUTANTS)}")
    escaped: list[str] = []
    for mutant in MUTANTS.values():
        if name not in {"", mutant.name}:
            continue
        if show:
            _write(f"{mutant.name:32} {mutant.what} (within {mutant.found_within} seeds)")
            continue
        found = next((r for r in run_seeds(mutant.seeds(), jobs, mutant.name) if r.failure), None)
        if found is None:
            escaped.append(mutant.name)
            _write(f"{mutant.name}: NOT FOUND within {mutant.found_within} seeds")
        else:
            _write(f"{mutant.name}: found by seed {found.seed}: {found.failure.splitlines()[0]}")
    if not show:
        _write(f"{len(escaped)} mutants escaped" if escaped else "every mutant was found")
    raise typer.Exit(1 if escaped else 0)


@app.command()
def scenario(
    folders: Annotated[list[Path], typer.Argument(help="Folders, as tests/scenarios/leader-dies.")],
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write what happened as what is expected.")
    ] = False,
) -> None:
    """Play stories written by hand, and compare what follows with what is expected."""
    wrong = 0
    for folder in folders:
        try:
            told = tell_scenario(load(folder))
        except InvalidRequest as error:
            raise _wrong(error.message) from None
        expected = expected_of(folder)
        if told.result.failure:
            wrong += 1
            _write(f"{folder.name}: {told.result.failure}")
        elif rewrite:
            (folder / "expected.txt").write_text("\n".join(told.lines) + "\n")
            _write(f"{folder.name}: written, {len(told.lines)} lines")
        elif expected is None:
            wrong += 1
            _write(f"{folder.name}: nobody has said what is expected; see --rewrite")
        elif expected != told.lines:
            wrong += 1
            changes = difflib.unified_diff(expected, told.lines, "expected", "told", lineterm="")
            _write(f"{folder.name}: it went otherwise\n" + "\n".join(changes))
        else:
            _write(f"{folder.name}: as expected")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def scale(
    hosts: Annotated[int, typer.Option("--hosts", help="Hosts.")] = 10_000,
    vms: Annotated[int, typer.Option("--vms", help="VMs that run at the start.")] = 100_000,
    managers: Annotated[int, typer.Option("--managers", help="Group managers.")] = 100,
    hours: Annotated[float, typer.Option("--hours", help="Virtual hours with faults.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="The seed.")] = 1,
    heartbeat_s: Annotated[
        float, typer.Option("--heartbeat", help="heartbeat.interval_s of the daemons.")
    ] = 1.0,
    output: Output = "text",
) -> None:
    """A large cluster with load and faults: whether all holds, and what the leader spends."""
    _check_output(output)
    endless = not 0 <= hours < math.inf
    if min(hosts, managers) < 1 or not 0 <= vms <= 16 * hosts or endless or seed < 0:
        raise _wrong("at least a host and a manager, at most 16 VMs a host, and no negative number")
    if not 0.05 <= heartbeat_s <= 60:
        raise _wrong(f"--heartbeat {heartbeat_s:g}: 0.05 to 60 seconds")
    size = Size(hosts, vms, managers, hours, seed, heartbeat_s=heartbeat_s)
    result = Scale(size, _write if output == "text" else lambda _line: None).go()
    if output == "json":
        _write(msgspec.json.encode(result).decode())
    else:
        _write(
            f"{hosts} hosts, {vms} VMs, {managers} managers: {result.virtual_s / 60:.0f} virtual "
            f"minutes in {result.wall_s:.0f} s ({result.cpu_s:.0f} s CPU); {result.faults} faults, "
            f"{result.elections} elections, {result.accepted} accepted submissions, "
            f"{result.restarted} VMs restarted; whole again after {result.converged_s:.0f} s, "
            f"{result.dark_hosts} empty hosts left off, {result.kept_vms} VMs whose removal failed"
        )
        for name, work in (
            ("forming", result.forming),
            ("steady", result.steady),
            ("with load and faults", result.troubled),
        ):
            per_s = max(work.virtual_s, 1e-9)
            _write(
                f"  leader, {name}: {work.cpu_ms_per_s:.1f} ms CPU, {work.events / per_s:.0f} "
                f"events, {work.frames / per_s:.1f} frames a second, at most "
                f"{work.longest_s * 1000:.0f} ms CPU in one event"
            )
        change = result.change
        _write(
            f"  leader killed: submissions served after {change.served_s:.1f} s (and "
            f"{change.served_cpu_s:.1f} s CPU of the next one), all whole after "
            f"{change.whole_s:.1f} s ({change.whole_cpu_s:.1f} s CPU, at most "
            f"{change.longest_s * 1000:.0f} ms in one event)"
        )
        _write(f"FAILED: {result.failure}" if result.failure else "all held")
    raise typer.Exit(1 if result.failure else 0)


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
