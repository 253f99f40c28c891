"""The channels of a model that can be removed, in groups, with every weight that they touch."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import require, unknown
from tfcompress.structured import layers as layers  # each layer's function registers itself
from tfcompress.structured import trace as tracing
from tfcompress.structured.trace import PINNED, Trace, Use
from tfcompress.weights import Names

NONE_MADE = "no layer is known to make channels (quantize_aware comes afterwards)"
_MOST_READERS = 3  # of a group that the table names


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A weight that holds slices of a group's channels along one of its axes.

    `role` says what a slice does: "out" makes the channel (a kernel's columns, a bias), "in" reads
    it (the next kernel's rows), "each" belongs to it on its way (BatchNorm, depthwise kernels,
    PReLU). `indices[i]` along `axis` belongs to channel `channels[i]` of the group; there may be
    several for one channel (after Flatten as many as the map had positions).
    """

    layer: keras.layers.Layer
    layer_path: str
    variable: keras.Variable
    axis: int
    role: str
    channels: np.ndarray
    indices: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels that run in parallel through the same weights; each can go without the others.

    `name` is the path of the first layer that makes them, `size` their number. `inexact` lists
    why a removal changes more than the silencing of the channels does (a normalization over them).
    """

    name: str
    size: int
    members: tuple[Member, ...]
    inexact: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All groups of a model, in the order of its layers, and what had to stay.

    A sequence of `Group`; `groups["conv1"]` finds one by name. `pinned` says for each layer whose
    channels must stay, all or some of them, the reason. `str()` is a table.
    """

    model: keras.Model
    groups: tuple[Group, ...]
    pinned: dict[str, str]
    trace: Trace = dataclasses.field(repr=False)
    channel_of: np.ndarray = dataclasses.field(repr=False)  # by label of the trace: its channel
    labels: tuple[np.ndarray, ...] = dataclasses.field(repr=False)  # by group: its channels

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __getitem__(self, key: str | int) -> Group:
        if isinstance(key, int):
            return self.groups[key]
        for group in self.groups:
            if group.name == key:
                return group
        raise unknown("channel group", key, [group.name for group in self.groups])

    def stays(self, kept: Mapping[str, Any]) -> np.ndarray:
        """Returns for each label of the trace whether it stays, bool; `kept` as `keep_channels`."""
        channel_of = self.channel_of
        stays = np.ones(channel_of.size, bool)
        numbers = {group.name: number for number, group in enumerate(self.groups)}
        for name, chosen in kept.items():
            group = self[name]
            indices = np.unique(chosen)
            # A bool mask would pass for the numbers 0 and 1.
            whole = indices.size and indices.dtype.kind in "iu"
            inside = whole and indices[0] >= 0 and indices[-1] < group.size
            rule = f"must be at least one whole number, each in [0, {group.size})"
            require(inside, f"kept channels of '{name}'", rule, kept=chosen)
            stays[np.delete(self.labels[numbers[name]], indices)] = False
        return stays[channel_of]

    def __str__(self) -> str:
        wide = max([len(group.name) for group in self.groups] + [len("group")])
        rows = [f"{'group':{wide}}  channels  read by"]
        for group in self.groups:
            readers = dict.fromkeys(m.layer_path for m in group.members if m.role == "in")
            shown = ", ".join([*readers][:_MOST_READERS])
            more = len(readers) - _MOST_READERS
            row = f"{group.name:{wide}}  {group.size:8}  {shown}"
            rows.append(f"{row} and {more} more" if more > 0 else row)
            rows += [f"{'':{wide}}            {reason}" for reason in group.inexact]
        rows += [f"pinned: {path}: {reason}" for path, reason in self.pinned.items()]
        if not self.groups and not self.pinned:
            rows.append(f"none: {NONE_MADE}")
        return "\n".join(rows)


def channel_groups(model: keras.Model) -> ChannelGroups:
    """Returns which channels of the model stand and fall together; the model stays as it is.

    Followed are Sequential and functional models with everything that is nested in them, layer by
    layer; a channel is in a group only if every weight and every shape that would have to change
    with it is known. Channels of inputs and outputs, and all that meet a layer that is not known
    (a Lambda, a custom layer), are pinned. Time is linear in the number of layers and channels.

    Raises:
        InputError: the model is not built, or it or a model in it is subclassed.

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 3, name="conv"),
    ...     keras.layers.Flatten(), keras.layers.Dense(10, name="head")])
    >>> groups = channel_groups(model)
    >>> [(member.layer_path, member.role, member.indices.size) for member in groups["conv"].members]
    [('conv', 'out', 6), ('conv', 'out', 6), ('head', 'in', 216)]
    >>> groups.pinned
    {'head': 'it is an output of the model'}
    """
    found = tracing.trace(model)
    channel_of = found.components()
    uses = list(found.uses.values())
    reasons = _reasons(found, channel_of)
    group_of = _signatures(uses, channel_of, reasons)
    if _hold_parts(found, channel_of, group_of):
        reasons = _reasons(found, channel_of)
        group_of = _signatures(uses, channel_of, reasons)
    labels = list(_in_order(group_of, uses, channel_of))
    owner = np.full(channel_of.size, -1)
    for number, own in enumerate(labels):
        owner[own] = number
    inexact: list[dict[str, None]] = [{} for _ in labels]
    for remarked, reason in found.remarks:
        for number in np.unique(owner[channel_of[remarked]]).tolist():
            if number >= 0:
                inexact[number][reason] = None
    groups, names = [], Names()
    for own, members, why in zip(
        labels, _members(uses, channel_of, labels, owner), inexact, strict=True
    ):
        made = next((m for m in members if m.role == "out"), members[0])
        name = names.unique(made.layer_path)
        groups.append(Group(name, own.size, tuple(members), tuple(why)))
    pinned = _pinned(uses, channel_of, reasons)
    return ChannelGroups(model, tuple(groups), pinned, found, channel_of, tuple(labels))


def _reasons(found: Trace, channel_of: np.ndarray) -> dict[int, str]:
    """Returns why pinned channels must stay; of several reasons the first that was met."""
    reasons: dict[int, str] = {}
    for labels, reason in found.pins:
        for channel in np.unique(channel_of[labels]).tolist():
            reasons.setdefault(channel, reason)
    return reasons


def _hold_parts(found: Trace, channel_of: np.ndarray, group_of: np.ndarray) -> bool:
    """Pins a channel of each part of a split that a group could leave empty; whether there are any.

    A part that holds a pinned channel, or all channels of a group, keeps at least one by itself.
    """
    sizes = dict(zip(*np.unique(group_of, return_counts=True), strict=True))
    held = False
    for part in found.parts:
        inside = np.unique(channel_of[part])
        groups, counts = np.unique(group_of[inside], return_counts=True)
        if not any(
            group == 0 or sizes[group] == n for group, n in zip(groups, counts, strict=True)
        ):
            found.pin(part[:1], "a part of a split must not become empty")
            held = True
    return held


def _signatures(uses: list[Use], channel_of: np.ndarray, reasons: Mapping[int, str]) -> np.ndarray:
    """Returns for each channel a number that is the same for those that touch the same weights.

    0 for channels that are not free or touch none. The sum of a random number for each weight:
    two different sets agree with a probability of 2**-64.
    """
    random = np.random.default_rng(0).integers(1, 2**63, len(uses), dtype=np.uint64)
    signatures = np.zeros(channel_of.size, np.uint64)
    for use, number in zip(uses, random, strict=True):
        signatures[np.unique(channel_of[use.labels])] += number
    signatures[[channel_of[PINNED], *reasons]] = 0
    return signatures


def _in_order(
    group_of: np.ndarray, uses: list[Use], channel_of: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the channels of each group as they come in the first weight that they are in."""
    done: set[int] = set()
    for use in uses:
        channels = channel_of[use.labels]
        _, first = np.unique(channels, return_index=True)
        channels = channels[np.sort(first)]
        signatures = group_of[channels]
        for signature in dict.fromkeys(signatures.tolist()):
            if signature and signature not in done:
                done.add(signature)
                yield channels[signatures == signature]


def _members(
    uses: list[Use], channel_of: np.ndarray, labels: list[np.ndarray], owner: np.ndarray
) -> list[list[Member]]:
    """Returns the members of every group; `owner` is the number of a channel's group, or -1."""
    position = np.full(channel_of.size, -1)
    for own in labels:
        position[own] = np.arange(own.size)
    members: list[list[Member]] = [[] for _ in labels]
    for use in uses:
        channels = channel_of[use.labels]
        owners = owner[channels]
        for number in np.unique(owners[owners >= 0]).tolist():
            (indices,) = np.nonzero(owners == number)
            mine = position[channels[indices]]
            member = Member(use.layer, use.path, use.variable, use.axis, use.role, mine, indices)
            members[number].append(member)
    return members


def _pinned(uses: list[Use], channel_of: np.ndarray, reasons: dict[int, str]) -> dict[str, str]:
    pinned: dict[str, str] = {}
    for use in uses:
        if use.role == "out":
            channels = np.unique(channel_of[use.labels]).tolist()
            why = next((reasons[c] for c in channels if c in reasons), None)
            if why is not None:
                pinned.setdefault(use.path, why)
    return pinned
