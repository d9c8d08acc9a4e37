"""The ``snooze`` command: parses, calls, and turns every outcome into words and an exit code.

Exit codes are those of ``common/errors.py``: 0 done, 2 a wrong request or usage, 3 wrong settings,
4 not found, 5 not in this state, 6 no capacity, 7 busy or no leader, 8 tried and failed, 9 the
cluster did not answer; and 1 for a question answered with no, 130 for Ctrl-C, 141 when the reader
of the output went away.

Modules of this folder that need aiohttp or rich are imported inside the commands: ``--help`` and
completion answer without them.
"""

import typer

from snooze.client import daemon_commands, view_commands, vm_commands
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
daemon_commands.register(app)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
