from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")

class IAsyncResult(Generic[_T]):
    value: _T | None
    @property
    def exception(self) -> BaseException | None: ...
    def get_nowait(self) -> _T: ...
    def rawlink(self, callback: Callable[[IAsyncResult[_T]], object]) -> None: ...
