"""The ``snooze`` command: parses, calls, and turns every outcome into words and an exit code.

Exit codes are those of ``common/errors.py``: 0 done, 2 a wrong request or usage, 3 wrong settings,
4 not found, 5 not in this state, 6 no capacity, 7 busy or no leader, 8 tried and failed, 9 the
cluster did not answer; and 1 for a question answered with no, 130 for Ctrl-C, 141 when the reader
of the output went away.

Modules of this folder that need aiohttp or rich are imported inside the commands: ``--help`` and
completion answer without them.
"""

import contextlib
import logging
import os
import sys

import typer

from snooze.client import (
    autonomy_commands,
    daemon_commands,
    energy_commands,
    host_commands,
    lab_commands,
    record_commands,
    view_commands,
    vm_commands,
)
from snooze.client.options import UrlOption, root_url

app = typer.Typer(
    name="snooze",
    help="A self-organising, self-healing manager for clusters of KVM hosts.",
    epilog="`snooze COMMAND --help` explains a command. Try it out: `snooze up`, and in another"
    " terminal `snooze hierarchy`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(url: UrlOption = "") -> None:
    """Take the options that stand before the command."""
    root_url.set(url)


vm_commands.register(app)
view_commands.register(app)
host_commands.register(app)
energy_commands.register(app)
autonomy_commands.register(app)
daemon_commands.register(app)
record_commands.register(app)
lab_commands.register(app)


def main() -> None:
    """The console script.

    A process that spoke to libvirt ends without the interpreter's own taking down: an object of
    libvirt that is collected then closes its connection, and would wait for a host that is gone.
    """
    try:
        app()
    except SystemExit as ended:
        if "libvirt" not in sys.modules:
            raise
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


if __name__ == "__main__":
    main()
