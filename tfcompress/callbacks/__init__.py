"""Keras callbacks that prune and cluster a model while `fit` trains it."""

from tfcompress.callbacks.cluster import ClusterOnSchedule
from tfcompress.callbacks.preserve import Preserve
from tfcompress.callbacks.prune import CHANNEL, PruneOnSchedule
from tfcompress.callbacks.round_iteratively import RoundIteratively

__all__ = ["CHANNEL", "ClusterOnSchedule", "Preserve", "PruneOnSchedule", "RoundIteratively"]
