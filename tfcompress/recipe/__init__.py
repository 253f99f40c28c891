"""A recipe: one YAML file that says what is done to a model, checked before anything runs."""

from tfcompress.recipe.keys import Check, DataKeys, Export, Recipe, Search, plain
from tfcompress.recipe.reading import STAGES, read, read_rules, read_search, read_value
from tfcompress.recipe.stages import Cluster, FitKeys, Iterative, Prune, QuantizeAware, Stage, Train
from tfcompress.recipe.structure import (
    ClusterOnce,
    CorrectBias,
    CropInputs,
    DropLayers,
    Equalize,
    FoldBatchNorm,
    MergeChannels,
    PoolHead,
    PruneActivations,
    PruneChannels,
    RemoveChannels,
    SelectFeatures,
    Trim,
)

__all__ = [
    "STAGES",
    "Check",
    "Cluster",
    "ClusterOnce",
    "CorrectBias",
    "CropInputs",
    "DataKeys",
    "DropLayers",
    "Equalize",
    "Export",
    "FitKeys",
    "FoldBatchNorm",
    "Iterative",
    "MergeChannels",
    "PoolHead",
    "Prune",
    "PruneActivations",
    "PruneChannels",
    "QuantizeAware",
    "Recipe",
    "RemoveChannels",
    "Search",
    "SelectFeatures",
    "Stage",
    "Train",
    "Trim",
    "plain",
    "read",
    "read_rules",
    "read_search",
    "read_value",
]
