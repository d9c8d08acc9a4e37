"""What the command writes: to people, tables and colours; to programs, plain lines and JSON.

Colours only on a terminal, and not with ``NO_COLOR``. A pipe gets lines as long as they need to be;
a terminal gets its own width. Text from the cluster is never taken for markup and never reaches the
terminal as control characters.
"""

import sys
from functools import cache
from typing import Final

import msgspec
from rich.console import Console, RenderableType

from snooze.common.errors import RemoteError

PIPE_WIDTH: Final = 4000


@cache
def error_console() -> Console:
    """Standard error: progress, questions, complaints."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def write(text: str) -> None:
    """One or more lines to standard output, at once."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def show(*renderables: RenderableType) -> None:
    """Tables and trees to standard output."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    text = captured.get()
    if not console.is_terminal:
        # Padding to the width of a column is noise in a file.
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    write(text)


def show_json(content: bytes) -> None:
    """JSON as it was answered, indented.

    Raises:
        RemoteError: if it is not JSON.
    """
    try:
        text = msgspec.json.format(content, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"the answer is not what Snooze answers: {error}") from error
    write(text)


def plain(text: str) -> str:
    """``text`` with control characters made visible, so that no name moves the cursor."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
