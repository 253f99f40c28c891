"""The stages of a recipe that train, and what every stage has in common."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from tfcompress import clustering, pruning, schedules, structured
from tfcompress.callbacks import CHANNEL, RoundIteratively
from tfcompress.errors import InputError, unknown
from tfcompress.recipe.base import Count, Keys, Positive, Step
from tfcompress.recipe.optimizer import LEARNING_RATE_SCHEDULES, make_optimizer
from tfcompress.registry import Registry
from tfcompress.wrappers import Settings

QUANTIZE_AWARE_SCHEMES = ("int8",)
_SETTINGS = dataclasses.fields(Settings)


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
        methods = cls.methods_for(values)
        chosen = {key: cls._chosen(key, values, methods[key]) for key in methods}
        for key in [key for key in values if key not in cls.model_fields]:
            fields = {field: _fields(methods[field], name) for field, (name, _) in chosen.items()}
            takers = [field for field in chosen if key in fields[field]]
            if len(takers) != 1:
                known = set(cls.model_fields).union(*fields.values())
                raise unknown(f"key of stage '{cls.word}'", key, known)
            chosen[takers[0]][1][key] = values.pop(key)
        for key, (name, arguments) in chosen.items():
            registry = methods[key]
            values[key] = registry.describe(registry.create({name: arguments}))
        return values

    @classmethod
    def methods_for(cls, values: Mapping[str, Any]) -> Mapping[str, Registry]:
        """Returns where the methods' names are looked up, given the stage's other keys."""
        return cls.methods

    @classmethod
    def _chosen(
        cls, key: str, values: Mapping[str, Any], registry: Registry
    ) -> tuple[str, dict[str, Any]]:
        """Returns the name and a copy of the arguments of the method under `key`."""
        method = values.get(key, cls.model_fields[key].default)
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


def _fields(registry: Registry, name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(registry.get(name))]


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
    """Training under `PruneOnSchedule`; steps are counted from the start of the stage.

    With `pattern: channel` the schedule counts channels and `score` is a channel's; a stage
    `remove_channels` then takes out what has fallen silent.
    """

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

    @classmethod
    def methods_for(cls, values):
        if values.get("pattern") != CHANNEL:
            return cls.methods
        return {"schedule": schedules.SCHEDULES, "score": structured.SCORES}


class Cluster(FitKeys):
    """Training under `ClusterOnSchedule`; steps are counted from the start of the stage."""

    word: ClassVar[str] = "cluster"
    methods: ClassVar[dict[str, Registry]] = {"method": clustering.METHODS}

    epochs: Count = 5
    learning_rate: Positive = 3e-4
    method: Any = "kmeans"
    begin_step: Step = 0
    block: list[int] = [1, 1]
    levels: Count = 1
    per: str = "kernel"
    keep_zeros: bool = True
    grid: str | None = None
    gradients: str = "mean"
    update_every: Count | None = None
    freeze_step: Count | None = None
    rules: list[dict[str, Any]] = []


class QuantizeAware(FitKeys):
    """Training with fake quantization; ranges start from `samples` training images (0: none).

    The words are those of `quantize_aware`; `observers_step`, `learned_step` and `statistics_step`
    those of `FreezeQuantization`, counted from the start of the stage.
    """

    word: ClassVar[str] = "quantize_aware"

    epochs: Count = 3
    learning_rate: Positive = 1e-4
    scheme: str = "int8"
    samples: Step = 200
    quantize: str = "both"
    bits: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    weights: str | None = None
    ranges: Any = None
    weight_ranges: Any = None
    learn: str | None = None
    penalty: float | None = None
    batch_norm: str = "fold"
    observers_step: Step | None = None
    learned_step: Step | None = None
    statistics_step: Step | None = None
    rules: list[dict[str, Any]] = []

    @pydantic.model_validator(mode="after")
    def _check_words(self):
        words = {field.name: getattr(self, field.name, None) for field in _SETTINGS}
        Settings(**words).check(f"Stage '{self.word}'", self.quantize)
        return self

    def words(self) -> dict[str, Any]:
        """Returns the arguments of `quantize_aware` but for its scheme and samples."""
        own = {*FitKeys.model_fields, "scheme", "samples", *self.steps()}
        return {name: getattr(self, name) for name in type(self).model_fields if name not in own}

    def steps(self) -> dict[str, int | None]:
        """Returns the arguments of `FreezeQuantization`."""
        names = ("observers_step", "learned_step", "statistics_step")
        return {name: getattr(self, name) for name in names}

    @pydantic.field_validator("scheme")
    @classmethod
    def _known_scheme(cls, word):
        if word not in QUANTIZE_AWARE_SCHEMES:
            raise unknown("scheme of stage 'quantize_aware'", word, QUANTIZE_AWARE_SCHEMES)
        return word


class Iterative(FitKeys):
    """Training under `RoundIteratively`; the training images tell how much each weight matters."""

    word: ClassVar[str] = "iterative"

    epochs: Count = 8
    learning_rate: Positive = 1e-4
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    shares: list[float] = [0.5, 0.75, 0.875, 1.0]
    update_every: Count | None = None
    granularity: str | None = None
    order: str = "magnitude"
    rules: list[dict[str, Any]] = []

    @pydantic.model_validator(mode="after")
    def _check_rounding(self):
        self.build()
        return self

    def build(self, data: Any = None) -> RoundIteratively:
        """Returns the callback that the stage trains under."""
        names = ("bits", "shares", "update_every", "granularity", "order", "rules")
        return RoundIteratively(**{name: getattr(self, name) for name in names}, data=data)
