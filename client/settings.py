"""Where the cluster is: what a client knows before its first call.

Looked up in this order, the first one wins: what the program hands in (``--url``), the environment
variable ``SNOOZE_URL``, ``url`` in ``~/.config/snooze/client.toml``, and at last
``http://127.0.0.1:5000``, where ``snooze up`` listens.

Each may name several front doors, separated by commas (in the file also a list): any one that
answers will do.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from snooze.common.errors import Problem, SettingsError

DEFAULT_ADDRESS: Final = "http://127.0.0.1:5000"
DEFAULT_PORT: Final = 5000
ENVIRONMENT_KEY: Final = "SNOOZE_URL"
MAX_ADDRESSES: Final = 64

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def addresses_from(text: str | Iterable[str], *, where: str = "url") -> tuple[str, ...]:
    """Front doors as ``http://host:port``, in the order given, without repeats.

    ``text`` is one or several of ``host``, ``host:port``, ``http://host:port`` or
    ``https://host:port``, separated by commas. A port left out is 5000 (443 with https).

    Raises:
        SettingsError: names every address that is none of these.
    """
    parts = [text] if isinstance(text, str) else list(text)
    candidates = [piece.strip() for part in parts for piece in part.split(",") if piece.strip()]
    problems: list[Problem] = []
    found: dict[str, None] = {}
    if not candidates:
        problems.append(Problem(where, "names no address"))
    if len(candidates) > MAX_ADDRESSES:
        problems.append(Problem(where, f"names more than {MAX_ADDRESSES} addresses"))
    for candidate in candidates[:MAX_ADDRESSES]:
        try:
            found[_normal(candidate)] = None
        except ValueError as error:
            problems.append(Problem(where, str(error)))
    if problems:
        raise SettingsError("the address of the cluster is wrong", problems=problems)
    return tuple(found)


def find_addresses(
    given: str | Iterable[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    config_path: Path | None = None,
) -> tuple[str, ...]:
    """The front doors to try, by the order of this module.

    Raises:
        SettingsError: if the first source that says something says it wrongly.
    """
    if given:
        return addresses_from(given)
    environment = os.environ if environment is None else environment
    from_environment = environment.get(ENVIRONMENT_KEY, "").strip()
    if from_environment:
        return addresses_from(from_environment, where=ENVIRONMENT_KEY)
    path = config_path or default_config_path(environment)
    from_file = _read_config(path)
    if from_file is not None:
        return addresses_from(from_file, where=f"{path}: url")
    return (DEFAULT_ADDRESS,)


def default_config_path(environment: Mapping[str, str]) -> Path:
    """``snooze/client.toml`` under ``XDG_CONFIG_HOME`` or ``~/.config``."""
    base = environment.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "snooze" / "client.toml"


def _read_config(path: Path) -> str | list[str] | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    problems = [
        Problem(key, "is not known here; the only key is 'url'") for key in table if key != "url"
    ]
    value: object = table.get("url")
    addresses: str | list[str] | None = None
    if isinstance(value, str):
        addresses = value
    elif isinstance(value, list):
        addresses = [str(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    elif value is not None:
        problems.append(Problem("url", "has to be a text or a list of texts"))
    if problems:
        raise SettingsError(f"{path} is wrong", problems=problems)
    return addresses


def _normal(text: str) -> str:
    """One address in its normal form, or ValueError with a sentence for people."""
    complete = text if _SCHEME.match(text) else f"http://{text}"
    try:
        parts = urlsplit(complete)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{text!r} has to begin with http:// or https://")
    if not parts.hostname or re.search(r"[\s\x00-\x1f]", text):
        raise ValueError(f"{text!r} names no host")
    if parts.username or parts.password:
        raise ValueError(f"{parts.hostname}: an address cannot carry a user or a password")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r} has to end after the port")
    if port is None:
        port = 443 if parts.scheme == "https" else DEFAULT_PORT
    if port == 0:
        raise ValueError(f"{text!r} has no port between 1 and 65535")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
