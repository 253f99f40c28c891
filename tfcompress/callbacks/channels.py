"""Which channels are silent while training goes on: the masks of whole dependency groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import require
from tfcompress.structured import channel_groups, slices
from tfcompress.structured.evidence import collect
from tfcompress.structured.groups import Group
from tfcompress.structured.prune import require_free
from tfcompress.structured.ranking import Ranking, rank, score_groups
from tfcompress.structured.scores import SCORES
from tfcompress.structured.selection import Selection, limits
from tfcompress.weights import Kernel, kernels


class ChannelMasks:
    """Silences the least important channels of a model: the kernels that make, carry and read them
    become zero there, so that `remove_dead_channels` can take them out afterwards.

    `targets` are the kernels that hold slices of channels; `skipped` says of others why not.
    """

    def __init__(
        self,
        model: keras.Model,
        score: Any,
        scope: str,
        rules: Sequence[Mapping[str, Any]],
        data: Any,
    ):
        self._groups = channel_groups(model)
        require_free(self._groups)
        self._model = model
        self._score = SCORES.create(score)
        self._scope = scope
        self._data = data
        needs = self._score.needs
        require(
            needs == "weights" or data is not None,
            f"score {type(self._score).__name__} of PruneOnSchedule",
            f"needs data=(x, y), to gather {needs}",
            data=data,
        )
        self._limits = limits(self._groups, rules)
        spared = [g for g in self._groups if self._limits[g.name].least == g.size]
        # What nobody reads through weights (the width of attention's keys) cannot be silenced.
        self._targeted = [
            g for g in self._groups if g not in spared and any(m.role == "in" for m in g.members)
        ]
        rule = "needs at least one group of channels that weights read and no rule spares"
        require(self._targeted, "PruneOnSchedule", rule)
        self._kernels = {id(kernel.variable): kernel for kernel in kernels(model)}
        touched = {id(m.variable) for g in self._targeted for m in g.members}
        ruled = {id(m.variable) for g in spared for m in g.members}
        self.targets: list[Kernel] = [
            kernel for key, kernel in self._kernels.items() if key in touched
        ]
        self.skipped = {
            kernel.path: "a rule keeps all its channels"
            if key in ruled
            else self._groups.pinned.get(kernel.layer_path, "no channel of it is free")
            for key, kernel in self._kernels.items()
            if key not in touched
        }

    @property
    def max_sparsity(self) -> float:
        """The largest share of channels, rounded to whole ones, that the limits let go."""
        sizes = [group.size for group in self._targeted]
        least = [self._limits[group.name].allowed(0, group.size) for group in self._targeted]
        return (sum(sizes) - sum(least) + 0.5) / sum(sizes)

    def masks(self, sparsity: float) -> dict[str, np.ndarray]:
        """Returns by path of the kernel which of its weights stay, with this share of channels
        silent; channels that are silent already stay so."""
        silent = {group.name: self._silent(group) for group in self._targeted}
        evidence = collect(self._model, self._groups, self._data, None, self._score.needs)
        scores = score_groups(self._targeted, self._score, evidence)
        ranking = rank(self._targeted, scores, self._scope, normalise=self._score.normalise)
        ranking = _first(ranking, silent)
        selection = Selection(self._groups, ranking, self._limits)
        return self._masks(selection.kept(round(sparsity * len(ranking))))

    def sparsity(self) -> float:
        """Returns the share of channels that are silent, in [0, 1)."""
        silent = [self._silent(group) for group in self._targeted]
        return float(np.concatenate(silent).mean())

    def _masks(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        masks = {k.path: np.ones(tuple(k.variable.shape), bool) for k in self.targets}
        for group in self._targeted:
            stays = np.isin(np.arange(group.size), kept[group.name])
            for member in group.members:
                kernel = self._kernels.get(id(member.variable))
                if kernel is not None:
                    gone = member.indices[~stays[member.channels]]
                    np.moveaxis(masks[kernel.path], member.axis, 0)[gone] = False
        return masks

    def _silent(self, group: Group) -> np.ndarray:
        """Returns which channels no kernel reads: bool (group.size,)."""
        readers = [member for member in group.members if member.role == "in"]
        return ~np.any([slices.not_zero(member, group.size) for member in readers], axis=0)


def _first(ranking: Ranking, silent: Mapping[str, np.ndarray]) -> Ranking:
    """Returns the ranking with the channels that are silent already in front."""
    ends = np.cumsum([0, *(silent[name].size for name in ranking.names)])
    flat = np.concatenate([silent[name] for name in ranking.names])
    order = np.argsort(~flat[ends[ranking.groups] + ranking.channels], kind="stable")
    return Ranking(
        ranking.names, ranking.groups[order], ranking.channels[order], ranking.keys[order]
    )
