"""Scores of channels brought into one order."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.errors import InputError, require, unknown
from tfcompress.structured import slices
from tfcompress.structured.evidence import Evidence

SCOPES = ("global", "layer")


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """All channels of some groups, those that go first in front.

    names: the groups' names. groups: which of `names`, int (n,). channels: which channel of the
    group, int (n,). keys: what was compared, ascending, float64 (n,).
    """

    names: tuple[str, ...]
    groups: np.ndarray
    channels: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def kept(self, removed: int) -> dict[str, np.ndarray]:
        """Returns, by group, the channels that stay when the first `removed` go, ascending.

        Nothing spares a group: one that stands wholly in front becomes empty.
        """
        groups, channels = self.groups[removed:], self.channels[removed:]
        order = np.lexsort((channels, groups))
        ends = np.searchsorted(groups[order], np.arange(1, len(self.names)))
        return dict(zip(self.names, np.split(channels[order], ends), strict=True))


class Shrinking:
    """Groups that lose their lowest channels step by step, in an order that becomes a ranking.

    widths: how many channels each group has left, int (groups,).
    """

    def __init__(
        self, groups: Sequence[Any], scores: Mapping[str, np.ndarray], normalise: bool = True
    ):
        self._plain = rank(groups, scores, normalise=normalise)
        self._own = [np.flatnonzero(self._plain.groups == n) for n in range(len(groups))]
        self._sums = [np.cumsum([0.0, *self._plain.keys[places]]) for places in self._own]
        self._order: list[np.ndarray] = [np.array([], int)]
        self._keys: list[np.ndarray] = [np.array([])]
        self.widths = np.array([group.size for group in groups], int)

    def loss(self, number: int, width: int) -> float:
        """Returns the sum of the scores of the channels that go if a group becomes that narrow."""
        size, sums = len(self._own[number]), self._sums[number]
        return float(sums[size - width] - sums[size - self.widths[number]])

    def kept(self, number: int, width: int) -> np.ndarray:
        """Returns the channels that a group has at that width, ascending."""
        return np.sort(self._plain.channels[self._own[number][len(self._own[number]) - width :]])

    def shrink(self, number: int, width: int, key: float) -> None:
        """Takes channels from a group until it has that width; `key` is what it was chosen by."""
        size = len(self._own[number])
        self._order.append(self._own[number][size - self.widths[number] : size - width])
        self._keys.append(np.full(self.widths[number] - width, key))
        self.widths[number] = width

    def ranking(self) -> Ranking:
        """Returns the channels in the order in which they went; behind them those that are left."""
        gone = np.concatenate(self._order)
        places = np.concatenate([gone, np.setdiff1d(np.arange(len(self._plain)), gone)])
        keys = np.concatenate([*self._keys, np.full(self.widths.sum(), np.inf)])
        return Ranking(
            self._plain.names,
            self._plain.groups[places],
            self._plain.channels[places],
            np.maximum.accumulate(keys),
        )


def score_groups(
    groups: Iterable[Any], score: Any, evidence: Evidence | None = None
) -> dict[str, np.ndarray]:
    """Returns the channels' scores by name of the group, float64 (group.size,), lowest go first.

    `score` is an object of `tfcompress.structured.scores.SCORES`, `evidence` what it needs.

    Raises:
        InputError: naming the group or layer, if its weights or scores are not finite, or it lacks
            what the score reads.
    """
    found = {}
    for group in groups:
        for member in group.members:
            slices.value(member)
        scores = np.asarray(score.score(group, evidence or Evidence()), np.float64)
        require(
            np.isfinite(scores).all(),
            f"Scores of '{group.name}' by {type(score).__name__}",
            "must be finite",
        )
        found[group.name] = scores
    return found


def rank(
    groups: Iterable[Any],
    scores: Mapping[str, np.ndarray],
    scope: str = "global",
    *,
    normalise: bool = True,
) -> Ranking:
    """Returns all channels of the groups in the order in which they go.

    Args:
        scores: by name of the group, (group.size,), see `score_groups`.
        scope: "global" compares channels of all groups; "layer" takes from each group the same
            share at any length of the ranking.
        normalise: for "global", whether each group's scores are first divided by their mean: the
            `normalise` of the score. A group of zeros stays at zero and goes first.

    Equal channels go in the order of the groups and of their indices.

    Raises:
        InputError: a group without scores, another number of scores than channels, NaN.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    groups = tuple(groups)
    keys = [_keys(_checked(group, scores), scope, normalise) for group in groups]
    sizes = [len(array) for array in keys]
    together = np.concatenate(keys) if keys else np.zeros(0)
    order = np.argsort(together, kind="stable")
    starts = np.repeat(np.cumsum([0, *sizes])[:-1], sizes)
    return Ranking(
        names=tuple(group.name for group in groups),
        groups=np.repeat(np.arange(len(groups)), sizes)[order],
        channels=(np.arange(len(together)) - starts)[order],
        keys=together[order],
    )


def _checked(group: Any, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    if group.name not in scores:
        raise InputError(f"Scores must be given for group '{group.name}'. Received: none")
    array = np.asarray(scores[group.name], np.float64)
    owner = f"Scores of '{group.name}'"
    require(
        array.shape == (group.size,),
        owner,
        f"must be one for each of its {group.size} channels",
        shape=array.shape,
    )
    require(not np.isnan(array).any(), owner, "must not be NaN")
    return array


def _keys(scores: np.ndarray, scope: str, normalise: bool) -> np.ndarray:
    if scope == "layer":
        keys = np.empty(len(scores))
        # A channel's place in its group, from 0 to 1: half a place in, so that groups alternate.
        keys[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) + 0.5) / len(scores)
        return keys
    return scores / (scores.mean() or 1.0) if normalise else scores
