"""The scale that BatchNorm gives a channel."""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from tfcompress.errors import InputError
from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES


@SCORES.register("bn_scale")
@dataclasses.dataclass(frozen=True)
class BnScale:
    """Channels go first that BatchNorm scales down most: |gamma|.

    Only the gammas of the group's BatchNorm layers count, averaged where a channel meets several.
    They are compared between groups as they are, as in the paper: BatchNorm gives all channels unit
    variance, so that gamma is their scale everywhere. Train with an L1 penalty on gamma for the
    sharpest order. A group without gamma is an `InputError`.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming".
    """

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = False

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns the mean |gamma| of each channel: float64 (group.size,)."""
        gammas = [member for member in group.members if _is_gamma(member)]
        if not gammas:
            raise InputError(
                f"Group '{group.name}' must have a BatchNormalization with scale=True for the "
                "channel score 'bn_scale'. Received: none"
            )
        sums, counts = np.zeros(group.size), np.zeros(group.size)
        for member in gammas:
            sums += slices.per_channel(member, group.size, np.abs(slices.value(member)))
            counts += np.bincount(member.channels, minlength=group.size)
        return sums / np.maximum(counts, 1)


def _is_gamma(member: Any) -> bool:
    norm = isinstance(member.layer, keras.layers.BatchNormalization)
    return norm and member.variable.name == "gamma"
