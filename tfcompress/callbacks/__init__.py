"""Keras callbacks that act on a model while `fit` trains it."""

from tfcompress.callbacks.cluster import ClusterOnSchedule
from tfcompress.callbacks.freeze_quantization import FreezeQuantization
from tfcompress.callbacks.preserve import Preserve
from tfcompress.callbacks.prune import CHANNEL, PruneOnSchedule
from tfcompress.callbacks.round_iteratively import RoundIteratively

__all__ = [
    "CHANNEL",
    "ClusterOnSchedule",
    "FreezeQuantization",
    "Preserve",
    "PruneOnSchedule",
    "RoundIteratively",
]
