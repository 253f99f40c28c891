"""Over random graphs: a model without its dead channels computes the same."""

import keras
import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests.structured.random_graphs import models, outputs, samples
from tests.structured.silencing import distance, value
from tests.structured.test_removal_properties import EXACT, examples
from tfcompress.structured import channel_groups, remove_dead_channels

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

PLANTS = ["unread", "nearly unread", "constant", "closed"]
LAYERS = keras.layers
JUDGED = {LAYERS.Dense, LAYERS.Conv1D, LAYERS.Conv2D, LAYERS.Conv3D}
JUDGED |= {LAYERS.Conv2DTranspose, LAYERS.SeparableConv2D}


def plant(group, goes, kind):
    """Kills the channels of a group, as training does; returns whether they must go.

    What is not quite zero need not go where nothing bounds it, for example behind TimeDistributed.
    """
    for member in group.members:
        weights = value(member.variable)
        index = [slice(None)] * weights.ndim
        index[member.axis] = member.indices[goes[member.channels]]
        if member.role == "in" and kind == "unread":
            weights[tuple(index)] = 0
        elif member.role == "in" and kind == "nearly unread":
            weights[tuple(index)] *= 1e-20
        elif member.role == "out" and kind == "constant" and weights.ndim > 1:
            weights[tuple(index)] = 0
        elif member.role == "out" and kind == "closed":
            weights[tuple(index)] = -np.abs(weights[tuple(index)]) - 0.1
        member.variable.assign(weights)
    readers = {type(member.layer) for member in group.members if member.role == "in"}
    return kind == "unread" and readers <= JUDGED


@examples(30)
@given(models(), st.data())
def test_dead_channels_go_and_nothing_else_changes(model, data):
    groups, doomed = channel_groups(model), []
    for group in groups:
        kind = data.draw(st.sampled_from([None, *PLANTS]))
        if kind is None or group.size < 2 or group.inexact:
            continue
        chosen = data.draw(
            st.sets(st.integers(0, group.size - 1), min_size=1, max_size=group.size - 1)
        )
        goes = np.isin(np.arange(group.size), list(chosen))
        if plant(group, goes, kind):
            doomed.append((group, goes))
    x = samples(model, count=4)
    expected = outputs(model, x)
    small = remove_dead_channels(model)
    assert distance(outputs(small, x), expected) < EXACT
    shapes = _shapes(model, small)
    for group, goes in doomed:
        note(f"{group.name}: {np.flatnonzero(goes)} are dead")
        for member in group.members:
            gone = np.count_nonzero(goes[member.channels])
            now = shapes[id(member.variable)][member.axis]
            assert now <= member.variable.shape[member.axis] - gone


def _shapes(model, small):
    """Returns the shape of each of the model's variables, by `id`, in the small model."""
    shapes = {}
    pairs = (part._flatten_layers(include_self=False) for part in (model, small))
    for layer, new in zip(*pairs, strict=True):  # a bias may be there that was not
        now = {variable.path.split("/")[-1]: variable.shape for variable in new.weights}
        named = len(now) == len(new.weights)
        for index, variable in enumerate(layer.weights):
            key = variable.path.split("/")[-1]
            shapes[id(variable)] = now[key] if named else new.weights[index].shape
    return shapes
