"""Cross-layer equalisation: channels are rescaled so that all use their weights' range alike."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress import graph, weights
from tfcompress.errors import require
from tfcompress.structured.fold import can_fold, fold_batch_norm
from tfcompress.structured.groups import channel_groups
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.scaling import Part, Scaling, scaling
from tfcompress.structured.trace import PINNED

CONVERGED = 1e-3  # of a factor: far below what moves a range by one step of any grid
# What all channels of a group share spreads slowly through a chain of layers; so much further than
# to the balance, as in successive over-relaxation, halves the sweeps that a deep network takes.
OVERRELAXATION = 0.5


@dataclasses.dataclass(frozen=True)
class EqualizedGroup:
    """Channels that were rescaled together: the layers that make them and those that read them.

    `precision` before and after: how much of a per-tensor grid a channel uses, max|w| of the
    channel over max|w| of the weight, the geometric mean of where it is made and where it is read,
    averaged over the channels; 1 is all of it. `factors` are the smallest and the largest by which
    channels were divided.
    """

    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    channels: int
    precision: tuple[float, float]
    factors: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Equalization:
    """What `equalize` did: the groups, why layers' outputs were skipped, and whether it converged.

    `skipped` has a reason for each layer of whose output channels some could not be rescaled,
    `unclipped` the layers whose clipped ReLU became a plain one. `str()` is a table.
    """

    groups: tuple[EqualizedGroup, ...]
    skipped: dict[str, str]
    sweeps: int
    converged: bool
    unclipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, strings, lists and dicts, fit for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        end = "converged" if self.converged else "not converged"
        rows = [f"{len(self.groups)} groups in {self.sweeps} sweeps, {end}"]
        rows.append("channels  precision     divided by         made by -> read by")
        for group in self.groups:
            before, after = group.precision
            low, high = group.factors
            numbers = f"{group.channels:8}  {before:.2f} -> {after:.2f}  {low:8.3g} ..{high:8.3g}"
            rows.append(f"{numbers}  {', '.join(group.made_by)} -> {', '.join(group.read_by)}")
        rows += [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        rows += [f"unclipped: {name}" for name in self.unclipped]
        return "\n".join(rows)


def equalize(
    model: keras.Model, largest_factor: float = 1000.0, sweeps: int = 100, unclip: bool = False
) -> keras.Model:
    """Returns a model that computes the same with weights whose channels have like ranges.

    `model` stays as it is. The new model is of the same kind, plain Keras, not compiled; a
    BatchNorm that a neighbour can absorb is folded first (then it is flat, as `fold_batch_norm`
    makes it). Its attribute `equalization`, an `Equalization`, says which channels were rescaled
    and which not, and why (it is not saved with the model).

    Wherever all that lies between the weights that make a channel and those that read it is
    positively homogeneous, f(s x) = s f(x), these are multiplied and those, with the biases,
    divided by

        s = sqrt(r_made / r_read),      r = max|w| of the channel

    (of several weights that make or read it, the geometric mean), so that both ranges become
    sqrt(r_made * r_read). Channel groups take turns until no factor changes by more than 0.1 %.

    Homogeneous are ReLU, LeakyReLU and PReLU, pooling, zero padding, cropping, upsampling,
    reshapes, concatenation, sums, differences and maxima of tensors, and gates (x times what does
    not scale); not sigmoid, tanh, softmax, swish, GELU, relu6 (but see `unclip`), or a BatchNorm
    that cannot be folded. Depthwise convolutions read and make channels.

    It is the per-tensor quantization of weights that gains; and a channel's activations grow as its
    weights do, which costs activations quantized per tensor: `largest_factor` bounds it.

    Args:
        largest_factor: at least 1; no channel is multiplied or divided by more. Channels with a
            range of zero stay as they are.
        sweeps: at most so many turns.
        unclip: whether relu6 and other clipped ReLUs become plain ones first, as the paper does
            with MobileNetV2. Then the model is flat, and no longer computes the same where an
            activation passes the clip: measure what it costs.

    Raises:
        InputError: values out of range, weights that are not finite, a model that is not built or
            cannot be read as a graph.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.1.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation="relu"),
    ...                           keras.layers.Dense(2)])
    >>> kernel, *others = model.get_weights()
    >>> model.set_weights([kernel * np.array([1, 1, 1, 1, 1, 100]), *others])
    >>> after = equalize(model).layers[0].kernel
    >>> bool(np.ptp(np.abs(after).max(axis=0)) < np.ptp(np.abs(model.layers[0].kernel).max(axis=0)))
    True
    """
    rule = "must be a number of at least 1"
    number = isinstance(largest_factor, int | float) and math.isfinite(largest_factor)
    owner = "largest_factor of equalize"
    require(number and largest_factor >= 1, owner, rule, largest_factor=largest_factor)
    require(isinstance(sweeps, int) and sweeps >= 1, "sweeps of equalize", rule, sweeps=sweeps)
    require(isinstance(model, keras.Model), "A model", "must be a Keras 3 model", model=model)
    require(isinstance(unclip, bool), "unclip of equalize", "must be True or False", unclip=unclip)
    source = followed(fold_batch_norm(model) if can_fold(model) else model)
    known = getattr(source, "pre_activations", None)
    source, unclipped = _unclipped(graph.functional(source)) if unclip else (source, ())
    new = keep_channels(channel_groups(source), {})
    flat, origins = graph.flatten(new)
    found = scaling(flat)
    balance = _Balance(found, math.log(largest_factor))
    used, change = 0, math.inf
    while used < sweeps and change > CONVERGED:
        used, change = used + 1, balance.sweep()
    paths = weights.origin_paths(new, origins)
    names = {id(flat.get_layer(name)): path for name, path in paths.items()}
    groups = tuple(balance.report(group, names) for group in balance.groups)
    skipped = _skipped(found, balance, names)
    new.equalization = Equalization(groups, skipped, used, change <= CONVERGED, unclipped)
    balance.write(origins)
    if known:
        new.pre_activations = types.MappingProxyType(balance.divided(known))
    return new


def followed(model: keras.Model) -> keras.Model:
    """Returns the model itself, or flat if it or a model in it is subclassed."""
    parts = [part for part in model._flatten_layers() if isinstance(part, keras.Model)]
    return model if all(map(graph.is_graph, parts)) else graph.functional(model)


def _unclipped(flat: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    """Returns the flat model with plain ReLUs for clipped ones, and the names of these layers."""
    changed: dict[str, None] = {}

    def call(node, copy, *args, **kwargs):
        operation = node.operation
        if type(operation).__name__ == "Relu6":
            changed[operation.name] = None
            return keras.ops.relu(*args)
        function: Any = getattr(operation, "activation", None)
        if type(operation) is keras.layers.ReLU and operation.max_value is not None:
            changed[operation.name] = copy.max_value = None
        elif function is keras.activations.relu6 or (
            type(function) is keras.layers.ReLU
            and function.max_value is not None
            and not (function.negative_slope or function.threshold)
        ):
            changed[operation.name] = None
            copy.activation = keras.activations.relu
        return copy(*args, **kwargs)

    return graph.rebuild(flat, call), tuple(changed)


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """`channels` that the same parts make and read; `loops`: a kernel makes what it reads."""

    channels: np.ndarray
    makers: list[Part]
    readers: list[Part]
    followers: list[Part]
    loops: bool


class _Balance:
    """The factors so far, as logarithms by channel, and the kernels' magnitudes under them."""

    def __init__(self, found: Scaling, limit: float):
        self.parts = list(found.scaled.values())
        self.channel_of = found.components()
        self.free = np.ones(self.channel_of.size, bool)
        self.free[self.channel_of[PINNED]] = False
        for labels, _ in found.pins:
            self.free[self.channel_of[labels]] = False
        self.groups = self._grouped()
        self._limit = limit
        self._factors = np.zeros(self.channel_of.size)
        self._magnitudes = {
            id(part.variable): _magnitude(part) for part in self.parts if part.is_kernel
        }
        self._before = [self._precision(group) for group in self.groups]

    def _grouped(self) -> list[_Group]:
        """Returns the free channels that a kernel reads, those with the same parts together."""
        random = np.random.default_rng(0).integers(1, 2**63, len(self.parts), dtype=np.uint64)
        signatures = np.zeros(self.channel_of.size, np.uint64)
        read = np.zeros(self.channel_of.size, bool)
        own = [np.unique(self.channel_of[part.labels]) for part in self.parts]
        for part, channels, number in zip(self.parts, own, random, strict=True):
            signatures[channels] += number  # of two sets of parts 2**-64 agree by chance
            read[channels] |= part.power > 0
        candidates = np.flatnonzero(self.free & read)
        _, first, which = np.unique(signatures[candidates], return_index=True, return_inverse=True)
        groups = []
        for number in np.argsort(first):
            channels = candidates[which == number]
            touching = [
                part
                for part, others in zip(self.parts, own, strict=True)
                if channels[0] in others  # all channels of a group have the same parts
            ]
            makers = [part for part in touching if part.is_kernel and part.power < 0]
            readers = [part for part in touching if part.is_kernel and part.power > 0]
            made = {id(part.variable) for part in makers}
            loops = any(id(part.variable) in made for part in readers)
            biases = [part for part in touching if not part.is_kernel]
            groups.append(_Group(channels, makers, readers, biases, loops))
        return groups

    def sweep(self) -> float:
        """Balances each group once; returns the largest change of a factor's logarithm."""
        return max((self._balance(group) for group in self.groups), default=0.0)

    def _balance(self, group: _Group) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            made, read = (
                np.mean([np.log(self._ranges(part)[group.channels]) for part in parts], axis=0)
                for parts in (group.makers, group.readers)
            )
            step = (made - read) / 2
        alive = np.isfinite(step)
        if group.loops:
            step /= 2  # both ends move at once: whole steps could swing for ever
        elif alive.any():
            step += OVERRELAXATION * step[alive].mean()
        step = np.where(alive, step, 0.0)
        before = self._factors[group.channels]
        after = np.clip(before + step, -self._limit, self._limit)
        self._factors[group.channels] = after
        change = np.zeros(self.channel_of.size)
        change[group.channels] = after - before
        for part in (*group.makers, *group.readers):
            self._magnitudes[id(part.variable)] *= self._multiplier(part, change)
        return float(np.abs(after - before).max())

    def _ranges(self, part: Part) -> np.ndarray:
        """Returns the largest |w| of every channel in a kernel, 0 for channels not in it."""
        magnitude = self._magnitudes[id(part.variable)]
        others = tuple(axis for axis in (0, 1) if part.labels.shape[axis] == 1)
        largest = magnitude.max(axis=others, keepdims=True)
        ranges = np.zeros(self.channel_of.size)
        np.maximum.at(ranges, self.channel_of[part.labels].ravel(), largest.ravel())
        return ranges

    def _multiplier(self, part: Part, factors: np.ndarray) -> np.ndarray:
        return np.exp(part.power * factors)[self.channel_of[part.labels]]

    def _precision(self, group: _Group) -> float:
        """Returns the mean over channels of sqrt(share made * share read), of what max|w| is."""
        logs = []
        with np.errstate(divide="ignore"):
            for parts in (group.makers, group.readers):
                shares = [
                    self._ranges(part)[group.channels]
                    / (self._magnitudes[id(part.variable)].max(initial=0.0) or 1.0)
                    for part in parts
                ]
                logs.append(np.mean(np.log(shares), axis=0))
        return float(np.exp(np.mean(logs, axis=0)).mean())

    def report(self, group: _Group, names: Mapping[int, str]) -> EqualizedGroup:
        factors = np.exp(self._factors[group.channels])
        before = self._before[self.groups.index(group)]
        return EqualizedGroup(
            tuple(dict.fromkeys(names[id(part.layer)] for part in group.makers)),
            tuple(dict.fromkeys(names[id(part.layer)] for part in group.readers)),
            group.channels.size,
            (before, self._precision(group)),
            (float(factors.min()), float(factors.max())),
        )

    def write(self, origins: Mapping[str, keras.layers.Layer]) -> None:
        """Multiplies the weights of the layers that the flat model's were copied from."""
        for part in self.parts:
            number = next(n for n, v in enumerate(part.layer.variables) if v is part.variable)
            target = origins[part.layer.name].variables[number]
            value = keras.ops.convert_to_numpy(target).astype(np.float64)
            target.assign(value * self._multiplier(part, self._factors))

    def divided(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the mean and deviation of layers' outputs, by name, as they are now."""
        made: dict[str, np.ndarray] = {}
        for part in self.parts:
            if part.power < 0 and part.variable is getattr(part.layer, "bias", None):
                made[part.layer.name] = self._multiplier(part, self._factors)
        return {
            name: tuple(np.asarray(vector) * made.get(name, 1.0) for vector in pair)
            for name, pair in known.items()
        }


def _magnitude(part: Part) -> np.ndarray:
    """Returns |w| as a float64 matrix of its last two axes, the largest over the others."""
    value = np.abs(keras.ops.convert_to_numpy(part.variable).astype(np.float64))
    owner = f"Weights of '{part.layer.name}'"
    require(np.isfinite(value).all(), owner, "must be finite to be equalised")
    return value.reshape(-1, *value.shape[-2:]).max(axis=0)


def _skipped(found: Scaling, balance: _Balance, names: Mapping[int, str]) -> dict[str, str]:
    """Returns the reason for each layer that makes channels that were not rescaled."""
    reasons: dict[int, str] = {}
    for labels, reason in found.pins:
        for channel in np.unique(balance.channel_of[labels]).tolist():
            reasons.setdefault(channel, reason)
    done = np.zeros(balance.channel_of.size, bool)
    for group in balance.groups:
        done[group.channels] = True
    skipped: dict[str, str] = {}
    for part in balance.parts:
        if part.is_kernel and part.power < 0:
            channels = np.unique(balance.channel_of[part.labels])
            left = channels[~done[channels]].tolist()
            if left:
                why = next((reasons[c] for c in left if c in reasons), "no kernel reads them")
                skipped.setdefault(names[id(part.layer)], why)
    return skipped
