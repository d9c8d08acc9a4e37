"""Loads the settings of a daemon: ``load(path, GroupManagerSettings)``.

Values are resolved in this order, the last one wins: the default of the type, the file, the
environment (``SNOOZE_SECTION__KEY``), the overrides handed in by a program. All mistakes of all of
them are reported at once.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from snooze.common import config_reader, legacy_config
from snooze.common.config_reader import Document
from snooze.common.errors import Problem, SettingsError
from snooze.common.settings import (
    BootstrapSettings,
    CoordinationSettings,
    HeartbeatSettings,
    HttpSettings,
    LogSettings,
    NetworkSettings,
    NodeSettings,
    Role,
)
from snooze.common.settings_groupmanager import (
    AddressSettings,
    GroupManagerNetworkSettings,
    GroupManagerSettings,
    GroupManagerTemplateSettings,
    HeadroomSettings,
    LeaderSettings,
    OvercommitSettings,
    PlacementSettings,
    SubmissionSettings,
)
from snooze.common.settings_localcontroller import (
    CapacitySettings,
    HypervisorSettings,
    ImageSettings,
    JoinSettings,
    LocalControllerNetworkSettings,
    LocalControllerSettings,
    LocalControllerTemplateSettings,
    MigrationSettings,
    MonitoringSettings,
    SimulatedHypervisorSettings,
)
from snooze.common.settings_power import PowerControlSettings, PowerDownSettings, WakeupSettings
from snooze.common.settings_templates import TemplateSettings

__all__ = [
    "ROOTS",
    "AddressSettings",
    "BootstrapSettings",
    "CapacitySettings",
    "CoordinationSettings",
    "GroupManagerNetworkSettings",
    "GroupManagerSettings",
    "GroupManagerTemplateSettings",
    "HeadroomSettings",
    "HeartbeatSettings",
    "HttpSettings",
    "HypervisorSettings",
    "ImageSettings",
    "JoinSettings",
    "LeaderSettings",
    "LocalControllerNetworkSettings",
    "LocalControllerSettings",
    "LocalControllerTemplateSettings",
    "LogSettings",
    "MigrationSettings",
    "MonitoringSettings",
    "NetworkSettings",
    "NodeSettings",
    "OvercommitSettings",
    "PlacementSettings",
    "PowerControlSettings",
    "PowerDownSettings",
    "Role",
    "Settings",
    "SimulatedHypervisorSettings",
    "SubmissionSettings",
    "TemplateSettings",
    "WakeupSettings",
    "load",
    "parse",
]

Settings = BootstrapSettings | GroupManagerSettings | LocalControllerSettings
RootT = TypeVar("RootT", bound=Settings)

ROOTS: dict[Role, type[Settings]] = {
    "bootstrap": BootstrapSettings,
    "groupmanager": GroupManagerSettings,
    "localcontroller": LocalControllerSettings,
}
"""The settings type of each role."""

_LOG = logging.getLogger(__name__)


def parse(
    text: str,
    root: type[RootT],
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    name: str = "settings",
) -> RootT:
    """Read settings from TOML, or from an original ``snooze_node.cfg``.

    Args:
        text: the file's content.
        root: which daemon's settings these are.
        environment: variables that may override keys; none unless given.
        overrides: tables of tables that override both: ``{"network": {"control_port": 0}}``.
        name: what the error calls the text.

    Raises:
        SettingsError: with every mistake in ``problems``, each naming its key.
    """
    document = _read(text, root().role, name)
    config_reader.merge_environment(document, root, environment or {}, others=ROOTS.values())
    config_reader.merge(document, overrides or {}, "set by the program")
    settings, problems = config_reader.build(document, root)
    if settings is None:
        raise settings_error(name, problems)
    return settings


def _read(text: str, role: Role, name: str) -> Document:
    """The values in the text, be it TOML or an original ``snooze_node.cfg``."""
    if not legacy_config.is_legacy(text):
        return config_reader.read_toml(text)
    legacy = legacy_config.read_legacy(text, role, ROOTS)
    ignored = sum(note.kind == "ignored" for note in legacy.notes)
    _LOG.warning(
        "%s is an original Snooze file: %d of its keys have no meaning here; "
        "'snooze check-config' names them",
        name,
        ignored,
    )
    return legacy.document


def load(
    path: str | Path,
    root: type[RootT],
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> RootT:
    """Read a settings file; ``environment`` is the process's own unless given.

    Raises:
        SettingsError: as ``parse``, and if the file cannot be read.
    """
    return parse(
        read_text(path),
        root,
        environment=os.environ if environment is None else environment,
        overrides=overrides,
        name=str(path),
    )


def read_text(path: str | Path) -> str:
    """The content of a settings file.

    Raises:
        SettingsError: if it cannot be read, is no text or is longer than any settings file.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(config_reader.MAX_FILE_BYTES + 1)
        if len(content) > config_reader.MAX_FILE_BYTES:
            raise SettingsError(f"{path}: longer than {config_reader.MAX_FILE_BYTES} bytes")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Java properties files are Latin-1 by definition.
        if legacy_config.is_legacy(text := content.decode("latin-1")):
            return text
        raise SettingsError(f"{path}: not UTF-8 text (byte {error.start})") from error


def settings_error(name: str, problems: list[Problem]) -> SettingsError:
    """One error that carries all problems; they are its notes, too, so that a traceback tells."""
    count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
    error = SettingsError(f"{name}: {count}", problems=problems)
    for problem in problems:
        error.add_note(f"  {problem.where}: {problem.message}")
    return error
