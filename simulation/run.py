"""One run: a world that forms, a script that troubles it, healing, and the judgement."""

import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from snooze.simulation.clients import Clients
from snooze.simulation.deeds import Deed
from snooze.simulation.doing import Doer
from snooze.simulation.invariants import Breach, Invariants
from snooze.simulation.world import Shape, Story, World, ruled

FORM_S = 30.0
"""A healthy cluster forms within this, or the run has failed."""
CONVERGE_S = 240.0
"""After everything has healed, all must agree within this: the longest single wait of the daemons
(a start's 60 s in these settings, a lost host's 60 s, a boot) and what it may be followed by."""
LOOK_S = 5.0
SLEEPY_LOOKS = 3
"""Once all agree the next look finds it so; where hosts go to sleep by themselves, which takes
moments, one of so many."""

MANAGERS = (("submission", {"start_timeout_s": 60.0}),)
HOSTS = (("monitoring", {"interval_s": 5.0}),)
"""The settings of drawn runs that differ from the defaults."""

LEASES = (("recovery", {"margin_s": 5.0}),)
"""``margin_s`` is what a guard takes at most that is paused while libvirt hangs."""
TERMS_S = {"some": (2.0,), "all": (2.0, 12.0, 4.0)}
"""Short leases, so that some end within a run; in some worlds the managers do not agree."""

SLEEPS = (
    (
        "energy",
        {
            "enabled": True,
            "idle_s": 3.0,
            "wake_s": 25.0,
            "min_on_s": 5.0,
            "min_off_s": 3.0,
            "down_timeout_s": 15.0,
            "wake_timeout_s": 40.0,
        },
    ),
)
"""Hosts sleep soon, so that some do within a run; a boot takes 20 s here (``world.BOOT_S``)."""
SLEEPY_S = 75.0
"""How long those worlds live before they heal: to fall asleep and to boot takes its time."""

DRAWN = Shape(managers_settings=MANAGERS, hosts_settings=HOSTS)


def managers_settings(*, leases: bool, sleeps: bool) -> tuple[tuple[str, object], ...]:
    """The managers' settings of a world with such hosts."""
    return (*MANAGERS, *(LEASES if leases else ()), *(SLEEPS if sleeps else ()))


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run went. ``failure`` is empty when all held; ``digest`` is equal for equal runs."""

    seed: int
    failure: str = ""
    virtual_s: float = 0.0
    events: int = 0
    digest: str = ""
    faults: int = 0
    submissions: int = 0
    accepted: int = 0
    converged_s: float = 0.0
    elections: int = 0
    sleeps: int = 0
    """How often a host went to sleep."""


@dataclass
class Run:
    """A run and what is left of it to look at."""

    seed: int
    script: Sequence[Deed]
    shape: Shape = DRAWN
    length_s: float = 25.0
    chatty: bool = False
    listener: Callable[[float, str, str], None] | None = None
    prepare: Callable[[World], None] = lambda _world: None
    at_end: Callable[[World], None] = lambda _world: None
    story: Story = field(default_factory=Story)

    def go(self) -> Result:
        """Run it to its end.

        Processes that were killed closed nothing: what they leave is collected here, where nobody
        is warned of it.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            # A run makes much garbage, quickly, and has memory enough: it is collected at its end,
            # and what was there before it is not looked at.
            was_enabled = gc.isenabled()
            gc.disable()
            gc.collect()  # Of the run before this, what its end could not free yet.
            gc.freeze()
            try:
                result = self._go()
            finally:
                gc.collect()
                gc.unfreeze()
                if was_enabled:
                    gc.enable()
        return result

    def _go(self) -> Result:
        world = World(self.shape, self.seed)
        world.story = self.story
        self.story.listener = self.listener
        with ruled(world, chatty=self.chatty):
            clients = Clients(world)
            invariants = Invariants(world, clients)
            self.prepare(world)
            failure, converged_s = "", 0.0
            try:
                converged_s = self._live(world, clients, invariants)
            except Breach as breach:
                failure = str(breach)
                world.tell("!!", failure)
            self.at_end(world)
            result = Result(
                self.seed,
                failure,
                round(world.now_s, 3),
                world.schedule.events,
                f"{world.schedule.digest:016x}",
                len([deed for deed in self.script if deed.verb != "submit"]),
                len(clients.submissions),
                len(clients.acked),
                round(converged_s, 3),
                invariants.epoch + 1,
                world.sleepers.fell,
            )
            clients.close()
            world.close()
        return result

    def _live(self, world: World, clients: Clients, invariants: Invariants) -> float:
        world.start()
        deadline_s = world.schedule.now_s + FORM_S
        while left := invariants.disagreements():
            if world.schedule.now_s >= deadline_s:
                raise Breach(f"the cluster does not form: {'; '.join(left)}")
            world.run_for(0.5)
        world.tell("--", "the cluster has formed")
        doer = Doer(world, clients, invariants.ghosts, invariants.check_guests)
        doer.plan(list(self.script))
        world.run_for(self.length_s)
        doer.heal()
        healed_s = world.schedule.now_s
        # A lease from before may still run out, and its host fence itself (seed 40423).
        world.run_for(max(self.shape.terms_s, default=0.0))
        while left := invariants.disagreements():
            if world.schedule.now_s - healed_s >= CONVERGE_S:
                listed = "\n  ".join(left)
                raise Breach(f"no agreement {CONVERGE_S:g} s after everything healed:\n  {listed}")
            world.run_for(LOOK_S)
        converged_s = world.schedule.now_s - healed_s
        sleepy = SLEEPS[0] in self.shape.managers_settings
        for _ in range(SLEEPY_LOOKS if sleepy else 1):
            world.run_for(LOOK_S)
            if not (left := invariants.disagreements(steady=False)):
                break
        else:
            raise Breach(f"it did not last: {'; '.join(left)}")
        world.tell("--", f"all agree, {converged_s:.0f} s after everything healed")
        return converged_s


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a seed's world is like, before its script."""

    shape: Shape
    length_s: float
    trouble: float


def recipe_of(seed: int) -> Recipe:
    """Worlds of several sizes, by the seed: hosts that fence themselves or not, sleep or not."""
    size = seed % 4
    leases = ("", "some", "", "", "some", "all")[seed // 4 % 6]
    sleeps = seed // 24 % 3 == 2
    shape = Shape(
        hosts=(4, 3, 6, 4)[size],
        managers=(3, 2, 4, 3)[size],
        managers_settings=managers_settings(leases=bool(leases), sleeps=sleeps),
        hosts_settings=HOSTS,
        leases=leases,
        terms_s=TERMS_S.get(leases, ()),
        sleeps=sleeps,
        late_events=seed % 5 == 2,
    )
    length_s = (25.0, 25.0 if leases else 20.0, 30.0, 25.0)[size]
    if shape.sleeps:
        length_s = SLEEPY_S
    return Recipe(shape, length_s, (1.0, 1.5, 1.0, 0.5)[size])
