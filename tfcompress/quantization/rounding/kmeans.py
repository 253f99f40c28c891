"""To the points of a small codebook."""

import dataclasses
import numbers
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Codes, Grid
from tfcompress.quantization.rounding import ROUNDINGS

_PROGRAM_CODES = 1 << 10  # as many codes enter the dynamic program
_LLOYD_ROUNDS = 100


@ROUNDINGS.register("kmeans")
@dataclasses.dataclass(frozen=True)
class KMeans:
    """Moves each weight to the nearest of `clusters` codes that all weights of the tensor share.

    The codes are the k-means centroids restricted to the grid: of all choices of `clusters` codes
    the one with the least sum of squared errors, each weight's scale counted in. So the file holds
    that many different integers at most, also where scales differ from channel to channel, and
    deflates well. Up to 10 bits it is the optimum (dynamic programming over the codes); above, the
    optimum over every 2**(bits - 10)th code, improved by Lloyd's rule. With `keep_zeros`, weights
    that are exactly 0 stay 0.

    `clusters`: in [2, 256].

    Source: Wang and Song 2011, "Ckmeans.1d.dp", with centroids on a grid.

    >>> from tfcompress.quantization.grid import grid
    >>> weights = np.array([1.0, 1.2, 1.9, 100.0])
    >>> KMeans(clusters=2).round(weights, grid(-127.0, 127.0)).tolist()
    [1, 1, 1, 100]
    """

    clusters: int = 16
    keep_zeros: bool = True

    needs_inputs: ClassVar[bool] = False
    overshoot: ClassVar[int] = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.clusters, numbers.Integral)
        require(
            whole and 2 <= self.clusters <= 256,
            "clusters of KMeans",
            "must be a whole number in [2, 256]",
            clusters=self.clusters,
        )

    def round(self, weights: np.ndarray, grid: Grid, inputs: Any = None) -> np.ndarray:
        """Returns the codes, int32 of the weights' shape, `clusters` different ones at most."""
        steps = grid.steps(weights)
        zero_point = np.broadcast_to(grid.zero_point, steps.shape)
        # On one axis for all weights: the codes, before they are rounded.
        codes = np.clip(steps + zero_point, grid.codes.lowest, grid.codes.highest).ravel()
        weight = np.broadcast_to(grid.scale, steps.shape).ravel() ** 2
        zeros = (weights.ravel() == 0) & self.keep_zeros
        kept = np.unique(zero_point.ravel()[zeros])
        require(
            len(kept) < self.clusters,
            "clusters of KMeans",
            f"must exceed the {len(kept)} zero points of weights that are 0",
            clusters=self.clusters,
        )
        book = codebook(codes, weight, self.clusters, grid.codes, kept)
        chosen = book[np.searchsorted((book[1:] + book[:-1]) / 2, codes)]
        return chosen.astype(np.int32).reshape(steps.shape)


def codebook(
    values: np.ndarray, weight: np.ndarray, clusters: int, codes: Codes, kept: np.ndarray
) -> np.ndarray:
    """Returns the codes, ascending, to which `values` (n,) are nearest, `kept` among them.

    `weight` (n,) says how much each value's squared error counts.
    """
    order = np.argsort(values)
    sums = _Sums.of(values[order], weight[order])
    every = np.arange(codes.lowest, codes.highest + 1)
    options = np.union1d(every[:: max(1, 2**codes.bits // _PROGRAM_CODES)], kept)
    if len(options) <= clusters:
        return options
    book = _optimum(sums, options, clusters, kept)
    return book if len(options) == len(every) else _lloyd(sums, book, kept)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
    """Ascending values (n,) and the running sums (3, n + 1) of weight * value^0, ^1, ^2."""

    values: np.ndarray
    running: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weight: np.ndarray) -> "_Sums":
        weight = weight / weight.max() if weight.max(initial=0.0) > 0 else np.ones(len(values))
        terms = np.stack([weight, weight * values, weight * values**2])
        return cls(values, np.concatenate([np.zeros((3, 1)), np.cumsum(terms, axis=1)], axis=1))

    def between(self, begin: np.ndarray | float, end: np.ndarray | float) -> np.ndarray:
        """Returns the three sums over the values in [begin, end)."""
        first, last = (
            np.searchsorted(self.values, border) for border in np.broadcast_arrays(begin, end)
        )
        return self.running[:, last] - self.running[:, first]

    def error(
        self, begin: np.ndarray | float, end: np.ndarray | float, code: np.ndarray
    ) -> np.ndarray:
        """Returns the squared error of the values in [begin, end) if they become `code`."""
        mass, first, second = self.between(begin, end)
        return np.maximum(second - 2 * code * first + code**2 * mass, 0.0)


def _optimum(sums: _Sums, options: np.ndarray, clusters: int, kept: np.ndarray) -> np.ndarray:
    """Returns the best `clusters` of the options: best(k, j) = min over i of best(k-1, i) + i..j.

    The error between neighbouring codes i and j is that of the values below their middle to i and
    of those above to j.
    """
    options = options.astype(np.float64)
    low, high = options[:, None], options[None, :]
    middle = (low + high) / 2
    between = sums.error(low, middle, low) + sums.error(middle, high, high)
    # No two neighbours may leave out a code that is kept.
    number = np.searchsorted(kept, options)  # kept codes below each option
    first, last = number + np.isin(options, kept), number
    between[(low >= high) | (first[:, None] < last[None, :])] = np.inf
    best = np.where(number == 0, sums.error(-np.inf, options, options), np.inf)
    came_from = []
    for _ in range(clusters - 1):
        total = best[:, None] + between
        came_from.append(total.argmin(axis=0))
        best = total.min(axis=0)
    best = best + np.where(first == len(kept), sums.error(options, np.inf, options), np.inf)
    chosen = [int(best.argmin())]
    for before in reversed(came_from):
        chosen.append(int(before[chosen[-1]]))
    return options[chosen[::-1]].astype(np.int64)


def _lloyd(sums: _Sums, book: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Moves each code to the grid point nearest to its values' mean until none moves."""
    fixed = np.isin(book, kept)
    for _ in range(_LLOYD_ROUNDS):
        borders = np.concatenate([[-np.inf], (book[1:] + book[:-1]) / 2, [np.inf]])
        mass, first, _ = sums.between(borders[:-1], borders[1:])
        means = np.divide(first, mass, out=book.astype(np.float64), where=mass > 0)
        moved = np.where(fixed, book, np.rint(means)).astype(np.int64)
        if np.array_equal(moved, book):
            break
        book = moved
    return book
