"""Compiled loops, if numba is there; the same loops interpreted, if it is not.

Imported only by modules of kernels, and those only inside the functions that need them: a daemon
that never optimises never pays for numba's start. Installed by ``pip install snooze[fast]``.
"""

import importlib
from collections.abc import Callable
from typing import Final, ParamSpec, Protocol, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Compiler(Protocol):
    """The one decorator of numba that we use."""

    def __call__(
        self, function: Callable[_P, _T], *, cache: bool = ..., nogil: bool = ...
    ) -> Callable[_P, _T]: ...


def _find_compiler() -> _Compiler | None:
    try:
        found: _Compiler = importlib.import_module("numba").njit
    except ImportError:
        return None
    return found


_COMPILER: Final = _find_compiler()

COMPILED: Final = _COMPILER is not None
"""Whether kernels run as machine code; interpreted they are some hundred times slower."""


def compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """``function`` as machine code, kept on disk between runs where a directory can be written.

    The global interpreter lock is released while it runs.
    """
    if _COMPILER is None:
        return function
    try:
        return _COMPILER(function, cache=True, nogil=True)
    except RuntimeError:  # numba finds no directory it may write its cache to
        return _COMPILER(function, nogil=True)
