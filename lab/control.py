"""Orders to a running lab, through a Unix socket: one line of JSON there, one back.

Only who may enter the socket's folder (root) can give them. An answer is an object; one with
``error`` says that nothing was done, and why.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from snooze.common.errors import InvalidRequest, RemoteError, SnoozeError

Answer = dict[str, Any]
Handler = Callable[[Answer], Mapping[str, object]]

MAX_LINE_BYTES: Final = 1024 * 1024
_HEAR_S: Final = 10.0
"""A caller that says nothing for this long is hung up on."""


class ControlServer:
    """Answers until it is closed; each caller in a thread of its own."""

    def __init__(self, path: Path, handle: Handler) -> None:
        """``handle``: of a request, the answer.

        Its ``SnoozeError``, ``OSError``, ``RuntimeError`` and ``LookupError`` are told the caller.
        """

        class Caller(socketserver.StreamRequestHandler):
            timeout = _HEAR_S

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    line = self.rfile.readline(MAX_LINE_BYTES)
                    self.connection.settimeout(None)
                    self.wfile.write(msgspec.json.encode(_answer(line, handle)) + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Caller)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._path = path
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name=f"control-{path.name}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take no more orders; may be called again."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def _answer(line: bytes, handle: Handler) -> Mapping[str, object]:
    try:
        return handle(msgspec.json.decode(line, type=Answer))
    except (SnoozeError, OSError, RuntimeError, LookupError, msgspec.MsgspecError) as error:
        return {"error": str(error) or type(error).__name__}


def ask(path: Path, request: Mapping[str, object], timeout_s: float = 60.0) -> Answer:
    """The answer to a request.

    Raises:
        ConnectionError, FileNotFoundError: nobody listens.
        InvalidRequest: it was refused; in the lab's words.
        RemoteError: no answer in time, or none that makes sense; it may have been done.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout_s)
        link.connect(str(path))
        try:
            link.sendall(msgspec.json.encode(request) + b"\n")
            with link.makefile("rb") as reader:
                answer = msgspec.json.decode(reader.readline(MAX_LINE_BYTES), type=Answer)
        except (OSError, msgspec.MsgspecError) as error:
            raise RemoteError(f"the lab does not answer: {error}") from error
    if "error" in answer:
        raise InvalidRequest(str(answer["error"]))
    return answer
