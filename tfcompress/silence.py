"""Keeps what C++ libraries write to stderr out of the user's sight."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def silent_stderr(log: str | os.PathLike | None = None) -> Iterator[None]:
    """Sends the process's stderr to the file `log`, or nowhere, while the block runs.

    Python's warnings and tracebacks of the block go there too; its exceptions do not.
    """
    try:
        saved = os.dup(2)
    except OSError:  # no stderr, nothing to keep silent
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        with tempfile.TemporaryFile() if log is None else open(log, "ab") as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
