"""What the user is told when an input cannot be used."""

import difflib
import pathlib
import traceback
from collections.abc import Callable, Iterable
from typing import Any

_LONGEST = 200  # characters of a value that an error shows


class InputError(ValueError):
    """Something that the user gave cannot be used: one line with owner, rule and value.

    Commands print the line and exit with status 2; in Python it is a `ValueError`.
    """


def require(condition: object, owner: str, rule: str, **received: object) -> None:
    """Raises `InputError` unless `condition` holds.

    >>> require(2 <= 16, "clusters of KMeans", "must be in [2, 65536]", clusters=16)
    >>> require(2 <= 1, "clusters of KMeans", "must be in [2, 65536]", clusters=1)
    Traceback (most recent call last):
    tfcompress.errors.InputError: clusters of KMeans must be in [2, 65536]. Received: clusters=1
    """
    if not condition:
        values = ", ".join(f"{name}={_short(value)}" for name, value in received.items())
        raise InputError(f"{owner} {rule}." + (f" Received: {values}" if values else ""))


def _short(value: object) -> str:
    """Returns the `repr` of a value as part of one line: a file's content has a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Returns the error for a name that is not among `known`, with the nearest one that is.

    >>> print(unknown("schedule", "polinomial", ["polynomial", "cosine"]))
    Unknown schedule 'polinomial'. Did you mean 'polynomial'? Known: cosine, polynomial.
    """
    options = sorted(known)
    near = difflib.get_close_matches(str(name), options, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return InputError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(options)}.")


def call(function: Callable[[], Any], owner: str) -> Any:
    """Returns what a user's own function returns; its exceptions become `InputError`."""
    try:
        return function()
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = frames[min(1, len(frames) - 1)]  # the first is this one
        where = f"{pathlib.Path(place.filename).name}, line {place.lineno}"
        reason = traceback.format_exception_only(error)[-1].strip()
        if "in user code:" in reason:  # TensorFlow puts a traceback of its own before the reason
            reason = reason.split("\n\n", 2)[-1].strip()
        reason = reason.splitlines()[0]
        raise InputError(f"{owner} raised {reason} ({where}).") from error
