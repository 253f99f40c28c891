"""What the structure of model files typically looks like: a coder that knows it needs few bytes.

The files beside this module hold the head and structure of small models, as `pack` sees them;
they belong to the version of the format. `benchmarks/packing_prior.py` made them.
"""

import functools
import pathlib

NAMES = ("tflite.prior", "keras.prior")
KINDS = len(NAMES)


def kind(content: bytes) -> int:
    """Returns which typical file the content is likened to: 0 `.tflite`, 1 `.keras` or `.h5`."""
    return 0 if content[4:8] == b"TFL3" else 1


@functools.cache
def typical(kind: int) -> bytes:
    """Returns heads and structures of typical files of a kind."""
    return (pathlib.Path(__file__).parent / NAMES[kind]).read_bytes()
