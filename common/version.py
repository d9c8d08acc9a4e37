"""The version of this installation."""

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("snooze")
    except metadata.PackageNotFoundError:
        return "0+unknown"


VERSION = _installed()
