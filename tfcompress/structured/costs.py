"""What a model costs with some of its channels gone, counted without building it."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from tfcompress.structured.groups import ChannelGroups, Group
from tfcompress.structured.trace import Labels, count_kept

Axis = tuple[int, Labels]  # its length, and its labels if channels of it can go
Product = tuple[int, Sequence[Axis]]  # a factor, and axes whose lengths multiply it


def macs(groups: ChannelGroups, kept: np.ndarray) -> int:
    """Returns the multiply-accumulates for one sample; `kept` is bool, by label of the trace.

    Counted as in `.tflite` files: each weight of a kernel once for each position of the output,
    padding included, zeros too. Sizes that are known at run time only count as 1.
    """
    found, size = groups.trace, count_kept(kept)
    weights = sum(kernel_macs(groups, kept))
    products = sum(
        math.prod(n if labels is None else size(labels) for n, labels in axes)
        for axes in found.products
    )
    return weights + products


def kernel_macs(groups: ChannelGroups, kept: np.ndarray) -> list[int]:
    """Returns the multiply-accumulates of each use of a kernel, in the order of the model."""
    return [
        positions * _entries(groups, variable, kept) for variable, positions in groups.trace.kernels
    ]


def parameters(groups: ChannelGroups, kept: np.ndarray) -> int:
    """Returns the number of weights, the ones that are not trained included."""
    return sum(_entries(groups, variable, kept) for variable in groups.model.weights)


@dataclasses.dataclass(frozen=True, eq=False)
class ByWidth:
    """Counts of a model as a formula of its groups' widths, for many widths at once.

    A kernel's count is a product of the lengths of its axes, and such a length is linear in the
    widths: `fixed` (axes,) + widths @ `per_channel` (groups, axes). `starts` (products,) is where
    each product's axes begin, `factors` (products,) what multiplies them.
    """

    fixed: np.ndarray
    per_channel: np.ndarray
    starts: np.ndarray
    factors: np.ndarray

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """Returns each product's count, float64 (..., products), for widths (..., groups)."""
        lengths = self.fixed + widths @ self.per_channel
        return np.multiply.reduceat(lengths, self.starts, axis=-1) * self.factors


def by_width(
    groups: ChannelGroups, chosen: Iterable[Group], products: Iterable[Product]
) -> ByWidth:
    """Returns the formula of `products` over the widths of the `chosen` groups, in their order.

    All other groups count as whole.
    """
    numbers = {group.name: number for number, group in enumerate(chosen)}
    owner = np.full(groups.channel_of.size, len(numbers))
    for group, own in zip(groups, groups.labels, strict=True):
        owner[own] = numbers.get(group.name, len(numbers))
    sizes = np.array([groups[name].size for name in numbers])
    products = [(factor, [*axes, (1, None)]) for factor, axes in products]
    columns = []
    for n, labels in (axis for _, axes in products for axis in axes):
        of = np.array([], int) if labels is None else owner[groups.channel_of[labels]]
        count = np.bincount(of, minlength=len(numbers) + 1)
        columns.append([*count[:-1] / sizes, n if labels is None else count[-1]])
    table = np.array(columns).T
    return ByWidth(
        fixed=table[-1],
        per_channel=table[:-1],
        starts=np.cumsum([0, *(len(axes) for _, axes in products)])[:-1],
        factors=np.array([factor for factor, _ in products], float),
    )


def kernel_products(groups: ChannelGroups) -> list[Product]:
    """Returns for each use of a kernel the product that `kernel_macs` counts."""
    return [(n, _axes(groups, variable)) for variable, n in groups.trace.kernels]


def macs_products(groups: ChannelGroups) -> list[Product]:
    """Returns the products whose sum `macs` is, those of kernels first."""
    return [*kernel_products(groups), *((1, axes) for axes in groups.trace.products)]


def parameters_products(groups: ChannelGroups) -> list[Product]:
    """Returns the products whose sum `parameters` is."""
    return [(1, _axes(groups, variable)) for variable in groups.model.weights]


def _axes(groups: ChannelGroups, variable) -> list[Axis]:
    uses = groups.trace.uses
    return [
        (n, uses[key].labels if (key := (id(variable), axis)) in uses else None)
        for axis, n in enumerate(variable.shape)
    ]


def _entries(groups: ChannelGroups, variable, kept: np.ndarray) -> int:
    size = count_kept(kept)
    return math.prod(n if own is None else size(own) for n, own in _axes(groups, variable))
