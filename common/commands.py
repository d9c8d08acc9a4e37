"""Commands of the operator, run without a shell."""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import tempfile
from collections.abc import Sequence
from typing import IO, Final

from snooze.common.errors import ExecutionError, RemoteTimeout
from snooze.common.redaction import HIDDEN, redact_options, secrets_in

MAX_OUTPUT_BYTES: Final = 64 * 1024
MAX_SHOWN_CHARS: Final = 500

logger = logging.getLogger(__name__)

_AT_WORK: Final[set[asyncio.Task[None]]] = set()
"""Those who wait for the end of what was begun."""


async def run_command(words: Sequence[str], limit_s: float) -> str:
    """Run a command, and return the end of what it printed on its standard output.

    It has ended when it ends itself, whatever it leaves running. If it does not end in time it is
    killed with everything in its process group.

    Raises:
        ExecutionError: it cannot be started, or ends with another code than 0; with its output.
        RemoteTimeout: it did not end in time, and was killed; it may have done its work.
    """
    # files, not pipes: what the command leaves running may keep them open for ever
    with _file(words) as output, _file(words) as complaint:
        process = await _start(words, output, complaint)
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
        except TimeoutError:
            raise RemoteTimeout(
                f"{words[0]} did not end within {limit_s:g} s and was killed; it may have happened"
            ) from None
        finally:
            if process.returncode is None:
                # it may have ended a moment ago, unheard of yet
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        _check(process, words, output, complaint)
        return _end_of(output)


async def begin_command(words: Sequence[str], early_s: float) -> None:
    """Start a command, and return when it succeeds or after ``early_s`` (s), while it goes on.

    Raises:
        ExecutionError: it cannot be started, or failed early; with its output.
    """
    with _file(words) as output, _file(words) as complaint:
        process = await _start(words, output, complaint)
        try:
            async with asyncio.timeout(early_s):
                await process.wait()
        except TimeoutError:
            task = asyncio.create_task(_see_off(process, words[0]))
            _AT_WORK.add(task)
            task.add_done_callback(_AT_WORK.discard)
            return
        _check(process, words, output, complaint)


async def _see_off(process: asyncio.subprocess.Process, name: str) -> None:
    code = await process.wait()
    if code:
        logger.error("a command failed late", extra={"command": name, "code": code})


def _file(words: Sequence[str]) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise ExecutionError(
            f"{words[0]} cannot be started: no file for its output: {error.strerror}"
        ) from None


async def _start(
    words: Sequence[str], output: IO[bytes], complaint: IO[bytes]
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=complaint,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such command"
        raise ExecutionError(f"{words[0]} cannot be started: {reason}") from None


def _check(
    process: asyncio.subprocess.Process,
    words: Sequence[str],
    output: IO[bytes],
    complaint: IO[bytes],
) -> None:
    if process.returncode:
        said = (_end_of(complaint) or _end_of(output)).strip()[-MAX_SHOWN_CHARS:]
        shown = _without_secrets(said, words)
        raise ExecutionError(f"{words[0]} ended with {process.returncode}: {shown}")


def _end_of(file: IO[bytes]) -> str:
    """The last of what was written."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_OUTPUT_BYTES))
    return file.read(MAX_OUTPUT_BYTES).decode(errors="replace")


def _without_secrets(text: str, words: Sequence[str]) -> str:
    """``text``, without the passwords that it names, or that stand in the command."""
    for secret in secrets_in(shlex.join(words)):
        text = text.replace(secret, HIDDEN)
    return redact_options(text)
