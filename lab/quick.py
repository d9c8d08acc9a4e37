"""A lab that decides in seconds what takes minutes in a machine room: ``snooze lab up --quick``.

Its hosts are small, so that a guest or two that burn are too much for one, and it saves energy.
``make lab-demo`` plays on such a lab.
"""

import dataclasses
from pathlib import Path
from typing import Final

from snooze.lab.cluster import LabPlan, merged
from snooze.lab.daemons import Tables

HOST_CORES: Final = 0.25
HOST_MEMORY_KIB: Final = 2 * 1024 * 1024

HOST: Final[Tables] = {"monitoring": {"interval_s": 1.0}}
MANAGER: Final[Tables] = {
    "monitoring": {"interval_s": 1.0},
    "placement": {"overcommit": {"cpu": 64.0}},
    "autonomy": {"interval_s": 1.0, "hold_s": 5.0, "cool_down_s": 1.0},
    "relocation": {
        "sustained_s": 3.0,
        "idle_s": 5.0,
        "relieved_hold_s": 10.0,
        "samples": 4,
        "forecast_s": 10.0,
        "thresholds": {"cpu": (0.3, 0.5, 0.6)},
    },
    "energy": {
        "enabled": True,
        "idle_s": 5.0,
        "min_on_s": 5.0,
        "min_off_s": 0.0,
        "reserved_hosts": 2,
        "reserve_cpu": 0.0,
        "reserve_memory": 0.0,
    },
}


def quickened(plan: LabPlan) -> LabPlan:
    """The same lab with hosts of a quarter of a core and 2 GiB, whatever this machine has.

    What the plan's own settings say goes before.
    """
    meminfo = Path("/proc/meminfo").read_text()
    total_kib = int(meminfo.split("MemTotal:")[1].split()[0])
    cores = len(Path("/proc/cpuinfo").read_text().split("processor\t:")) - 1
    capacity: dict[str, object] = {
        "reserved_memory_kib": float(max(0, total_kib - HOST_MEMORY_KIB)),
        "reserved_cpu_cores": cores - HOST_CORES,
    }
    host = merged(HOST, {"capacity": capacity})
    return dataclasses.replace(
        plan,
        quick=True,
        manager_settings=merged(MANAGER, plan.manager_settings),
        host_settings=merged(host, plan.host_settings),
    )
