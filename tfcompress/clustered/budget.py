"""How many clusters each kernel gets under a budget for the whole model."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.errors import InputError

CLUSTERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclasses.dataclass(frozen=True)
class Option:
    """What a number of clusters costs: `bytes` of codebooks and indices, and squared `error`."""

    clusters: int
    bytes: float
    error: float


def choose(
    options: Mapping[str, Sequence[Option]], max_bytes: float | None, max_error: float | None
) -> dict[str, int]:
    """Returns by name the number of clusters; one option each, by an integer program.

    With `max_bytes` the error is the least that so many bytes allow, with `max_error` (a sum of
    squared errors) the bytes are the fewest.

    Raises:
        InputError: the budget cannot be met; the error names the smallest that can.
    """
    from scipy import optimize

    flat = [(name, option) for name, found in options.items() for option in found]
    costs = np.array([[option.bytes, option.error] for _, option in flat])
    limited, limit = (0, max_bytes) if max_bytes is not None else (1, max_error)
    assert limit is not None
    names = list(options)
    one = np.array([[float(name == own) for own, _ in flat] for name in names])
    least = sum(min((o.bytes, o.error)[limited] for o in found) for found in options.values())
    if least > limit:
        raise InputError(_too_small(limited, limit, least))
    scale = np.maximum(costs.sum(axis=0) / len(costs), 1e-300)
    solved = optimize.milp(
        costs[:, 1 - limited] / scale[1 - limited],
        constraints=[
            optimize.LinearConstraint(one, 1, 1),
            optimize.LinearConstraint(
                costs[:, limited] / scale[limited], -np.inf, limit / scale[limited]
            ),
        ],
        integrality=np.ones(len(flat)),
        bounds=optimize.Bounds(0, 1),
    )
    if solved.x is None:
        raise InputError(_too_small(limited, limit, least))
    return {
        name: option.clusters
        for (name, option), taken in zip(flat, solved.x, strict=True)
        if taken > 0.5
    }


def _too_small(limited: int, limit: float, least: float) -> str:
    if limited == 0:
        return (
            f"max_bytes of cluster must be at least {int(np.ceil(least)):,}, what two clusters for "
            f"each kernel take. Received: max_bytes={limit:g}"
        )
    return (
        f"max_error of cluster must allow {least:g}, what {CLUSTERS[-1]} clusters for each kernel "
        f"reach. Received: {limit:g}"
    )
