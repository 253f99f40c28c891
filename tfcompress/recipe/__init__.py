"""A recipe: one YAML file that says what is done to a model, checked before anything runs."""

from tfcompress.recipe.keys import (
    STAGES,
    Check,
    Cluster,
    DataKeys,
    Export,
    FitKeys,
    FoldBatchNorm,
    Prune,
    QuantizeAware,
    Recipe,
    Stage,
    Train,
    plain,
)
from tfcompress.recipe.reading import read

__all__ = [
    "STAGES",
    "Check",
    "Cluster",
    "DataKeys",
    "Export",
    "FitKeys",
    "FoldBatchNorm",
    "Prune",
    "QuantizeAware",
    "Recipe",
    "Stage",
    "Train",
    "plain",
    "read",
]
