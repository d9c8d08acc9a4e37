"""A password: given in the settings, or in a file that is read when it is needed."""

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from snooze.common.errors import PreconditionError
from snooze.common.redaction import HIDDEN

MAX_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Secret:
    """A password that no ``repr`` shows; one of ``text`` and ``file`` is set, or neither."""

    text: str = field(default="", repr=False)
    file: str = ""

    def __repr__(self) -> str:
        shown = f"file={self.file!r}" if self.file else (f"text={HIDDEN!r}" if self.text else "")
        return f"Secret({shown})"

    def __bool__(self) -> bool:
        return bool(self.text or self.file)

    def read(self) -> str:
        """The password itself; of a file, its first line. Reads the disk.

        Raises:
            PreconditionError: the file cannot be read, is readable by everybody on this machine,
                or has no first line. Says which file, and never what is in it.
        """
        return read_secret_file(self.file) if self.file else self.text


NO_SECRET: Final = Secret()


def read_secret_file(path: str) -> str:
    """The first line of a file that only its owner and group may read.

    Raises:
        PreconditionError: as ``Secret.read``.
    """
    data = read_private_file(path, MAX_FILE_BYTES)
    try:
        line = data.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise PreconditionError(f"the password file {path} is not UTF-8") from None
    if not line:
        raise PreconditionError(f"the password file {path} has an empty first line")
    return line


def read_private_file(path: str, most_bytes: int) -> bytes:
    """The start of a file, if it is a plain one that only its owner and group may read.

    Raises:
        PreconditionError: it cannot be read, or everybody on this machine may.
    """
    try:
        # not blocking: a pipe in its place would hold us up for ever
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such path"
        raise PreconditionError(f"{path} cannot be read: {reason}") from None
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise PreconditionError(f"{path} is no plain file")
        if about.st_mode & stat.S_IRWXO:
            raise PreconditionError(
                f"{path} holds passwords and is open to everybody on this machine: chmod o= {path}"
            )
        return os.read(number, most_bytes)
    except OSError as error:
        raise PreconditionError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(number)
