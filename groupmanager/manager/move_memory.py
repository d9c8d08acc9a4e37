"""Who moved lately, so that nothing goes back and forth; see rule 5 of ``autonomy_core.py``."""

from types import MappingProxyType

from snooze.scheduling.relocation import Hold, MovedVm


class MoveMemory:
    """Moves of one manager's VMs, whoever wanted them; what is past is dropped."""

    def __init__(self, hold_s: float, cool_down_s: float) -> None:
        """``hold_s``: of a VM that moved; ``cool_down_s``: of a host that was relieved."""
        self._hold_s = hold_s
        self._cool_down_s = cool_down_s
        self._failed: dict[str, float] = {}
        self.hold = Hold()

    def moved(self, key: str, source: str, now_s: float) -> None:
        """A VM has left a host."""
        vms = {key: MovedVm(now_s + self._hold_s, source)}
        self.hold = self.hold.after(now_s, MappingProxyType(vms), MappingProxyType({}))

    def told(self, key: str, source: str, moved_s: float, now_s: float) -> None:
        """The leader says that a VM left a host then; whoever saw it move later knows better."""
        known = self.hold.vms.get(key)
        until_s = moved_s + self._hold_s
        if until_s > now_s and (known is None or known.until_s < until_s):
            vms = {key: MovedVm(until_s, source)}
            self.hold = self.hold.after(now_s, MappingProxyType(vms), MappingProxyType({}))

    def relieved(self, source: str, target: str, now_s: float) -> None:
        """A VM leaves a host because that is overloaded."""
        until_s = now_s + self._cool_down_s
        hosts = MappingProxyType({source: until_s, target: until_s})
        self.hold = self.hold.after(now_s, MappingProxyType({}), hosts)

    def told_relieved(self, host_id: str, at_s: float, now_s: float) -> None:
        """The leader says that a host took part in relieving an overload then."""
        until_s = at_s + self._cool_down_s
        if until_s > max(now_s, self.hold.hosts.get(host_id, now_s)):
            hosts = MappingProxyType({host_id: until_s})
            self.hold = self.hold.after(now_s, MappingProxyType({}), hosts)

    def failed(self, key: str, at_s: float, now_s: float) -> None:
        """A VM could not be moved then."""
        self._failed = {each: until_s for each, until_s in self._failed.items() if until_s > now_s}
        self._failed[key] = max(at_s + self._hold_s, self._failed.get(key, now_s))

    def stuck(self, now_s: float) -> set[str]:
        """VMs that could not be moved lately."""
        return {key for key, until_s in self._failed.items() if until_s > now_s}

    def resting(self, now_s: float) -> set[str]:
        """VMs that moved lately."""
        return {key for key, moved in self.hold.vms.items() if moved.until_s > now_s}
