"""``python -m snooze.scheduling``: look again at a decision that was written down.

* ``replay FILE``: decide again; print the plan and why, and whether it is the plan of the file;
  of a decision in several steps (``steps.py``) each, with ``--json`` as a list.
* ``explain FILE [--vm NAME]``: for each VM, how every host fared.
* ``dry-run FILE``: what each policy would do.
* ``policies``: what there is to choose from.

Policies of plug-ins are known by their names: those of installed packages (entry points), and those
of ``--plugins DIRECTORY``.

Exit codes: 0; 1 if the plan differs from the file's or breaks a rule; 2 if the file or the
arguments make no sense.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from snooze.scheduling import dry_run, dump, explain, plugins, rulings, steps
from snooze.scheduling.check import check_plan
from snooze.scheduling.deciding import DecisionKind
from snooze.scheduling.dump import Decision, DumpError
from snooze.scheduling.plans import Plan
from snooze.scheduling.policies import Catalogue, PlacementPolicy, PolicyError
from snooze.scheduling.snapshot import NONE, Snapshot
from snooze.scheduling.units import UnitFailed


def main(arguments: list[str]) -> int:
    """Run one command; see the top of this file."""
    options = _parser().parse_args(arguments)
    loaded = options.loaded = plugins.for_plans(options.plugins or "")
    catalogue = loaded.catalogue
    for problem in loaded.problems:
        sys.stderr.write(f"{problem.where}: {problem.message}\n")
    if options.command == "policies":
        return _policies(catalogue)
    file: str = options.file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        texts = steps.texts_of(text)
        if options.command == "replay":
            return _replay_all(texts, options, catalogue)
        plans = [each for each in texts if rulings.replay(each) is None]
        if not plans:
            raise DumpError("a decision without a plan can only be replayed")
        decision = _decision(plans[-1], options, catalogue)
    except (PolicyError, UnitFailed, OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        sys.stderr.write(f"{file}: {why}\n")
        return 2
    _tell_problems(decision)
    match options.command:
        case "explain":
            return _explain(decision, options.vm, as_json=options.json)
        case _:
            return _dry_run(decision.snapshot, catalogue)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m snooze.scheduling", description="Look again at a recorded decision."
    )
    parser.add_argument(
        "--plugins", metavar="DIRECTORY", help="plug-ins besides those of installed packages"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("replay", "decide again; print the plan and why"),
        ("explain", "how every host fared, for each VM"),
        ("dry-run", "what each policy would do"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("file", help="a decision, as written by snooze.scheduling.dump")
        command.add_argument("--policy", help="decide by this one instead of the file's")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "explain":
            command.add_argument("--vm", help="only this VM")
    commands.add_parser("policies", help="list policies, filters, weights and balancers")
    return parser


def _decision(text: str, options: argparse.Namespace, catalogue: Catalogue) -> Decision:
    decision = dump.load(text, catalogue)
    if options.policy is None:
        return decision
    policy: PlacementPolicy = catalogue.policy(options.policy)
    return replace(decision, policy=policy, placement=None)


def _replay_all(texts: list[str], options: argparse.Namespace, catalogue: Catalogue) -> int:
    """Replay each step of a decision; the worst of the exit codes. Raises: likewise."""
    several = options.json and len(texts) > 1
    codes: list[int] = []
    for number, each in enumerate(texts):
        if several:
            sys.stdout.write("[" if number == 0 else ",")
        codes.append(_replay_step(each, options, catalogue))
    if several:
        sys.stdout.write("]\n")
    return max(codes)


def _replay_step(text: str, options: argparse.Namespace, catalogue: Catalogue) -> int:
    """Replay one step of a decision. Raises: PolicyError, ValueError."""
    ruling = rulings.replay(text)
    if ruling is not None:
        return replay_ruling(ruling, as_json=options.json)
    decision = _decision(text, options, catalogue)
    _tell_problems(decision)
    return _replay(decision, options.loaded, as_json=options.json)


def _tell_problems(decision: Decision) -> None:
    for problem in decision.snapshot.problems:
        sys.stderr.write(f"{problem.where}: {problem.message}\n")


def _replay(decision: Decision, loaded: plugins.Plugins | None, *, as_json: bool) -> int:
    snapshot = decision.snapshot
    plan = decision.decide(loaded)
    violations = check_plan(snapshot, plan)
    same = decision.placement is None or bool((plan.placement == decision.placement).all())
    if as_json:
        document = dump.plan_document(snapshot, plan)
        document["same_as_recorded"] = same if decision.placement is not None else None
        document["violations"] = [f"{each.rule.value}: {each.message}" for each in violations]
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        sys.stdout.write(_plan_text(decision, plan) + "\n")
        for each in violations:
            sys.stdout.write(f"BROKEN {each.rule.value}: {each.message}\n")
        if decision.placement is None:
            sys.stdout.write("no plan is recorded to compare it with\n")
        else:
            sys.stdout.write(f"{'the same' if same else 'NOT the same'} as recorded\n")
    return 0 if same and not violations else 1


def replay_ruling(ruling: rulings.Replayed, *, as_json: bool) -> int:
    """Print what is decided of a ruling's question now; the exit code."""
    if as_json:
        answer, question = map(msgspec.to_builtins, (ruling.answer, ruling.question))
        document = {
            "kind": ruling.kind,
            "question": question,
            "answer": answer,
            "same_as_recorded": ruling.is_same,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in ruling.lines())
        sys.stdout.write(f"{'the same' if ruling.is_same else 'NOT the same'} as recorded\n")
    return 0 if ruling.is_same else 1


def _plan_text(decision: Decision, plan: Plan) -> str:
    snapshot = decision.snapshot
    changed = [
        vm
        for vm, (old, new) in enumerate(
            zip(snapshot.placement.tolist(), plan.placement.tolist(), strict=True)
        )
        if old != new
    ]
    lines = [
        f"{decision.kind.value} by {plan.policy}: {snapshot.hosts} hosts, {snapshot.vms} VMs, "
        f"{len(changed)} get another host, {len(plan.reasons)} do not"
    ]
    for vm in changed:
        old, new = int(snapshot.placement[vm]), int(plan.placement[vm])
        origin = "" if old == NONE else f"{snapshot.host_ids[old]} -> "
        lines.append(f"  {snapshot.vm_ids[vm]}: {origin}{snapshot.host_ids[new]}")
    lines += [f"  {snapshot.vm_ids[each.vm]}: {each.message}" for each in plan.reasons]
    lines += [f"  wake {snapshot.host_ids[host]}" for host in plan.wakes]
    lines += [f"  sleep {snapshot.host_ids[host]}" for host in plan.sleeps]
    if decision.kind is DecisionKind.PLACEMENT:
        for each in explain.explain(snapshot, decision.policy, cursor=decision.cursor):
            lines.append(explain.text(snapshot, each, most=5))
    return "\n".join(lines)


def _explain(decision: Decision, vm_id: str | None, *, as_json: bool) -> int:
    snapshot = decision.snapshot
    vm: int | None = None
    if vm_id is not None:
        if vm_id not in snapshot.vm_ids:
            sys.stderr.write(f"no VM {vm_id!r} in the snapshot\n")
            return 2
        vm = snapshot.vm_ids.index(vm_id)
    found = explain.explain(snapshot, decision.policy, vm, cursor=decision.cursor)
    if as_json:
        sys.stdout.write(json.dumps([each.data() for each in found], indent=1) + "\n")
    else:
        sys.stdout.writelines(explain.text(snapshot, each) + "\n" for each in found)
        if not found:
            sys.stdout.write("no VM waits for a host; --vm ID tells how hosts compare for one\n")
    return 0


def _dry_run(snapshot: Snapshot, catalogue: Catalogue) -> int:
    outcomes = dry_run.dry_run(snapshot, catalogue)
    sys.stdout.write(
        f"{'policy':36}{'placed':>8}{'not':>6}{'moves':>7}{'hosts':>7}{'wake':>6}{'sleep':>7}"
        f"{'fullest':>9}\n"
    )
    for each in outcomes:
        sys.stdout.write(
            f"{each.policy:36}{each.placed:8}{each.unplaced:6}{each.moves:7}{each.hosts_used:7}"
            f"{each.wakes:6}{each.sleeps:7}{each.fullest:9.0%}\n"
        )
    return 1 if any(each.violations for each in outcomes) else 0


def _policies(catalogue: Catalogue) -> int:
    for title, table in (
        ("policies", catalogue.policies),
        ("filters", catalogue.filters),
        ("weights", catalogue.weights),
        ("balancers", catalogue.balancers),
    ):
        sys.stdout.write(f"{title}\n")
        for name, each in table.items():
            sys.stdout.write(f"  {name:24}{each.summary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
