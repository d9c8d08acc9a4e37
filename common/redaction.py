"""Keeps passwords out of logs, listings and answers."""

import re
import shlex

HIDDEN = "***"

# One word as a shell reads it: quoted, escaped and bare pieces without a space between them.
_SHELL_WORD = r"""(?:"(?:\\[\s\S]|[^"\\])*"?|'[^']*'?|\\[\s\S]?|[^\s"'\\])+"""
_VALUE = rf"(?P<value>{_SHELL_WORD})"
_WORD = r"[\w-]*(?:password|passwd|passphrase|secret|token)(?!-?file)[\w-]*"
_SHORT = re.compile(rf"(?P<flag>(?<!\S)-v*[Pky])(?P<gap>\s*){_VALUE}")
_LONG = re.compile(rf"(?P<flag>(?<!\S)--?{_WORD})(?P<gap>\s+){_VALUE}", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(?P<flag>(?<![\w/-]){_WORD})(?P<gap>["']?\s*[=:]\s*){_VALUE}""", re.IGNORECASE
)
_USER = re.compile(rf"(?P<flag>(?<!\S)(?:-u|--user))(?P<gap>[\s=]*[\w.@-]+:){_VALUE}")
_USER_INFO = re.compile(r"(?P<flag>://[^\s/:@]*)(?P<gap>:)(?P<value>[^\s/]*)(?=@)")

_ANY_WORD = re.compile(_SHELL_WORD)
_SECRETS = (_USER_INFO, _USER, _ASSIGNED, _LONG, _SHORT)


def redact_options(options: str) -> str:
    """The options of a command, with each password, key and token replaced by ``***``.

    Knows ipmitool's ``-P``, ``-k`` and ``-y``; words containing password, passphrase, secret or
    token (``--password x``, ``password=x``; not ``--password-file x``);
    ``scheme://user:password@host``; and curl's ``-u user:password``.
    Also within a word that is a whole command of its own (``--on "wake -P x"``).
    """
    options = _ANY_WORD.sub(lambda match: _redact_within(match[0]), options)
    for secret in _SECRETS:
        options = secret.sub(rf"\g<flag>\g<gap>{HIDDEN}", options)
    return options


def _redact_within(word: str) -> str:
    """A quoted word, as it is unless it has words of its own and a password among them."""
    if _SHORT.match(word) or _ASSIGNED.match(word):
        return word  # all of it is a password
    try:
        inner = " ".join(shlex.split(word))
    except ValueError:
        return word
    if inner == word or not re.search(r"\s", inner):
        return word
    redacted = redact_options(inner)
    return word if redacted == inner else shlex.quote(redacted)


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
