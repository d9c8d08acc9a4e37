"""Keeps passwords out of logs, listings and answers."""

import re

HIDDEN = "***"

_SHORT = re.compile(r"""(?P<flag>(?<!\S)-[Pky])(?P<gap>\s*)(?P<value>"[^"]*"?|'[^']*'?|\S+)""")
_LONG = re.compile(
    r"""(?P<flag>[\w-]*(?:password|passwd|passphrase|secret|token)(?!-?file)[\w-]*)
        (?P<gap>\s*[=:]\s*|\s+)
        (?P<value>"[^"]*"?|'[^']*'?|\S+)""",
    re.VERBOSE | re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?P<flag>://[^\s/:@]*)(?P<gap>:)(?P<value>[^\s/]*)(?=@)")


def redact_options(options: str) -> str:
    """The options of a command, with each password, key and token replaced by ``***``.

    Knows ipmitool's ``-P``, ``-k`` and ``-y``; words containing password, passphrase, secret or
    token (``--password x``, ``password=x``; not ``--password-file x``); and
    ``scheme://user:password@host``.
    """
    for secret in (_USER_INFO, _LONG, _SHORT):
        options = secret.sub(rf"\g<flag>\g<gap>{HIDDEN}", options)
    return options
