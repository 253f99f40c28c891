"""What the data says about channels: gradients and activations, gathered for the scores."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InputError, call, require, unknown
from tfcompress.structured import evaluation, slices
from tfcompress.structured.groups import ChannelGroups, Group, Member
from tfcompress.structured.sites import Site, Sites

NEEDS = ("weights", "gradients", "activations")


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What was gathered, by name of the group; float64 arrays (parts of the group, group.size).

    A part is the weights of one layer in one role: kernel and bias, gamma and beta, the rows of a
    reader. For each channel's slice of a part:

    taylor: mean over batches of |sum of w g|, of the parts that silence the channel when they are
        zero: not of kernels before a BatchNorm.
    fisher: sum of w^2 F / 2, F the mean over batches of g^2, of all parts.
    zeros: share of zeros in the channel, in [0, 1], as it enters each layer that reads it.
    """

    taylor: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fisher: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    zeros: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def of(self, kind: str, group: Group) -> np.ndarray:
        """Returns the group's array; `InputError` if it was not gathered."""
        found = getattr(self, kind)
        if group.name not in found:
            need = "activations" if kind == "zeros" else "gradients"
            raise InputError(
                f"Evidence for group '{group.name}' must hold {need}: collect(model, groups, data, "
                f'needs="{need}")'
            )
        return found[group.name]


def collect(
    model: keras.Model,
    groups: ChannelGroups,
    data: Any = None,
    loss: Any = None,
    needs: str = "weights",
    *,
    batches: int = 16,
    batch_size: int = 64,
) -> Evidence:
    """Returns what a score `needs` to know of the groups; `model` stays as it is.

    The model runs as at inference: dropout is off, BatchNorm uses its moving statistics and keeps
    them, optimizer and the states of RNNs are not touched. Memory is linear in weights and one
    batch's activations.

    Args:
        groups: of this model, see `channel_groups`.
        data: `(x, y)` and the other forms of `tfcompress.structured.evaluation.batches`; labels are
            needed for "gradients" only. Not read for "weights".
        loss: as `compile` takes it, None: the compiled one. For "gradients" only.
        needs: "weights" (nothing is gathered), "gradients" or "activations".
        batches: at most so many batches are read, at least 1.
        batch_size: rows of a batch where `data` is arrays.

    Raises:
        InputError: weights that are not finite (naming the layer), data that does not fit the
            model, no loss, or a loss that is not finite.

    Example:

        groups = tfc.channel_groups(model)
        evidence = collect(model, groups, (x, y), needs="gradients")
        SCORES.create("gradient").score(groups["conv1"], evidence)
    """
    if needs not in NEEDS:
        raise unknown("kind of evidence", needs, NEEDS)
    if needs == "weights":
        return Evidence()
    require(data is not None, "data", f"must be given to gather {needs}", data=data)
    for group in groups:
        for member in group.members:
            slices.value(member)  # NaN is found here, where the layer can be named
    read = evaluation.batches(data, batch_size, batches)
    if needs == "gradients":
        return _Gradients(model, groups, loss).gather(read)
    return _zeros(model, groups, read)


class _Gradients:
    """One compiled step gives, for each weight axis that a member speaks about, the sums of w g
    and of (w g)^2 over all other axes: small vectors, whatever the size of the weight."""

    def __init__(self, model: keras.Model, groups: ChannelGroups, loss: Any):
        self._model = model
        self._loss = evaluation.loss_of(model, loss)
        self._groups = {group: _parts(group) for group in groups}
        self._axes: dict[tuple[int, int], Member] = {}
        for parts in self._groups.values():
            for member in (member for part in parts for member in part):
                self._axes.setdefault(_key(member), member)
        self._step = tf.function(self._sums, reduce_retracing=True)

    def gather(self, batches: Iterable[evaluation.Batch]) -> Evidence:
        totals = {
            group.name: np.zeros((2, len(parts), group.size))
            for group, parts in self._groups.items()
        }
        count = 0
        for x, y in batches:
            evaluation.inputs_in_order(self._model, x)
            require(y is not None, "data", "must be (x, y): gradients need labels")
            indexed = self._indexed(x, y)
            for group, parts in self._groups.items():
                for number, part in enumerate(parts):
                    totals[group.name][:, number] += _effects(part, group.size, indexed)
            count += 1
        means = {name: total / count for name, total in totals.items()}
        silencing = {group.name: _silencing(group, parts) for group, parts in self._groups.items()}
        return Evidence(
            taylor={name: mean[0][silencing[name]] for name, mean in means.items()},
            fisher={name: mean[1] for name, mean in means.items()},
        )

    def _indexed(self, x: Any, y: Any) -> dict[tuple[int, int], np.ndarray]:
        """Returns one batch's sums by weight and axis: (2, length of the axis)."""
        loss, sums = call(lambda: evaluation.run(self._step, x, y), "The loss")
        evaluation.finite(loss)
        return dict(zip(self._axes, map(np.asarray, sums), strict=True))

    def _sums(self, x: Any, y: Any) -> tuple[Any, list[Any]]:
        members = list(self._axes.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Frozen layers too: they are as much in the channel's way.
            weights = [member.variable.value for member in members]
            tape.watch(weights)
            now = evaluation.values(self._model, {})
            loss = self._loss(y, self._model.stateless_call(*now, x, training=False)[0])
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        sums = []
        for member, w, g in zip(members, weights, gradients, strict=True):
            products = tf.cast(w * tf.convert_to_tensor(g), tf.float32)
            others = [axis for axis in range(len(w.shape)) if axis != member.axis % len(w.shape)]
            both = tf.stack([products, tf.square(products)])
            sums.append(tf.reduce_sum(both, [axis + 1 for axis in others]))
        return loss, sums


def _parts(group: Group) -> list[list[Member]]:
    """Returns the group's learnt weights, those together that become zero together."""
    parts = defaultdict(list)
    for member in group.members:
        if not slices.is_statistic(member):
            parts[member.layer_path, member.role].append(member)
    return list(parts.values())


def _silencing(group: Group, parts: list[list[Member]]) -> list[bool]:
    """Returns which parts silence a channel when they are zero.

    What BatchNorm normalises does not: a kernel of zeros before it gives a constant, not silence.
    Gamma and beta do, and the rows of the readers; where there is no BatchNorm, every part.
    """
    norms = {member.layer_path for member in group.members if slices.is_statistic(member)}
    found = [
        part[0].role == "in" or (part[0].layer_path in norms and any(map(slices.multiplies, part)))
        for part in parts
    ]
    return found if norms and any(found) else [True] * len(parts)


def _key(member: Member) -> tuple[int, int]:
    return id(member.variable), member.axis


def _effects(part: list[Member], size: int, indexed: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Returns one batch's |sum of w g| and sum of (w g)^2 / 2 per channel: (2, size)."""
    first, second = np.zeros(size), np.zeros(size)
    for member in part:
        products, squares = indexed[_key(member)].astype(np.float64)
        first += slices.per_channel(member, size, products)
        second += slices.per_channel(member, size, squares)
    return np.stack([np.abs(first), second / 2])


def _zeros(model: keras.Model, groups: ChannelGroups, read: Iterable[evaluation.Batch]) -> Evidence:
    """Returns the share of zeros of each channel as it enters each layer that reads it."""
    totals: list[np.ndarray] = []
    sites: list[Site] = []
    rows = 0
    for count, seen in Sites(model, groups, _share_of_zeros).batches(read):
        sites = [site for site, _ in seen]
        shares = [count * share for _, share in seen]
        totals = [a + b for a, b in zip(totals, shares, strict=True)] if totals else shares
        rows += count
    zeros: dict[str, list[np.ndarray]] = {group.name: [] for group in groups}
    for site, total in zip(sites, totals, strict=True):
        size = site.group.size
        sums = np.bincount(site.channels, (total / rows)[site.indices], minlength=size)
        zeros[site.group.name].append(sums / np.bincount(site.channels, minlength=size))
    return Evidence(
        zeros={group.name: np.reshape(zeros[group.name], (-1, group.size)) for group in groups}
    )


def _share_of_zeros(x: Any, axis: int) -> Any:
    others = [other for other in range(x.shape.rank) if other != axis]
    return tf.reduce_mean(tf.cast(tf.equal(x, 0), tf.float32), others)
