"""Keras callbacks that prune and cluster a model while `fit` trains it."""

from tfcompress.callbacks.cluster import ClusterOnSchedule
from tfcompress.callbacks.preserve import Preserve
from tfcompress.callbacks.prune import PruneOnSchedule

__all__ = ["ClusterOnSchedule", "Preserve", "PruneOnSchedule"]
