"""The keys of a recipe, their meaning, ranges and defaults: one class for each part.

What a method needs is said by the method's own dataclass (`tfcompress.pruning`, `.clustering`,
`.schedules`); a stage hands down what it does not know itself: `cluster: {clusters: 32}` is
`cluster: {method: {kmeans: {clusters: 32}}}`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pydantic
import yaml
from pydantic import Field

from tfcompress import clustering, data, pruning, schedules
from tfcompress.errors import InputError, unknown
from tfcompress.recipe.optimizer import LEARNING_RATE_SCHEDULES, make_optimizer
from tfcompress.registry import Registry
from tfcompress.tflite import SCHEMES

QUANTIZE_AWARE_SCHEMES = ("int8",)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0)]


class Keys(pydantic.BaseModel):
    """Keys with defaults; an unknown key or a value of another type is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


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


class Stage(Keys):
    """One step of a recipe: `word` is its name there."""

    word: ClassVar[str]
    # Keys that take a method, and where its name is looked up.
    methods: ClassVar[dict[str, Registry]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _resolve_methods(cls, values: Any) -> Any:
        """Hands unknown keys down to the chosen methods, then fills in these methods' defaults."""
        if not isinstance(values, Mapping):
            raise InputError(f"Stage '{cls.word}' must be a mapping of keys. Received: {values!r}")
        values = dict(values)
        chosen = {key: cls._chosen(key, values) for key in cls.methods}
        for key in [key for key in values if key not in cls.model_fields]:
            takers = [field for field in chosen if key in cls._fields(field, chosen[field][0])]
            if len(takers) != 1:
                raise unknown(f"key of stage '{cls.word}'", key, cls._known(chosen))
            chosen[takers[0]][1][key] = values.pop(key)
        for key, (name, arguments) in chosen.items():
            registry = cls.methods[key]
            values[key] = registry.describe(registry.create({name: arguments}))
        return values

    @classmethod
    def _chosen(cls, key: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the name and a copy of the arguments of the method under `key`."""
        method = values.get(key, cls.model_fields[key].default)
        registry = cls.methods[key]
        if isinstance(method, str):
            return method, {}
        if not isinstance(method, Mapping):
            return next(iter(registry.describe(method).items()))
        if len(method) != 1:
            raise InputError(
                f"`{key}` of stage '{cls.word}' must be a name or {{name: arguments}} with one "
                f"name. Received: {dict(method)!r}"
            )
        ((name, arguments),) = method.items()
        if not isinstance(arguments or {}, Mapping):
            raise InputError(f"Arguments of {registry.kind} '{name}' must be a mapping.")
        return name, dict(arguments or {})

    @classmethod
    def _fields(cls, key: str, name: str) -> list[str]:
        return [field.name for field in dataclasses.fields(cls.methods[key].get(name))]

    @classmethod
    def _known(cls, chosen: Mapping[str, tuple[str, dict]]) -> set[str]:
        handed_down = {field for key in chosen for field in cls._fields(key, chosen[key][0])}
        return set(cls.model_fields) | handed_down


class FitKeys(Stage):
    """What every stage that trains can be told.

    The learning rate goes from `learning_rate` to `final_learning_rate` along
    `learning_rate_schedule` (constant, cosine, exponential, linear), after `warmup_epochs` in which
    it rises from zero. `optimizer` as in Keras: `adam` or `{sgd: {momentum: 0.9}}`. At most one of
    the gradients' limits `clipnorm`, `global_clipnorm`, `clipvalue`. `batch_size` None: the data's.
    `preserve`: zeros and shared values that the stage finds stay through its training.
    """

    epochs: Count = 10
    learning_rate: Positive = 1e-3
    learning_rate_schedule: str = "cosine"
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    warmup_epochs: Step = 0
    optimizer: str | dict[str, Any] = "adam"
    clipnorm: Positive | None = None
    global_clipnorm: Positive | None = None
    clipvalue: Positive | None = None
    batch_size: Count | None = None
    preserve: bool = True

    @pydantic.model_validator(mode="after")
    def _check_training(self):
        if self.learning_rate_schedule not in LEARNING_RATE_SCHEDULES:
            word = self.learning_rate_schedule
            raise unknown("learning-rate schedule", word, LEARNING_RATE_SCHEDULES)
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs of stage '{self.word}' must be less than its {self.epochs} epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}"
            )
        make_optimizer(self.optimizer, self.learning_rate, self.clipping)
        return self

    @property
    def clipping(self) -> dict[str, float | None]:
        limits = ("clipnorm", "global_clipnorm", "clipvalue")
        return {name: getattr(self, name) for name in limits}


class Train(FitKeys):
    """Plain training. As the first stage it makes the baseline."""

    word: ClassVar[str] = "train"


class Prune(FitKeys):
    """Training under `PruneOnSchedule`; steps are counted from the start of the stage."""

    word: ClassVar[str] = "prune"
    methods: ClassVar[dict[str, Registry]] = {
        "schedule": schedules.SCHEDULES,
        "score": pruning.SCORES,
        "pattern": pruning.PATTERNS,
    }

    schedule: Any = "polynomial"
    score: Any = "magnitude"
    pattern: Any = "unstructured"
    scope: str = "layer"
    update_every: Count | None = None
    rules: list[dict[str, Any]] = []


class Cluster(FitKeys):
    """Training under `ClusterOnSchedule`; steps are counted from the start of the stage."""

    word: ClassVar[str] = "cluster"
    methods: ClassVar[dict[str, Registry]] = {"method": clustering.METHODS}

    epochs: Count = 5
    learning_rate: Positive = 3e-4
    method: Any = "kmeans"
    begin_step: Step = 0
    block: list[int] = [1, 1]
    keep_zeros: bool = True
    update_every: Count | None = None
    rules: list[dict[str, Any]] = []


class QuantizeAware(FitKeys):
    """Training with fake quantization; ranges start from `samples` training images (0: none)."""

    word: ClassVar[str] = "quantize_aware"

    epochs: Count = 3
    learning_rate: Positive = 1e-4
    scheme: str = "int8"
    samples: Step = 200
    rules: list[dict[str, Any]] = []

    @pydantic.field_validator("scheme")
    @classmethod
    def _known_scheme(cls, word):
        if word not in QUANTIZE_AWARE_SCHEMES:
            raise unknown("scheme of stage 'quantize_aware'", word, QUANTIZE_AWARE_SCHEMES)
        return word


class FoldBatchNorm(Stage):
    """Folds BatchNorm into its neighbours, exactly; it does not train and has no keys."""

    word: ClassVar[str] = "fold_batch_norm"


STAGES: dict[str, type[Stage]] = {
    stage.word: stage for stage in (Train, Prune, Cluster, QuantizeAware, FoldBatchNorm)
}


class Export(Keys):
    """The `.tflite` file: its scheme, and the training images that calibrate and verify it."""

    scheme: str = "int8"
    samples: Count = 200
    keep_names: bool = False

    @pydantic.field_validator("scheme")
    @classmethod
    def _known_scheme(cls, word):
        if word not in SCHEMES:
            raise unknown("scheme of export", word, SCHEMES)
        return word


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
