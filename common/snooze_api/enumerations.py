"""Every enumeration of Snooze's API; a member's value is what stands on the wire."""

import enum


class VirtualMachineStatus(enum.StrEnum):
    """What a VM does. Unknown and vanished VMs are OFFLINE."""

    UNKNOWN = "UNKNOWN"
    ERROR = "ERROR"
    OFFLINE = "OFFLINE"
    PAUSED = "PAUSED"
    RUNNING = "RUNNING"
    SHUTDOWN_PENDING = "SHUTDOWN_PENDING"


class VirtualMachineErrorCode(enum.StrEnum):
    """Why a VM did not start; UNKNOWN means that there is no error."""

    UNKNOWN = "UNKNOWN"
    NOT_ENOUGH_IP_ADDRESSES = "NOT_ENOUGH_IP_ADDRESSES"
    NOT_ENOUGH_LOCAL_CONTROLLER_CAPACITY = "NOT_ENOUGH_LOCAL_CONTROLLER_CAPACITY"
    UNABLE_TO_START_ON_LOCAL_CONTROLLER = "UNABLE_TO_START_ON_LOCAL_CONTROLLER"
    FAILED_TO_UPDATE_REPOSITORY = "FAILED_TO_UPDATE_REPOSITORY"
    ALREADY_RUNNING = "ALREADY_RUNNING"
    UNABLE_TO_START_ON_GROUP_MANAGER = "UNABLE_TO_START_ON_GROUP_MANAGER"
    UNABLE_TO_COLLECT_GROUP_MANAGER_RESPONSE = "UNABLE_TO_COLLECT_GROUP_MANAGER_RESPONSE"
    NOT_ENOUGH_GROUP_MANAGER_CAPACITY = "NOT_ENOUGH_GROUP_MANAGER_CAPACITY"
    LOCAL_CONTROLLER_WAKEUP_FAILED = "LOCAL_CONTROLLER_WAKEUP_FAILED"
    FAILED_TO_START_MONITORING = "FAILED_TO_START_MONITORING"
    FAILED_TO_START_ON_HYPERVISOR = "FAILED_TO_START_ON_HYPERVISOR"
    INVALID_SUBMISSION_RESPONSE = "INVALID_SUBMISSION_RESPONSE"
    INVALID_HOST_ID = "INVALID_HOST_ID"


class VirtualClusterErrorCode(enum.StrEnum):
    """Why a whole submission failed."""

    GENERAL_EXCEPTION = "GENERAL_EXCEPTION"
    DISPATCH_PLAN_IS_INVALID = "DISPATCH_PLAN_IS_INVALID"
    UNABLE_TO_PARSE_VIRTUAL_MACHINE_TEMPLATE = "UNABLE_TO_PARSE_VIRTUAL_MACHINE_TEMPLATE"
    GROUP_MANAGERS_MISSING = "GROUP_MANAGERS_MISSING"


class LocalControllerStatus(enum.StrEnum):
    """PASSIVE: put to sleep by the energy saver; WOKENUP: woken, not back yet."""

    ACTIVE = "ACTIVE"
    PASSIVE = "PASSIVE"
    WOKENUP = "WOKENUP"
    UNKNOWN = "UNKNOWN"


class NodeRole(enum.StrEnum):
    """The three daemons."""

    BOOTSTRAP = "bootstrap"
    GROUP_MANAGER = "groupmanager"
    LOCAL_CONTROLLER = "localcontroller"


class HypervisorDriver(enum.StrEnum):
    """How a libvirt connection string begins."""

    TEST = "test"
    XEN = "xen"
    UML = "uml"
    LXC = "lxc"
    VBOX = "vbox"
    OPENVZ = "openvz"
    QEMU = "qemu"
    KVM = "kvm"
    ESX = "esx"


class HypervisorTransport(enum.StrEnum):
    """How libvirt is reached."""

    TCP = "tcp"
    SSH = "ssh"
    TLS = "tls"


class MigrationMethod(enum.StrEnum):
    """How a VM is moved."""

    LIVE = "live"
    NO_SHARED_FULL = "nosharedfull"
    NO_SHARED_INCREMENTAL = "nosharedincremental"
    FORCE_UNSAFE = "forceunsafe"


class WakeupDriver(enum.StrEnum):
    """How a host is woken."""

    IPMI = "IPMI"
    WOL = "WOL"
    KAPOWER3 = "kapower3"
    TEST = "test"


class ShutdownDriver(enum.StrEnum):
    """How a host is turned off."""

    IPMI = "IPMI"
    SYSTEM = "system"
    TEST = "test"


class SuspendDriver(enum.StrEnum):
    """How a host is suspended."""

    PMUTILS = "pmutils"
    USWSUSP = "uswsusp"


class PowerSavingAction(enum.StrEnum):
    """What is done to an idle host."""

    SHUTDOWN = "shutdown"
    SUSPEND_TO_RAM = "suspendToRam"
    SUSPEND_TO_DISK = "suspendToDisk"
    SUSPEND_TO_BOTH = "suspendToBoth"


class LocalControllerState(enum.StrEnum):
    """What the monitoring of a host says; ANOMALY came with 3.0."""

    STABLE = "STABLE"
    OVERLOADED = "OVERLOADED"
    UNDERLOADED = "UNDERLOADED"
    ANOMALY = "ANOMALY"


class SystemState(enum.StrEnum):
    """What a group manager is busy with."""

    IDLE = "IDLE"
    MANAGEMENT = "MANAGEMENT"
    ENERGYSAVER = "ENERGYSAVER"
    RELOCATION = "RELOCATION"
    RECONFIGURATION = "RECONFIGURATION"


class VirtualMachineCommand(enum.StrEnum):
    """What can be asked of a VM."""

    SUSPEND = "SUSPEND"
    RESUME = "RESUME"
    SHUTDOWN = "SHUTDOWN"
    REBOOT = "REBOOT"
    DESTROY = "DESTROY"
    MIGRATE = "MIGRATE"
    RESIZE = "RESIZE"


class DiskHostingType(enum.StrEnum):
    """Where a VM's master image lies."""

    BACKING = "backing"
    LOCAL_BACKING = "localBacking"


class DatabaseType(enum.StrEnum):
    """Where the original kept its monitoring data."""

    MEMORY = "memory"
    CASSANDRA = "cassandra"


class Assignment(enum.StrEnum):
    """Which group manager a joining host is given to."""

    RANDOM = "Random"
    ROUND_ROBIN = "RoundRobin"


class Dispatching(enum.StrEnum):
    """Which group manager a VM is given to."""

    FIRST_FIT = "FirstFit"
    ROUND_ROBIN = "RoundRobin"


class SortNorm(enum.StrEnum):
    """How vectors are compared."""

    L1 = "L1"
    EUCLID = "Euclid"
    MAX = "Max"


class Estimator(enum.StrEnum):
    """How demand is estimated from samples."""

    AVERAGE = "average"


class SystemMessageType(enum.StrEnum):
    """Events of the hierarchy, as the notifier names them."""

    GL_JOIN = "GL_JOIN"
    GL_FAILED = "GL_FAILED"
    GM_JOIN = "GM_JOIN"
    GM_FAILED = "GM_FAILED"
    LC_JOIN = "LC_JOIN"
    LC_FAILED = "LC_FAILED"
    GL_SUMMARY = "GL_SUMMARY"
    LC_ANOMALY = "LC_ANOMALY"
    RECONFIGURATION = "RECONFIGURATION"
    GM_BUSY = "GM_BUSY"
    GM_IDLE = "GM_IDLE"
    ENERGY = "ENERGY"


class ManagementMessageType(enum.StrEnum):
    """How far a command on a VM has come, as the notifier names it."""

    PENDING = "PENDING"
    ERROR = "ERROR"
    PROCESSED = "PROCESSED"
