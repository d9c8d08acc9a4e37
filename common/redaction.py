"""Keeps passwords out of logs, listings and answers."""

import re
import shlex

HIDDEN = "***"

# One word as a shell reads it: quoted, escaped and bare pieces without a space between them.
_VALUE = r"""(?P<value>(?:"(?:\\[\s\S]|[^"\\])*"?|'[^']*'?|\\[\s\S]?|[^\s"'\\])+)"""
_WORD = r"[\w-]*(?:password|passwd|passphrase|secret|token)(?!-?file)[\w-]*"
_SHORT = re.compile(rf"(?P<flag>(?<!\S)-v*[Pky])(?P<gap>\s*){_VALUE}")
_LONG = re.compile(rf"(?P<flag>(?<!\S)--?{_WORD})(?P<gap>\s+){_VALUE}", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(?P<flag>(?<![\w/-]){_WORD})(?P<gap>["']?\s*[=:]\s*){_VALUE}""", re.IGNORECASE
)
_USER_INFO = re.compile(r"(?P<flag>://[^\s/:@]*)(?P<gap>:)(?P<value>[^\s/]*)(?=@)")

_SECRETS = (_USER_INFO, _ASSIGNED, _LONG, _SHORT)


def redact_options(options: str) -> str:
    """The options of a command, with each password, key and token replaced by ``***``.

    Knows ipmitool's ``-P``, ``-k`` and ``-y``; words containing password, passphrase, secret or
    token (``--password x``, ``password=x``; not ``--password-file x``); and
    ``scheme://user:password@host``.
    """
    for secret in _SECRETS:
        options = secret.sub(rf"\g<flag>\g<gap>{HIDDEN}", options)
    return options


def secrets_in(options: str) -> set[str]:
    """The passwords that ``redact_options`` would hide, as a shell reads them."""
    found: set[str] = set()
    for secret in _SECRETS:
        for match in secret.finditer(options):
            try:
                found.update(shlex.split(match["value"]))
            except ValueError:
                found.add(match["value"])
    return found - {""}
