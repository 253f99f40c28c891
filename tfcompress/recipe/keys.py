"""The parts of a recipe beside its stages, with their ranges and defaults.

What a method needs is said by the method's own dataclass (`tfcompress.pruning`, `.clustering`,
`.schedules`); a stage hands down what it does not know itself: `cluster: {clusters: 32}` is
`cluster: {method: {kmeans: {clusters: 32}}}`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from tfcompress import data
from tfcompress.errors import InputError, unknown
from tfcompress.recipe.base import Count, Keys, Positive, Share, Step
from tfcompress.recipe.stages import Stage
from tfcompress.search import checked
from tfcompress.tflite import SCHEMES, Request


class AugmentKeys(Keys):
    """Random changes of the training images; see `tfcompress.data.Augment`."""

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0

    @pydantic.model_validator(mode="after")
    def _check(self):
        self.build()
        return self

    def build(self) -> data.Augment:
        return data.Augment(**self.model_dump())


class DataKeys(Keys):
    """Where images come from and how they reach the model.

    `source` as `tfcompress.data.load` takes it. `validation` and `test` are the shares that are
    set aside, `size` is for folders of images, `batch_size` of training.
    """

    source: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    standardize: str = "unit"
    size: int | list[int] | None = None
    batch_size: Count = 128
    augment: AugmentKeys = AugmentKeys()

    @pydantic.field_validator("standardize")
    @classmethod
    def _known(cls, word):
        if word not in data.STANDARDIZATIONS:
            raise unknown("standardisation", word, data.STANDARDIZATIONS)
        return word

    @pydantic.field_validator("size")
    @classmethod
    def _height_and_width(cls, size):
        if isinstance(size, list) and len(size) != 2 or any(s < 1 for s in _listed(size)):
            raise InputError(f"size of data must be [height, width], both >= 1. Received: {size}")
        return size


class Search(Keys):
    """A scheme per layer by `tfc.mixed_precision`, on `most` training images; just one limit."""

    schemes: list[Any] = ["int8", "int4"]
    max_bytes: Count | None = None
    max_latency_ms: Positive | None = None
    max_loss_increase: Annotated[float, Field(ge=0)] | None = None
    max_accuracy_drop: Share | None = None
    most: Count = 1024
    points: Annotated[int, Field(ge=2)] = 8

    @pydantic.model_validator(mode="after")
    def _check(self):
        checked(self.schemes, {k: v for k, v in self if k.startswith("max_")})
        return self


class Export(Keys):
    """The `.tflite` file: its scheme, and the training images that calibrate and verify it.

    The other keys are the words of `tfc.convert`: None is what the TFLite converter does. With
    `search` the rules of the scheme mixed are found, not given.
    """

    scheme: str = "int8"
    samples: Count = 200
    keep_names: bool = False
    rounding: Any = None
    ranges: Any = None
    weight_ranges: Any = None
    granularity: Any = None
    rules: list[dict[str, Any]] = []
    activations: str | None = None
    target: str = "xnnpack"
    search_ranges: bool = False
    search: Search | None = None

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.scheme not in SCHEMES:
            raise unknown("scheme of export", self.scheme, SCHEMES)
        Request(self.scheme, **self.words)
        if self.search is not None and (self.scheme != "mixed" or self.rules):
            raise InputError(
                "search of export needs the scheme mixed, and finds its rules itself. "
                f"Received: scheme={self.scheme!r}, rules={self.rules!r}"
            )
        return self

    @property
    def words(self) -> dict[str, Any]:
        """How the integers are found, as `tfc.convert` takes it."""
        keys = type(self).model_fields.keys() - {"scheme", "samples", "keep_names", "search"}
        return {key: getattr(self, key) for key in sorted(keys)}


class Check(Keys):
    """What the files must show, None = anything: a miss makes the command's exit status 1.

    `max_accuracy_drop`: share of the test images, baseline.tflite less model.tflite.
    `min_accuracy`: share of the test images that model.tflite classifies right.
    `max_latency_ratio`: median time over that of baseline.tflite, with `threads`, in `runs` runs
    (0: latency is not measured). `min_compression`: 4 bytes x the baseline's parameters / deflated
    bytes of model.tflite. `min_sparsity`: share of zeros over the weights read back from
    model.tflite. `max_distinct_values`: non-zero ones, per kernel of model.keras and per output
    channel of model.tflite.
    """

    runs: Step = 200
    threads: Count = 1
    xnnpack: bool = True
    max_accuracy_drop: Share | None = 0.01
    min_accuracy: Share | None = None
    max_latency_ms: Positive | None = None
    max_latency_ratio: Positive | None = None
    max_size_bytes: Count | None = None
    min_compression: Positive | None = None
    min_sparsity: Share | None = None
    max_distinct_values: Count | None = None

    @pydantic.model_validator(mode="after")
    def _latency_is_measured(self):
        limits = (self.max_latency_ms, self.max_latency_ratio)
        if self.runs == 0 and limits != (None, None):
            raise InputError("A latency limit of `check` needs runs of at least 1. Received: 0")
        return self


class Recipe(Keys):
    """A whole run: a model, data, stages in their order, the export and its checks."""

    name: str = "recipe"
    model: str
    data: DataKeys
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    stages: list[Stage]
    export: Export = Export()
    check: Check = Check()

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe with every default filled in, as plain values; `read` takes it."""
        filled = {key: plain(getattr(self, key)) for key in type(self).model_fields}
        return filled | {"stages": [{stage.word: plain(stage)} for stage in self.stages]}

    def to_yaml(self) -> str:
        """Returns the same as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Returns keys with all their defaults as mappings, lists and numbers."""
    if isinstance(value, pydantic.BaseModel):
        return {key: plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
