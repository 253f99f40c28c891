"""What removal must be equal to: the original with channels silenced, by no code of the package.

A channel is silent when the weights that read it are zero; one that no weight reads, because it is
multiplied with another (the dimensions of queries and keys), when the weights that make it are.
"""

import collections
import contextlib

import keras
import numpy as np


def choose(draw, groups, strategies):
    """Draws which channels to keep, {group name: sorted indices}, some of the groups left whole."""
    kept = {}
    for group in groups:
        if not group.inexact and draw(strategies.booleans()):
            subset = strategies.sets(strategies.integers(0, group.size - 1), min_size=1)
            kept[group.name] = np.array(sorted(draw(subset)))
    return kept


def removed(groups, kept):
    """Returns (group, bool by channel: does it go?) of the groups that lose channels."""
    for group in groups:
        if group.name in kept:
            goes = np.ones(group.size, bool)
            goes[kept[group.name]] = False
            yield group, goes


def is_read(group):
    return any(member.role == "in" for member in group.members)


@contextlib.contextmanager
def silenced(groups, kept):
    """For as long as it is open, the channels that go are silent."""
    before = []
    try:
        for group, goes in removed(groups, kept):
            role = "in" if is_read(group) else "out"
            for member in group.members:
                if member.role == role:
                    before.append((member.variable, value(member.variable)))
                    _put(member, goes, 0.0)
        yield
    finally:
        for variable, weights in reversed(before):
            variable.assign(weights)


@contextlib.contextmanager
def made_differently(groups, kept, seed):
    """For as long as it is open, what makes the channels that go has other weights."""
    random, before = np.random.default_rng(seed), []
    try:
        for group, goes in removed(groups, kept):
            for member in group.members if is_read(group) else ():
                if member.role != "in":
                    before.append((member.variable, value(member.variable)))
                    _put(member, goes, random.uniform(0.5, 1.5))
        yield
    finally:
        for variable, weights in reversed(before):
            variable.assign(weights)


def _put(member, goes, number):
    weights = value(member.variable)
    weights[_along(member, goes)] = number
    member.variable.assign(weights)


def _along(member, goes):
    index = [slice(None)] * len(member.variable.shape)
    index[member.axis] = member.indices[goes[member.channels]]
    return tuple(index)


def sliced(model, groups, kept):
    """Returns (layer, its weights without the channels that go) for every layer of the model."""
    gone = collections.defaultdict(set)
    for group, goes in removed(groups, kept):
        for member in group.members:
            indices = member.indices[goes[member.channels]]
            gone[id(member.variable), member.axis] |= set(indices.tolist())
    return [
        (layer, [_without(variable, gone) for variable in layer.weights])
        for layer in model._flatten_layers(include_self=False)
    ]


def _without(variable, gone):
    weights = value(variable)
    for axis in range(weights.ndim):
        weights = np.delete(weights, sorted(gone[id(variable), axis]), axis)
    return weights


def value(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def distance(found, expected):
    """Returns the largest difference of two lists of outputs, relative to the largest output."""
    assert [a.shape for a in found] == [b.shape for b in expected]
    scale = max(np.abs(b).max(initial=1e-3) for b in expected)
    return max(np.abs(a - b).max(initial=0) for a, b in zip(found, expected, strict=True)) / scale
