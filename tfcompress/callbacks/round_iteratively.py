"""Iterative rounding and clipping while training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress import quantization
from tfcompress.callbacks.kernel_callback import KernelCallback
from tfcompress.errors import InputError, require, unknown
from tfcompress.projection import Projection
from tfcompress.quantization import Grid
from tfcompress.quantization.clipping import rounded
from tfcompress.structured.fisher import fisher
from tfcompress.structured.fold import can_fold
from tfcompress.weights import Kernel

ORDERS = ("nearest", "magnitude", "random")
GRANULARITIES = ("per_channel", "per_tensor")


@dataclasses.dataclass(frozen=True)
class _Plan:
    bits: int
    granularity: str
    order: str


class RoundIteratively(KernelCallback):
    """Moves a growing share of each kernel's weights onto an integer grid while the rest trains on.

    In each round every channel gets its clipping anew: the range, of 64, whose rounding and
    clipping are estimated to raise the loss least, by the squared gradients on `data`. Then the
    weights that are next in `order` are rounded and stay, up to the round's share; what is still
    free is clipped to the range, and trains to make up for them. After the last round every weight
    of a kernel is on its grid, to the last bit, and biases alone train. Zeros stay zero, shared
    values shared.

    The kernels stay plain float variables: `convert` to int8 (8 bits) or int4 (4 bits) finds the
    grid in them, because each channel holds its largest code, and the file holds just these codes.
    That is so for kernels that `convert` does not change: fold BatchNorm first. Other bits are
    stored in the next larger type, whose finer grid moves weights by half of its step at most.

    Each epoch's `logs` receive `rounded` (the share of weights that are on their grid, in [0, 1])
    and `rounding_seconds` (time spent in looking for grids).

    Args:
        bits: of the kernels' codes, in [2, 8]; symmetric, 2^bits - 1 of them.
        shares: share of the weights that is rounded after each round, rising, in (0, 1], the last
            one 1.
        update_every: optimizer steps from one round to the next, the first comes before training;
            None: the rounds share the epochs of the `fit` evenly.
        granularity: "per_channel" or "per_tensor": which weights share a scale; None: as in the
            file, which has one scale per output channel, save where `quantize_aware` says per
            tensor. A kernel whose clusters reach over channels has one scale.
        order: which weights are rounded first: "magnitude" (the largest), "random", or "nearest"
            (to their point of the grid: the worst come last, when little is left to make up for
            them). The largest of each channel, which makes the grid, always is.
        data: (x, y) or another form that `tfc.sensitivity` takes, of which 512 samples tell how
            much each weight matters; None: all weights count alike, the squared error decides.
        rules: what differs for some kernels, e.g. `{"layers": "head/.*", "bits": 8}`. Keys:
            `layers` (a regular expression on the whole path of kernel or layer; the last rule that
            matches wins), `skip` (a reason), `bits`, `granularity`, `order`.

    Raises:
        InputError: before training starts, if an argument or a rule cannot be used, or if there is
            a BatchNorm that `fold_batch_norm` would fold.

    Source: Zhou et al. 2017, "Incremental Network Quantization" (shares and retraining); the
    clipping as in Banner et al. 2019, weighted by the Fisher information.

    Example:

        model = tfc.fold_batch_norm(model)
        model.compile(keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy")
        model.fit(x, y, epochs=8, callbacks=[tfc.RoundIteratively(bits=4, data=(x, y))])
    """

    def __init__(
        self,
        bits: int = 8,
        shares: Sequence[float] = (0.5, 0.75, 0.875, 1.0),
        update_every: int | None = None,
        granularity: str | None = None,
        order: str = "magnitude",
        data: Any = None,
        rules: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__()
        shares = tuple(shares)
        rising = all(0 < a < b <= 1 for a, b in zip(shares, shares[1:], strict=False))
        require(
            shares and rising and shares[-1] == 1 and shares[0] > 0,
            "shares of RoundIteratively",
            "must rise within (0, 1] and end with 1",
            shares=shares,
        )
        self._check_update_every(update_every)
        self.bits, self.granularity, self.order = bits, granularity, order
        _checked({"bits": bits, "granularity": granularity, "order": order})
        self.shares = shares
        self.update_every = update_every
        self.data = data
        self.rules = tuple(rules)
        self._every = 0
        self._plans: dict[str, _Plan] = {}
        self._grids: dict[str, Grid] = {}

    def select(self) -> list[Kernel]:
        targets, chosen = self._choose(("bits", "granularity", "order"))
        require(
            not _folds(self.model),
            f"Model '{self.model.name}'",
            "must have no BatchNorm that can be folded, it would move the grids: "
            "tfc.fold_batch_norm(model) first",
        )
        stored = {
            id(wrapper.layer): "per_channel" if wrapper.per_channel else "per_tensor"
            for wrapper in self.model._flatten_layers()
            if hasattr(wrapper, "per_channel") and hasattr(wrapper, "layer")
        }
        for kernel in targets:
            rule = _checked(chosen[kernel.path])
            granularity = rule.get("granularity") or self.granularity
            self._plans[kernel.path] = _Plan(
                rule.get("bits", self.bits),
                granularity or stored.get(id(kernel.layer), "per_channel"),
                rule.get("order", self.order),
            )
        self._every = self.update_every or self._even_rounds()
        return targets

    def update(self, previous_step, step):
        due = min(step // self._every + 1, len(self.shares))
        if previous_step is not None and min(previous_step // self._every + 1, due) == due:
            return
        share = self.shares[due - 1]
        # A resumed fit finds its grids and what is on them in the weights.
        resumed = previous_step is None and step > 0
        importance = None
        for kernel in self.targets:
            w, plan = kernel.value(), self._plans[kernel.path]
            projection = self.projections[kernel.path]
            if resumed:
                grid = _found_grid(w, kernel, plan, projection)
                fixed = _on_grid(w, grid)
                if np.count_nonzero(fixed) >= share * w.size:
                    self._fix(kernel, w, grid, fixed)
                    continue
            importance = importance or self._importance()
            grid = _new_grid(w, importance[kernel.path], kernel, plan, projection)
            fixed = _chosen(w, grid, share, plan.order, projection)
            self._fix(kernel, w, grid, fixed)

    def measures(self):
        on_grid = [_on_grid(k.value(), self._grids[k.path]) for k in self.targets]
        share = sum(map(np.sum, on_grid)) / sum(part.size for part in on_grid)
        return {"rounded": float(share), "rounding_seconds": self.seconds}

    def missed(self, step):
        last = (len(self.shares) - 1) * self._every
        return f"step {last}: not all weights were rounded" if step < last else ""

    def _install(self):
        super()._install()
        with self.model.distribute_strategy.scope():
            for kernel in self.targets:
                self.projections[kernel.path].allow_rounding()

    def _even_rounds(self) -> int:
        params = self.params or {}
        total = (params.get("steps") or 0) * (params.get("epochs") or 0)
        require(
            total,
            "update_every of RoundIteratively",
            "must be given where the number of training steps is not known",
            update_every=self.update_every,
        )
        total //= getattr(self.model.optimizer, "gradient_accumulation_steps", None) or 1
        return max(1, total // len(self.shares))

    def _importance(self) -> dict[str, np.ndarray | None]:
        if self.data is None:
            return dict.fromkeys(kernel.path for kernel in self.targets)
        found = fisher(self.model, [kernel.variable for kernel in self.targets], self.data)
        return dict(zip((kernel.path for kernel in self.targets), found, strict=True))

    def _fix(self, kernel: Kernel, w: np.ndarray, grid: Grid, fixed: np.ndarray) -> None:
        values = rounded(w, grid)
        limit = (grid.scale * grid.codes.highest).astype(np.float32)
        self._grids[kernel.path] = grid
        self.projections[kernel.path].set_rounded(fixed, values, limit)
        kernel.variable.assign(np.where(fixed, values, np.clip(w, -limit, limit)))


def _checked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    bits = values.get("bits", 8)
    whole = isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 8
    require(whole, "bits of RoundIteratively", "must be a whole number in [2, 8]", bits=bits)
    for key, known in (("granularity", GRANULARITIES), ("order", ORDERS)):
        if values.get(key) is not None and values[key] not in known:
            raise unknown(f"{key} of RoundIteratively", values[key], known)
    return values


def _folds(model: Any) -> bool:
    try:
        return can_fold(model)
    except InputError:
        return False  # no graph, so that nothing tells which layer would absorb one


def _granularity(kernel: Kernel, plan: _Plan, projection: Projection) -> str:
    """Returns the plan's, or per_tensor where a cluster reaches over several channels."""
    if projection.groups is None or plan.granularity == "per_tensor":
        return plan.granularity
    axes = [axis % projection.groups.ndim for axis in kernel.output_axes]
    parts = np.moveaxis(projection.groups, axes, range(len(axes)))
    channels = parts.reshape(int(np.prod(parts.shape[: len(axes)])), -1)
    seen = np.concatenate([np.unique(channel[channel > 0]) for channel in channels])
    return "per_tensor" if len(np.unique(seen)) < len(seen) else plan.granularity


def _new_grid(
    w: np.ndarray, importance: Any, kernel: Kernel, plan: _Plan, projection: Projection
) -> Grid:
    granularity = _granularity(kernel, plan, projection)
    return quantization.clipped_grid(
        w, importance, kernel.output_axes, bits=plan.bits, granularity=granularity
    )


def _found_grid(w: np.ndarray, kernel: Kernel, plan: _Plan, projection: Projection) -> Grid:
    """Returns the grid of which each group of `w` holds the last point."""
    granularity = _granularity(kernel, plan, projection)
    codes = quantization.Codes(plan.bits)
    return quantization.fit(w, kernel.output_axes, granularity, "min_max", codes)


def _on_grid(w: np.ndarray, grid: Grid) -> np.ndarray:
    return w == rounded(w, grid)


def _chosen(
    w: np.ndarray, grid: Grid, share: float, order: str, projection: Projection
) -> np.ndarray:
    """Returns which weights are rounded: bool of the kernel's shape, at least `share` of them."""
    if order == "nearest":
        steps = grid.steps(w)
        rank = np.abs(steps - np.rint(steps))
    elif order == "magnitude":
        rank = -np.abs(w)
    else:
        rank = np.random.default_rng(0).random(w.shape)
    # The largest of a group keeps its scale; zeros and what is fixed already are on their points.
    group = tuple(axis for axis, size in enumerate(grid.scale.shape) if size == 1)
    largest = np.abs(w) == np.abs(w).max(axis=group, keepdims=True)
    rank = np.where(largest | projection.rounded | (w == 0), -np.inf, rank)
    unit = np.arange(w.size) if projection.groups is None else projection.groups.ravel()
    return _lowest_units(rank.ravel(), unit, share).reshape(w.shape)


def _lowest_units(rank: np.ndarray, unit: np.ndarray, share: float) -> np.ndarray:
    """Returns the units (clusters, or single weights) that come first, until `share` is reached."""
    sizes = np.bincount(unit)
    finite = np.maximum(rank, -1e30)
    means = np.bincount(unit, finite) / np.maximum(sizes, 1)
    order = np.argsort(means, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    first = (before < share * rank.size) | (means[order] <= -1e29)
    chosen = np.zeros(len(sizes), bool)
    chosen[order[first]] = True
    return chosen[unit]
