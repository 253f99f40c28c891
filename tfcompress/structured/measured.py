"""Which group loses channels next, decided by the loss of the model that is left."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.errors import call, require
from tfcompress.structured import evaluation
from tfcompress.structured.groups import ChannelGroups, Group
from tfcompress.structured.per_cost import Cost
from tfcompress.structured.ranking import Ranking, Shrinking
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.selection import Limit

STEP = 0.05  # share of the whole model's cost that each step saves
_BATCHES, _BATCH = 4, 256  # so many rows give BatchNorm good statistics

Measure = Callable[[Mapping[str, np.ndarray]], float]  # channels kept by group -> loss


def rank_measured(
    groups: Sequence[Group],
    scores: Mapping[str, np.ndarray],
    cost: Cost,
    limits: Mapping[str, Limit],
    measure: Measure,
    most: float,
    *,
    normalise: bool = True,
) -> Ranking:
    """Returns the channels in the order in which they go while the loss is watched.

    Each step saves `STEP` of the whole model's cost, all of it in one group: the lowest channels of
    every group in turn are taken out, as many as that needs, and the group whose absence leaves the
    model with the lowest loss has lost them. So until the model costs at most the share `most`.
    The channels left come last, in the order of `rank`.

    Args:
        scores, cost, limits, normalise: see `rank_per_cost`.
        measure: the loss of the model with those channels, see `loss_without`.

    Source: Yang et al. 2018, "NetAdapt", without its fine-tuning after each step.
    """
    shrinking = Shrinking(groups, scores, normalise)
    whole = float(cost(shrinking.widths))
    while (now := float(cost(shrinking.widths))) > most * whole:
        target = max(now - STEP * whole, most * whole)
        found = []
        for number, group in enumerate(groups):
            widths = _narrower(shrinking.widths, number, limits[group.name], cost, target)
            if widths[number] < shrinking.widths[number]:
                kept = {g.name: shrinking.kept(n, widths[n]) for n, g in enumerate(groups)}
                # A group that is too small to save that much goes where no other does.
                short = bool(cost(widths) > target)
                found.append((short, measure(kept), number, int(widths[number])))
        if not found:
            break
        _, loss, number, width = min(found)
        shrinking.shrink(number, width, loss)
    return shrinking.ranking()


def _narrower(
    widths: np.ndarray, number: int, limit: Limit, cost: Cost, target: float
) -> np.ndarray:
    """Returns the widths with one group as wide as the target lets it be, or as narrow as can."""
    widths = widths.copy()
    while cost(widths) > target and (below := limit.below(int(widths[number]))) is not None:
        widths[number] = below
    return widths


def loss_without(groups: ChannelGroups, data: Any, loss: Any = None) -> Measure:
    """Returns what builds a model with the channels that are kept, and gives its mean loss.

    About 1,000 samples are read. BatchNorm takes the statistics of each batch, unless it is frozen:
    the moving ones are those of the channels that have gone. All else runs as at inference.

    Raises:
        InputError: see `tfcompress.structured.evaluation`.
    """
    judged = evaluation.loss_of(groups.model, loss)
    read = list(evaluation.batches(data, _BATCH, _BATCHES))

    def measure(kept: Mapping[str, np.ndarray]) -> float:
        small = keep_channels(groups, kept)
        total, rows = 0.0, 0
        for x, y in read:
            arrays = evaluation.inputs_in_order(small, x)
            require(y is not None, "data", "must be (x, y): a loss needs labels")
            outputs = _outputs(small, arrays)
            total += len(arrays[0]) * float(call(partial(judged, y, outputs), "The loss"))
            rows += len(arrays[0])
        # A model that is cut too far may overflow: then another group has to lose channels.
        return total / rows if np.isfinite(total) else np.inf

    return measure


def _outputs(model: keras.Model, arrays: Sequence[Any]) -> Any:
    def on_batch(node: Any, path: str, args: Any, kwargs: Any) -> Any:
        if isinstance(node.operation, keras.layers.BatchNormalization):
            kwargs = {**kwargs, "training": True}
        return node.operation(*args, **kwargs)

    specs = keras.tree.flatten(graph.inputs_of(model))
    inputs = [tf.cast(a, spec.dtype) for a, spec in zip(arrays, specs, strict=True)]
    with keras.StatelessScope():  # the statistics are not kept
        return graph.interpret(model, inputs, on_batch)
