"""Models whose weights share few values: after training, and for callbacks while they train."""

from tfcompress.clustered.blocks import (
    Clustered,
    cluster_kernel,
    cluster_together,
    layout,
    shape_of,
)
from tfcompress.clustered.codes import cluster_codes
from tfcompress.clustered.features import FeatureClusters, cluster_features
from tfcompress.clustered.importance import fisher
from tfcompress.clustered.model import cluster, planned
from tfcompress.clustered.plan import KEYS, Plan, check_folded, scale_axes

__all__ = [
    "KEYS",
    "Clustered",
    "FeatureClusters",
    "Plan",
    "check_folded",
    "cluster",
    "cluster_codes",
    "cluster_features",
    "cluster_kernel",
    "cluster_together",
    "fisher",
    "layout",
    "planned",
    "scale_axes",
    "shape_of",
]
