"""Where the console script begins: Ctrl-C ends it without a word while its modules are read.

Python's own answer to a Ctrl-C is a page of text, and reading the modules takes a moment. A SIGINT
that is ignored (a background job's) stays so.
"""

import signal


def main() -> None:
    """The console script."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from snooze.client import command  # here: reading it takes a moment

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command.main()
