"""The stages of a recipe that change a model's structure; they do not train.

Stages that train (`train`, `cluster`, ...) follow them and fine-tune what is left.
"""

from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from tfcompress import clustering, quantization, structured
from tfcompress.errors import InputError, unknown
from tfcompress.recipe.base import Count, OpenShare, Positive, Share
from tfcompress.recipe.stages import Stage
from tfcompress.registry import Registry


class FoldBatchNorm(Stage):
    """Folds BatchNorm into its neighbours, exactly; it does not train and has no keys."""

    word: ClassVar[str] = "fold_batch_norm"


class Equalize(Stage):
    """`tfc.equalize`: channels get weights of like ranges; the function stays the same."""

    word: ClassVar[str] = "equalize"

    largest_factor: float = 1000.0
    sweeps: Count = 100
    unclip: bool = False


class CorrectBias(Stage):
    """`tfc.correct_bias`: biases make up for the mean error of weights quantized as said here.

    The words are those of `export`; `samples` training images tell the means.
    """

    word: ClassVar[str] = "correct_bias"
    methods: ClassVar[dict[str, Registry]] = {
        "granularity": quantization.GRANULARITIES,
        "ranges": quantization.RANGES,
        "rounding": quantization.ROUNDINGS,
    }

    method: str = "empirical"
    bits: Annotated[int, Field(ge=2, le=16)] = 8
    granularity: Any = "per_channel"
    ranges: Any = "min_max"
    rounding: Any = "nearest"
    samples: Count = 200
    rules: list[dict[str, Any]] = []


class ClusterOnce(Stage):
    """`tfc.cluster`: weights come to share few values, without training; `cluster` trains.

    The words are those of `tfc.cluster`; with `importance: fisher` the training images tell how
    much each weight matters.
    """

    word: ClassVar[str] = "cluster_once"
    methods: ClassVar[dict[str, Registry]] = {"method": clustering.METHODS}

    method: Any = "kmeans"
    clusters: int | str | None = None
    block: list[int] = [1, 1]
    levels: Count = 1
    per: str = "kernel"
    keep_zeros: bool = True
    importance: str | None = None
    rules: list[dict[str, Any]] = []
    max_bytes: Positive | None = None
    max_error: OpenShare | None = None
    grid: str | None = None

    @pydantic.field_validator("importance")
    @classmethod
    def _known_importance(cls, word):
        if word not in (None, "fisher"):
            raise unknown("importance of stage 'cluster_once'", word, ["fisher"])
        return word

    def words(self) -> dict[str, Any]:
        """Returns the arguments of `tfc.cluster`."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class PruneChannels(Stage):
    """`tfc.prune_channels`: the least important channels leave, down to one budget."""

    word: ClassVar[str] = "prune_channels"
    methods: ClassVar[dict[str, Registry]] = {"score": structured.SCORES}

    keep_macs: OpenShare | None = None
    keep_parameters: OpenShare | None = None
    keep_bytes: OpenShare | None = None
    keep_latency: OpenShare | None = None
    score: Any = "magnitude"
    scope: str = "global"
    per: str | None = None
    round_to: Count = 1
    rules: list[dict[str, Any]] = []
    scheme: str = "float32"

    @pydantic.model_validator(mode="after")
    def _one_budget(self):
        if len(self.budget) != 1:
            raise InputError(
                "Stage 'prune_channels' needs just one of keep_macs, keep_parameters, keep_bytes, "
                f"keep_latency. Received: {', '.join(self.budget) or 'none'}"
            )
        return self

    @property
    def budget(self) -> dict[str, float]:
        names = ("keep_macs", "keep_parameters", "keep_bytes", "keep_latency")
        return {name: share for name in names if (share := getattr(self, name)) is not None}


class RemoveChannels(Stage):
    """`tfc.remove_dead_channels`: what has no effect leaves, the function stays the same."""

    word: ClassVar[str] = "remove_channels"

    tolerance: float = structured.FLOAT32_ROUNDING
    largest_input: Positive = 1e3


class MergeChannels(Stage):
    """`tfc.merge_channels`: channels with like feature maps become one."""

    word: ClassVar[str] = "merge_channels"
    methods: ClassVar[dict[str, Registry]] = {"method": clustering.METHODS}

    method: Any = "kmeans"
    rules: list[dict[str, Any]] = []


class Trim(Stage):
    """`tfc.trim`: channels that unstructured pruning has left almost empty leave."""

    word: ClassVar[str] = "trim"

    max_zeros: Share = 0.9
    rules: list[dict[str, Any]] = []


class DropLayers(Stage):
    """`tfc.drop_layers`: layers and residual branches that the loss can do without leave."""

    word: ClassVar[str] = "drop_layers"

    max_loss_increase: Positive | None = 0.01
    rules: list[dict[str, Any]] = []


class PruneActivations(Stage):
    """`tfc.prune_activations`: activation maps go on with their largest values only."""

    word: ClassVar[str] = "prune_activations"

    keep: Share = 0.5
    rules: list[dict[str, Any]] = []


class SelectFeatures(Stage):
    """`tfc.select_features`: the model reads only the input columns that matter most.

    It still takes all of them, since the data has them; `tfc.kept_features(model)` tells which.
    """

    word: ClassVar[str] = "select_features"

    keep: float | int = 0.5
    score: str = "gradient"


class CropInputs(Stage):
    """`tfc.crop_inputs`: image borders without saliency are cut off, inside of the model."""

    word: ClassVar[str] = "crop_inputs"

    max_saliency: Share = 0.01
    saliency: str = "gradient_times_input"
    step: Count | None = None


class PoolHead(Stage):
    """`tfc.pool_head`: Flatten -> Dense becomes global pooling -> Dense; it has no keys."""

    word: ClassVar[str] = "pool_head"
