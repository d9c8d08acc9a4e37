"""``python -m tests.integration.chaos --rounds 100``: faults on real processes, round after round.

Each round inflicts what ``faults.schedule`` says for its number and heals it, while clients submit
and destroy; then everything must be whole again, and all that the clients were told must be true.
The last line is the result; the exit code is 0 or 1. Root is needed.
"""

import argparse
import asyncio
import random
import sys
import time
import traceback
from contextlib import AsyncExitStack

from tests.integration.chaos.faults import FAULTS, LONG_S, schedule
from tests.integration.chaos.history import SLOW_S, History
from tests.integration.chaos.world import World


def say(text: str) -> None:
    """One line for whoever looks on."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def one_round(world: World, names: tuple[str, ...], chance: random.Random) -> str:
    """Inflict, hold, heal; what was done to whom."""
    told: list[str] = []
    async with AsyncExitStack() as stack:
        for name in names:
            victim = await stack.enter_async_context(FAULTS[name](world, chance))
            told.append(f"{name} ({victim})")
            await asyncio.sleep(chance.uniform(0.0, 0.5))
        await asyncio.sleep(chance.choice([chance.uniform(0.2, LONG_S), LONG_S]))
    return ", ".join(told)


async def run(options: argparse.Namespace) -> int:
    """All rounds; the number of those that failed."""
    world = World()
    failed = 0
    plan = schedule(options.seed, options.rounds)
    if options.plan:
        plan = [
            tuple(name.strip() for name in names.split(",")) for names in options.plan.split(";")
        ]
    history = History(world, options.seed)
    try:
        await world.build()
        say(f"seed {options.seed}: the cluster stands; logs in {world.folder}")
        started_s = time.monotonic()
        for number, names in enumerate(plan, 1):
            begun_s = time.monotonic()
            history.start()
            chance = random.Random(options.seed * 100_003 + number)
            said = ", ".join(names)
            try:
                said = await one_round(world, names, chance)
                healed_s = time.monotonic()
                await world.wait_whole()
                whole_s = time.monotonic()
                for doing in (history.stop, history.check):
                    await doing()
                    for slow in history.slow:
                        say(f"  {doing.__name__}, after {SLOW_S:g} s still: {slow}")
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told, counted
                failed += 1
                say(f"round {number} FAILED: {said}: {error}")
                say(world.story(str(error)))
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
                break
            figures = history.summary()
            say(
                f"round {number:3} ok: {said}; whole {whole_s - healed_s:.1f} s after it healed, "
                f"{time.monotonic() - begun_s:.1f} s in all; "
                f"{figures['acknowledged']:.0f} acknowledged so far, "
                f"{figures['reported_failed']:.0f} VMs reported failed"
            )
            if options.seconds and time.monotonic() - started_s > options.seconds:
                plan = plan[:number]
                break
        figures = history.summary()
        say(
            f"chaos: seed {options.seed}, {len(plan)} rounds, {failed} failed; "
            f"{figures['submissions']:.0f} submissions, {figures['acknowledged']:.0f} acknowledged "
            f"({figures['vms']:.0f} VMs), {figures['refused']:.0f} refused, "
            f"{figures['reported_failed']:.0f} VMs reported failed, "
            f"{figures['destroyed']:.0f} destroyed; "
            f"longest answer {figures['longest_answer_s']:.1f} s",
        )
        for reason, times in history.reasons().most_common(20):
            say(f"  {times} VMs reported failed: {reason}")
        return failed
    finally:
        if failed and not options.keep:
            say(world.logs())
        await world.close(keep=options.keep)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no round after so long")
    parser.add_argument(
        "--plan", default="", help="faults by name, with commas; rounds with semicolons"
    )
    parser.add_argument("--keep", action="store_true", help="keep all logs, and print none")
    return 1 if asyncio.run(run(parser.parse_args())) else 0


if __name__ == "__main__":
    sys.exit(main())
