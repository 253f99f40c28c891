"""What each layer of a quantization-aware model is rounded to: the words of `quantize_aware`."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress import rules, weights
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization import RANGES

GRANULARITIES = ("per_channel", "per_tensor")
LEARN = ("lsq", "pact")
QUANTIZE = ("both", "weights", "activations")
WEIGHTS = ("binary", "ternary")
BATCH_NORM = ("fold", "train")
FOLLOWED = ("min_max", "ema")  # extremes: their ranges go on following the batches
_KERNEL_WORDS = ("weight_bits", "weights", "weight_ranges", "granularity")
_ACTIVATION_WORDS = ("activation_bits", "ranges")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one layer is rounded; None stands for the default of its kind.

    `bits` are both `weight_bits`, in [2, 8], and `activation_bits`, in [2, 16]; above 8 the kernel
    has 8, as TFLite computes it. `weights`: "binary", "ternary" or None.
    """

    bits: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    weights: str | None = None
    granularity: str | None = None
    ranges: Any = None
    weight_ranges: Any = None
    learn: str | None = None

    def check(self, owner: str, quantize: str) -> None:
        """Raises `InputError` for words that are unknown, out of range or contradict."""
        for name, most in (("bits", 16), ("weight_bits", 8), ("activation_bits", 16)):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            rule = f"must be a whole number in [2, {most}]"
            valid = value is None or (whole and 2 <= value <= most)
            require(valid, f"{name} of {owner}", rule, **{name: value})
        for name, known in (
            ("granularity", GRANULARITIES),
            ("learn", LEARN),
            ("weights", WEIGHTS),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise unknown(name, value, known)
        for name in ("ranges", "weight_ranges"):
            if getattr(self, name) is not None:
                RANGES.create(getattr(self, name))
        self._check_contradictions(owner, quantize)

    def _check_contradictions(self, owner: str, quantize: str) -> None:
        def refuse(names: Sequence[str], rule: str) -> None:
            found = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
            require(not found, owner, rule, **found)

        if self.bits is not None:
            rule = "must give bits, or weight_bits and activation_bits"
            refuse(
                ("weight_bits", "activation_bits"), f"{rule}: bits={self.bits!r} stands for both"
            )
        if self.weights is not None:
            rule = f"must not give more for kernels that are {self.weights}"
            refuse(("bits", "weight_bits", "weight_ranges"), rule)
        if quantize == "weights":
            refuse(_ACTIVATION_WORDS, "must not speak of activations with quantize='weights'")
            rule = "must not learn the clipping of activations ('pact') with quantize='weights'"
            require(self.learn != "pact", owner, rule, learn=self.learn)
        if quantize == "activations":
            refuse(_KERNEL_WORDS, "must not speak of kernels with quantize='activations'")

    def over(self, default: "Settings") -> "Settings":
        """Returns these settings, with those of `default` where they say nothing."""
        given = {k: v for k, v in vars(self).items() if v is not None}
        # What a rule says about bits takes the place of any default that says the same.
        dropped = {"bits": ("weight_bits", "activation_bits"), "weights": ("weight_bits",)}
        replaced = {name: None for word in given for name in dropped.get(word, ())}
        if "weight_bits" in given and default.weights:
            replaced["weights"] = None
        return dataclasses.replace(default, **(replaced | given))

    @property
    def kernel_bits(self) -> int:
        return min(self.weight_bits or self.bits or 8, 8)

    @property
    def tensor_bits(self) -> int:
        return self.activation_bits or self.bits or 8

    @property
    def kernel_clip(self) -> str | None:
        """Returns whether the kernel's grid ends elsewhere than at max|w|, and what moves it."""
        if self.weights is not None:
            return None
        if self.learn == "lsq":
            return "learned"
        return None if _name(self.weight_ranges) in FOLLOWED else "fixed"

    @property
    def momentum(self) -> float | None:
        """Returns how slowly the activations' ranges follow the batches; None: they stay."""
        method = RANGES.create(self.ranges or "min_max")
        return getattr(method, "decay", 0.99) if _name(method) in FOLLOWED else None

    @property
    def needs_samples(self) -> bool:
        return self.learn is not None or self.momentum is None


def _name(method: Any) -> str:
    return next(iter(RANGES.describe(RANGES.create(method or "min_max"))))


def resolve(
    model: keras.Model, default: Settings, quantize: str, given: Sequence[Mapping[str, Any]]
) -> dict[int, tuple[Settings, str | None]]:
    """Returns by `id` of each layer with a kernel its settings, and the reason to skip it or None;
    so of each layer without that a rule speaks of.

    A rule that matches a kernel speaks of kernels alone. Raises `InputError` for unknown words,
    contradictions, and rules that match nothing.
    """
    if quantize not in QUANTIZE:
        raise unknown("quantize of quantize_aware", quantize, QUANTIZE)
    default.check("quantize_aware", quantize)
    kernels, others = weights.kernels(model), _without_kernel(model)
    keys = [field.name for field in dataclasses.fields(Settings)]
    places = {id(layer): rules.Place(path, path) for layer, path in others}
    rules.resolve(given, [*kernels, *places.values()], keys, kind="layer")
    of_kernels = [r for r in given if any(rules.matches(r["layers"], k) for k in kernels)]
    resolved = rules.resolve(of_kernels, kernels, keys)
    of_others = [rule for rule in given if rule not in of_kernels]
    resolved_others = rules.resolve(of_others, places.values(), keys, kind="layer")
    found: dict[int, tuple[Settings, str | None]] = {}
    for number, place in places.items():
        if rule := resolved_others[place.path]:
            own = _of_rule(rule, place.path, quantize)
            words = [word for word in _KERNEL_WORDS if getattr(own, word) is not None]
            rule_text = f"must not speak of kernels: the layer has none ({', '.join(words)})"
            require(not words, f"Rule for '{place.path}'", rule_text)
            found[number] = own.over(default), rule.get("skip")
    for kernel in kernels:
        rule = resolved[kernel.path]
        if not rule and id(kernel.layer) in found:
            continue
        own = _of_rule(rule, kernel.path, quantize)
        if own.over(default).weights == "binary" and "skip" not in rule:
            _check_binary(kernel)
        found[id(kernel.layer)] = own.over(default), rule.get("skip")
    return found


def _of_rule(rule: Mapping[str, Any], path: str, quantize: str) -> Settings:
    """Returns what a rule says, checked; `path` is whom it is for."""
    own = Settings(**{key: value for key, value in rule.items() if key != "skip"})
    own.check(f"Rule for '{path}'", quantize)
    return own


def _without_kernel(model: keras.Model) -> list[tuple[keras.layers.Layer, str]]:
    """Returns the layers that hold no kernel, nor layers, each with its path."""
    paths = weights.layer_paths(model)
    holders = {id(kernel.layer) for kernel in weights.kernels(model)}
    return [
        (layer, paths[id(layer)])
        for layer in model._flatten_layers()
        if id(layer) in paths
        and id(layer) not in holders
        and len(list(layer._flatten_layers())) == 1
        and not isinstance(layer, keras.layers.InputLayer)
    ]


def _check_binary(kernel: weights.Kernel) -> None:
    value = kernel.value()
    channels = tuple(a for a in range(value.ndim) if a not in kernel.output_axes)
    living = (value != 0).any(axis=channels, keepdims=True)
    zeros = int(((value == 0) & living).sum())
    if zeros:
        raise InputError(
            f"Kernel '{kernel.path}' cannot be binary: it holds zeros, which two values cannot "
            f"keep; take weights='ternary'. Received: zeros={zeros}"
        )
