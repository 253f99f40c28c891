"""Dead channels: those without effect leave the model, which goes on computing the same."""

import dataclasses
from numbers import Real
from typing import Any

import keras
import numpy as np

from tfcompress.errors import require
from tfcompress.structured import contractions, slices
from tfcompress.structured.bounds import Bounds, flow
from tfcompress.structured.groups import ChannelGroups, channel_groups
from tfcompress.structured.layers.convolution import channel_axis
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.trace import PINNED

_OUTPUTS = 256  # of a layer that are compared at a time
FLOAT32_ROUNDING = 2.0**-24  # half a unit in the last place, relative


@dataclasses.dataclass(frozen=True, eq=False)
class DeadChannels:
    """What `dead_channels` found; `str()` is a table.

    dead: by group the channels without effect, or whose effect is constant and can be added to the
        biases of the layers that read them. stay: by group why others stay that are dead, too.
    groups: the model's groups. biases: by `id` of a layer what the constants add to its outputs.
    """

    dead: dict[str, np.ndarray]
    stay: dict[str, str]
    groups: ChannelGroups
    biases: dict[int, np.ndarray] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        wide = max([len(group.name) for group in self.groups] + [len("group")])
        rows = [f"{'group':{wide}}  channels  dead"]
        for group in self.groups:
            count = self.dead[group.name].size
            row = f"{group.name:{wide}}  {group.size:8}  {count:4}"
            rows.append(f"{row}  {self.stay.get(group.name, '')}".rstrip())
        return "\n".join(rows)


def remove_dead_channels(
    model: keras.Model,
    tolerance: float = FLOAT32_ROUNDING,
    largest_input: float = 1e3,
    optimizer: bool = False,
) -> keras.Model:
    """Returns the model without the channels that do nothing; it computes the same function.

    What `dead_channels` finds goes, constants being added to the next layer's bias (a layer without
    one gets one), again and again until nothing more goes: a layer whose outputs nobody reads
    leaves inputs of its own unread. `model` stays as it is; so does a group's last channel.

    Args: as `dead_channels`; optimizer as `keep_channels`.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden"),
    ...                           keras.layers.Dense(2)])
    >>> kernel, bias = model.layers[1].get_weights()
    >>> model.layers[1].set_weights([kernel * np.array([[1], [0], [1], [0]]), bias])
    >>> remove_dead_channels(model).get_layer("hidden").units
    2
    """
    while True:
        found = dead_channels(model, tolerance, largest_input)
        kept = {
            group.name: np.delete(np.arange(group.size), found.dead[group.name])
            for group in found.groups
            if found.dead[group.name].size
        }
        model = keep_channels(found.groups, kept, optimizer, biases=found.biases)
        if not kept:
            return model


def dead_channels(
    model: keras.Model, tolerance: float = FLOAT32_ROUNDING, largest_input: float = 1e3
) -> DeadChannels:
    """Returns which channels have no effect on what the model computes; `model` stays as it is.

    Interval arithmetic gives for each channel the least and the greatest value that it can have
    where a layer reads it. A channel is dead if, for each output of each layer that reads it,
    half the width of this interval times the weights that read it is at most `tolerance` times the
    typical size of the sum that it is added to: float32 loses it there. That covers outgoing
    weights of zero or 1e-20, incoming ones (the channel is constant), and a ReLU that never opens.
    The interval's middle, where it matters, can be added to the next bias: exactly so unless zero
    padding lets the border see another constant than the rest; then the channel stays.

    Args:
        tolerance: relative, at least 0; 0 removes only what has exactly no effect.
        largest_input: the model's inputs are taken to lie in [-largest_input, largest_input].
            Values behind a BatchNorm are taken to lie within 100,000 standard deviations of its
            moving mean.

    Raises:
        InputError: see `channel_groups`; values out of range, weights that are not finite.

    Source: the bounds are interval arithmetic (Moore 1966), as in Gowal et al. 2018, "On the
    effectiveness of interval bound propagation".
    """
    positive = isinstance(tolerance, Real) and tolerance >= 0
    require(positive, "tolerance", "must be at least 0", tolerance=tolerance)
    positive = isinstance(largest_input, Real) and 0 < largest_input < 1e30
    require(positive, "largest_input", "must be a positive number", largest_input=largest_input)
    groups = channel_groups(model)
    # No bound holds for NaN, and no comparison: every channel would seem dead.
    for variable in model.weights:
        finite = np.isfinite(keras.ops.convert_to_numpy(variable)).all()
        require(finite, f"Weights '{variable.path}'", "must be finite, without NaN or infinity")
    readings = _readings(model, groups, largest_input)
    waiting = _candidates(groups, readings)
    stay: dict[int, str] = {}
    alive = np.ones(groups.channel_of.size, bool)
    while True:
        dying = waiting & ~_loud(readings, alive, tolerance, stay)
        if not dying.any():
            break
        alive &= ~dying
        waiting &= ~dying
    return _report(groups, readings, alive, stay)


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """One place where a layer reads channels: `inputs` and `outputs` are the channels' numbers."""

    layer: Any
    path: str
    inputs: np.ndarray
    outputs: np.ndarray
    strengths: np.ndarray  # (inputs, outputs): the sum of |weights|
    sums: np.ndarray | None  # (inputs, outputs): the sum of weights; None: constants stay
    half_width: np.ndarray
    middle: np.ndarray
    typical: np.ndarray  # (outputs,)


def _readings(model: keras.Model, groups: ChannelGroups, largest_input: float) -> list[_Reading]:
    found: list[_Reading] = []
    uses = groups.trace.uses

    def axis_channels(variable: Any, axis: int, size: int) -> np.ndarray:
        use = uses.get((id(variable), axis))
        labels = np.full(size, PINNED) if use is None else use.labels
        return groups.channel_of[labels]

    def read(layer: Any, path: str, x: Bounds) -> None:
        matrix = contractions.of(layer)
        rank = len(_axes(layer)[0][0].shape) if matrix.spatial else None
        channels = x.per_channel(channel_axis(layer, rank) - 1 if rank else -1)
        count, width = matrix.taps.shape[1:]
        low, high, typical = (
            np.broadcast_to(a, count) for a in (channels.low, channels.high, channels.typical)
        )
        channels = Bounds(low, high, typical)
        entering, leaving = _axes(layer)
        inputs = axis_channels(*entering, count)
        if inputs.size < count:  # the groups of a grouped convolution share their columns
            inputs = np.tile(inputs, count // inputs.size)
        strengths = np.empty((count, width), np.float32)
        sums = None if matrix.padded else np.empty((count, width), np.float32)
        square = matrix.bias**2
        for columns, taps in matrix.blocks():
            strengths[:, columns] = np.abs(taps).sum(0)
            square[columns] += typical**2 @ (taps**2).sum(0)
            if sums is not None:
                sums[:, columns] = taps.sum(0)
        outputs = axis_channels(*leaving, width)
        half_width, middle = channels.half_width, channels.middle
        found.append(
            _Reading(
                layer, path, inputs, outputs, strengths, sums, half_width, middle, np.sqrt(square)
            )
        )

    flow(model, largest_input, read)
    return found


def _axes(layer: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """Returns (weight, axis) of the channels that a layer reads, and of those that it makes."""
    kernel = getattr(layer, "depthwise_kernel", None)
    if kernel is not None:
        return (kernel, len(kernel.shape) - 2), (layer.pointwise_kernel, len(kernel.shape) - 1)
    kernel = layer.kernel
    rank = len(kernel.shape)
    transposed = type(layer).__name__.endswith("Transpose")
    inputs, outputs = (rank - 1, rank - 2) if transposed else (rank - 2, rank - 1)
    return (kernel, inputs), (kernel, outputs)


def _candidates(groups: ChannelGroups, readings: list[_Reading]) -> np.ndarray:
    """Returns which channels can be judged: something reads them, and their removal is exact.

    Of layers that are not known as sums (recurrent ones, attention) only weights of zero count.
    """
    judged = np.zeros(groups.channel_of.size, bool)
    known = {id(variable) for r in readings for variable in r.layer.variables}
    for group, own in zip(groups, groups.labels, strict=True):
        readers = [m for m in group.members if m.role == "in"]
        if readers and not group.inexact:
            heard = [slices.not_zero(m, group.size) for m in readers if id(m.variable) not in known]
            judged[own] = ~np.any(heard, axis=0)
    return judged


def _loud(
    readings: list[_Reading], alive: np.ndarray, tolerance: float, stay: dict[int, str]
) -> np.ndarray:
    """Returns which channels are heard: some layer's output that is alive depends on them."""
    loud = np.zeros(alive.size, bool)
    constants: dict[int, np.ndarray] = {}
    for r in readings:
        heard = alive[r.outputs]
        reach = _reach(r.strengths, np.where(heard, tolerance * r.typical, np.inf))
        with np.errstate(invalid="ignore", over="ignore"):  # no width, an infinite reach: no effect
            varies, shifts = reach * r.half_width > 1, reach * np.abs(r.middle) > 1
        stuck = shifts & ~varies
        if r.sums is not None:
            # A layer that is called twice has one bias: both calls must see the same constants.
            before = constants.setdefault(id(r.layer), r.middle)
            stuck &= before != r.middle
            reason = f"'{r.path}' is shared and sees another constant in each place"
        else:
            reason = f"a constant that '{r.path}' reads with zeros around it at the border"
        loud[r.inputs[varies | stuck]] = True
        for channel in np.unique(r.inputs[stuck]).tolist():
            stay.setdefault(channel, reason)
    return loud


def _reach(strengths: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Returns the largest strength / limit of each input, float64; 0 / 0 is 0."""
    largest = np.zeros(len(strengths))
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, len(limit), _OUTPUTS):
            columns = slice(start, start + _OUTPUTS)
            ratios = strengths[:, columns] / limit[columns]
            np.maximum(largest, np.nan_to_num(ratios, posinf=np.inf).max(axis=1), out=largest)
    return largest


def _report(
    groups: ChannelGroups, readings: list[_Reading], alive: np.ndarray, stay: dict[int, str]
) -> DeadChannels:
    dead, reasons = {}, {}
    gone = ~alive
    for group, own in zip(groups, groups.labels, strict=True):
        indices = np.flatnonzero(gone[own])
        if indices.size == group.size:
            indices = indices[1:]
            gone[own[0]] = False
            reasons[group.name] = "all are dead: one stays"
        dead[group.name] = indices
        whys = {stay[c] for c in own[~gone[own]].tolist() if c in stay}
        if whys:
            reasons[group.name] = "; ".join(sorted(whys))
        elif group.inexact:
            reasons[group.name] = group.inexact[0]
    biases: dict[int, np.ndarray] = {}
    for r in readings:
        leaving = gone[r.inputs] & (r.middle != 0)
        if r.sums is not None and leaving.any():
            biases.setdefault(id(r.layer), r.middle[leaving] @ r.sums[leaving])
    return DeadChannels(dead, reasons, groups, biases)
