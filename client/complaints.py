"""Errors as people read them: what went wrong, where, and what to do about it."""

from typing import Final

from snooze.client.errors import NoFrontDoor, StoreSilent
from snooze.client.terminal import error_console, plain
from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    NotLeader,
    RemoteError,
    RemoteTimeout,
    SettingsError,
    SnoozeError,
    StaleEpoch,
    TooBusy,
)

MAX_PROBLEMS: Final = 20

ADVICE: Final[dict[type[SnoozeError], str]] = {
    InvalidRequest: "Nothing was changed. Correct it and try again.",
    NotFound: (
        "See what there is with `snooze list`, `snooze hosts`, `snooze images`, `snooze tasks` or "
        "`snooze decisions`."
    ),
    Conflict: (
        "Nothing was changed. `snooze info NAME` tells the state of a VM, `snooze host show NAME` "
        "that of a host."
    ),
    NoCapacity: "Nothing was changed. `snooze hosts` tells where there is room.",
    TooBusy: "Nothing was changed. Try again in a moment.",
    NotLeader: "The cluster is electing a leader. Try again in a moment.",
    StaleEpoch: "The leader has just changed. Try again.",
    ExecutionError: (
        "It was tried, and part of it may have been done: `snooze list` tells what there is now."
    ),
    RemoteTimeout: ("It may have been done all the same: `snooze tasks` and `snooze list` tell."),
    RemoteError: "Try again; `snooze tasks` tells whether something was done.",
    NoFrontDoor: (
        "Start a cluster with `snooze up`, or say where yours is with --url or SNOOZE_URL."
    ),
    StoreSilent: (
        "See whether its servers run and the address is right, then repeat the command: an import "
        "goes on where it stood."
    ),
    SettingsError: "Nothing was started. Correct the settings and try again.",
}
"""What to do, by the class of the error."""


def complain(error: SnoozeError) -> None:
    """Write the error to standard error as one paragraph."""
    from rich.text import Text

    console = error_console()
    paragraph = Text()
    paragraph.append("Error: ", style="bold red")
    paragraph.append(_sentence(error.message))
    for problem in error.problems[:MAX_PROBLEMS]:
        paragraph.append(f"\n  {plain(problem.where)}: ", style="bold")
        paragraph.append(plain(problem.message))
    hidden = len(error.problems) - MAX_PROBLEMS
    if hidden > 0:
        paragraph.append(f"\n  and {hidden} more")
    advice = next((ADVICE[cls] for cls in type(error).__mro__ if cls in ADVICE), "")
    if error.retry_after_s:
        advice = f"{advice} The cluster asks to wait {error.retry_after_s:g} s.".lstrip()
    if advice:
        paragraph.append(f"\n{advice}", style="dim")
    console.print(paragraph, soft_wrap=not console.is_terminal)


def _sentence(text: str) -> str:
    text = plain(text.strip())
    return text if text.endswith((".", "!", "?", ")")) else f"{text}."
