"""Loops as machine code: numba, imported and run only when such a loop is first called."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Decorates a function of arrays and numbers: the first call compiles it.

    The machine code is kept on disk, beside the source or in the user's cache folder, and where
    neither can be written to, in memory only.
    """

    @functools.cache
    def machine_code() -> Callable[..., Any]:
        import numba

        try:
            return numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # "no locator available": nowhere to keep it
            return numba.njit(nogil=True)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    return call  # type: ignore[return-value]
