"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO

from tfcompress.errors import InputError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a binary file beside `path` that gets its name when the block ends.

    Until then, and if the block or the disk fails, `path` is what it was and nothing is left
    beside it. A folder that does not exist is made.

    Raises:
        InputError: the file cannot be written.

        with written_whole("report.json") as file:
            file.write(b"{}")
    """
    path, beside = pathlib.Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a renamed file must not be empty after a power failure
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"Output {path} cannot be written: {error.strerror or error}.") from None
    finally:
        if beside is not None:
            pathlib.Path(beside).unlink(missing_ok=True)
