"""How a kernel is to be clustered: the words that `cluster` and `ClusterOnSchedule` share."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import clustering
from tfcompress.clustering import choose
from tfcompress.errors import InputError, require, unknown
from tfcompress.structured.fold import SCALED_AXES, can_fold
from tfcompress.weights import Kernel, matrix_shape

SCOPES = ("kernel", "channel", "model")
GRIDS = ("int8",)
_MOST_BYTES = 1 << 30  # of normal equations, which are held a few times
_LAYERS = keras.layers
# Other layers whose kernels the converter gives a scale per output channel.
_PRODUCTS = (_LAYERS.EinsumDense, _LAYERS.SimpleRNNCell, _LAYERS.LSTMCell, _LAYERS.GRUCell)
KEYS = ("method", "clusters", "block", "levels", "per", "group")  # what a rule may say


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a kernel is clustered; the fields are explained in `cluster`.

    `owner` is who an error names. `group`: kernels of one group share a codebook, "": none does.
    `fixed`: whether a rule says how many clusters, which no budget changes then.
    """

    owner: str
    method: Any = "kmeans"
    block: Sequence[int] = (1, 1)
    levels: int = 1
    per: str = "kernel"
    keep_zeros: bool = True
    grid: str | None = None
    group: str = ""
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", clustering.METHODS.create(self.method))
        object.__setattr__(self, "block", self._pair(self.block))
        whole = isinstance(self.levels, int) and not isinstance(self.levels, bool)
        rule = "must be a whole number in [1, 8]"
        require(
            whole and 1 <= self.levels <= 8, f"levels of {self.owner}", rule, levels=self.levels
        )
        if self.per not in SCOPES:
            raise unknown(f"`per` of {self.owner}", self.per, SCOPES)
        if self.grid is not None and self.grid not in GRIDS:
            raise unknown(f"grid of {self.owner}", self.grid, GRIDS)
        together = not self.group or self.per == "kernel"
        rule = "goes with per='kernel'"
        require(together, f"group of {self.owner}", rule, group=self.group, per=self.per)

    def of_rule(self, rule: Mapping[str, Any]) -> "Plan":
        """Returns the plan with what a rule says otherwise; a method that says no number of
        clusters keeps this plan's."""
        changes = {key: rule[key] for key in KEYS if key in rule and key != "clusters"}
        plan = dataclasses.replace(self, **changes, fixed="clusters" in rule)
        number = rule.get("clusters")
        if "method" in rule and number is None and _says_no_number(rule["method"], plan.method):
            number = getattr(self.method, "clusters", None)
        plan = plan if number is None else plan.with_clusters(number)
        plan.check_grid()
        return plan

    def with_clusters(self, clusters: int | str) -> "Plan":
        """Returns the plan with another number of clusters."""
        ((name, arguments),) = clustering.METHODS.describe(self.method).items()
        if "clusters" not in arguments:
            raise InputError(
                f"clusters of {self.owner} must be None for the method '{name}', which has none. "
                f"Received: clusters={clusters!r}"
            )
        method = clustering.METHODS.create({name: arguments | {"clusters": clusters}})
        return dataclasses.replace(self, method=method)

    def check(self, kernel: Kernel) -> None:
        """Raises `InputError` if the kernel cannot be clustered so."""
        shape = tuple(kernel.variable.shape)
        rows, columns = matrix_shape(shape)
        size = int(np.prod(shape))
        if self.per == "channel":
            size //= self.channels(kernel)
            rows, columns = size, 1
        require(
            self.block[0] <= rows and self.block[1] <= columns,
            f"block for {kernel.path}",
            f"must not be larger than its {rows} x {columns} weights (inputs x outputs"
            f"{', of a channel' if self.per == 'channel' else ''}; a rule with `block` or `skip` "
            "helps)",
            block=self.block,
        )
        most = choose.fewest(self.method)
        require(
            most <= size,
            f"clusters for {kernel.path}",
            f"must not be more than its {size} weights"
            f"{' of a channel' if self.per == 'channel' else ''} "
            "(a rule with `clusters` or `skip` helps)",
            clusters=most,
        )
        entries = self.levels * choose.most(self.method)
        # The entries of several levels are found together: their normal equations, cell by cell.
        needed = 8 * self.channels(kernel) * self.block[0] * self.block[1] * entries**2
        require(
            self.levels == 1 or needed <= _MOST_BYTES,
            f"levels for {kernel.path}",
            f"of {choose.most(self.method)} clusters each need {needed / 2**30:.1f} GB: must be "
            "1, or have fewer clusters",
            levels=self.levels,
        )

    def channels(self, kernel: Kernel) -> int:
        """Returns how many codebooks the kernel has: one, or one per output channel."""
        shape = kernel.variable.shape
        if self.per != "channel":
            return 1
        return int(np.prod([shape[axis] for axis in kernel.output_axes]))

    def _pair(self, block: Any) -> tuple[int, int]:
        sizes = tuple(block) if isinstance(block, Sequence) else ()
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        require(
            len(sizes) == 2 and whole and min(sizes) >= 1,
            f"block of {self.owner}",
            "must be two integers of at least 1",
            block=block,
        )
        return sizes[0], sizes[1]

    def check_grid(self) -> None:
        """Raises `InputError` if the words do not go with the grid."""
        if self.grid is None:
            return
        plain = isinstance(self.method, clustering.KMeans) and self.method.clusters != "auto"
        rule = f"{self.grid!r} needs the method kmeans with a number of clusters in [4, 256]"
        plain = plain and 4 <= self.method.clusters <= 256
        require(plain, f"grid of {self.owner}", rule, method=self.method)
        simple = (self.block, self.levels, self.per, self.group) == ((1, 1), 1, "kernel", "")
        rule = f"{self.grid!r} goes with block=(1, 1), levels=1 and per='kernel'"
        given = {"block": self.block, "levels": self.levels, "per": self.per}
        require(simple, f"grid of {self.owner}", rule, **given)


def _says_no_number(given: Any, method: Any) -> bool:
    """Returns whether the method, created of what was given, has a number that was not given."""
    if isinstance(given, Mapping):
        given = next(iter(given.values()), None) or {}
        return hasattr(method, "clusters") and "clusters" not in given
    return hasattr(method, "clusters") and isinstance(given, str)


def check_folded(model: keras.Model, owner: str) -> None:
    """Raises `InputError` if a BatchNorm has yet to scale the kernels that the file holds."""
    kind = keras.layers.BatchNormalization
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
    if not norms:
        return
    try:
        folds = can_fold(model)
    except InputError:  # no graph: nobody knows what it follows
        folds = True
    rule = "needs a model whose BatchNorm is folded: tfc.fold_batch_norm or tfc.quantize_aware"
    require(not folds, owner, rule, batch_norm=norms[0].name)


def scale_axes(model: keras.Model, kernels: Sequence[Kernel]) -> dict[str, tuple[int, ...] | None]:
    """Returns by path the axes of a kernel along which its int8 file has scales.

    (): one scale; None: an int8 file has no such kernel. A layer of `quantize_aware` says itself
    whether it has a scale per channel, and others get one from the TFLite converter, but for tables
    of embeddings and for kernels of batches of products.
    """
    wrapped = {
        id(layer.layer): layer
        for layer in model._flatten_layers()
        if hasattr(layer, "per_channel") and hasattr(layer, "layer")
    }
    found: dict[str, tuple[int, ...] | None] = {}
    for kernel in kernels:
        wrapper = wrapped.get(id(kernel.layer))
        if wrapper is not None and not wrapper.per_channel or _is_gathered_or_batched(kernel.layer):
            found[kernel.path] = ()
        elif type(kernel.layer) in (*SCALED_AXES, *_PRODUCTS):
            found[kernel.path] = kernel.output_axes
        else:
            found[kernel.path] = None
    return found


def _is_gathered_or_batched(layer: keras.layers.Layer) -> bool:
    """Returns whether the file holds an operand of GATHER or BATCH_MATMUL."""
    if type(layer) is not _LAYERS.EinsumDense:
        return type(layer) is _LAYERS.Embedding
    inputs, kernel, outputs = re.split("->|,", layer.equation)
    return any(label in inputs and label in outputs for label in kernel if label.isalpha())
