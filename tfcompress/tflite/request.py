"""What the user wants of a file: the words of `convert`, checked before anything is computed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress import rules as rules_
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization import GRANULARITIES, RANGES, ROUNDINGS
from tfcompress.tflite.kernels import BLOCKS, Method
from tfcompress.tflite.markers import Unit
from tfcompress.tflite.quantizer import DYNAMIC, FLOAT32, INT8, INT16, Mode

SCHEMES = ("float32", "float16", "dynamic", "int8", "int16x8", "int4", "mixed", "sparse")
TARGETS = ("xnnpack", "tflm", "reference")
ACTIVATIONS = (INT8, DYNAMIC, FLOAT32)
# The schemes that a layer of a mixed file may have.
LAYER_SCHEMES = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")
_MODES = {
    "float32": Mode(),
    "float16": Mode("float16"),
    "dynamic": Mode("int8", DYNAMIC),
    "int8": Mode("int8", INT8),
    "int16x8": Mode("int8", INT16),
}
_METHOD_KEYS = ("rounding", "weight_ranges", "granularity")


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one layer is stored and computed, and how its integers are found.

    `asked`: whether a rule speaks of the layer. `skip`: why the layer stays float, "" if it need
    not.
    """

    scheme: str
    mode: Mode
    method: Method
    asked: bool = False
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `convert` that say what the file shall be; see there."""

    scheme: str = "int8"
    rounding: Any = None
    ranges: Any = None
    weight_ranges: Any = None
    granularity: Any = None
    rules: Sequence[Mapping[str, Any]] = ()
    activations: str | None = None
    target: str = "xnnpack"
    search_ranges: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise unknown("scheme", self.scheme, SCHEMES)
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        if self.activations is not None:
            if self.activations not in ACTIVATIONS:
                raise unknown("activations", self.activations, ACTIVATIONS)
            rule = "can be chosen for the schemes int4 and mixed only"
            fits = self.scheme in ("int4", "mixed")
            require(fits, "activations", rule, scheme=self.scheme, activations=self.activations)
        if self.ranges is not None:
            RANGES.create(self.ranges)
        _method(self._words(), "convert")
        self._check_words_fit()
        if self.target != "xnnpack":
            rule = "is for 4-bit weights: the scheme must be int4 or mixed"
            fits = self.scheme in ("int4", "mixed")
            require(fits, "target", rule, scheme=self.scheme, target=self.target)
        floats = self.scheme == "dynamic" or self.activations in (DYNAMIC, FLOAT32)
        rule = "needs a scheme with integer activations: int8, int16x8, int4 or mixed"
        given = {"scheme": self.scheme, "activations": self.activations}
        require(not (self.search_ranges and floats), "search_ranges", rule, **given)
        alone = floats and self.scheme != "mixed"  # whose rules may ask for integers
        require(self.ranges is None or not alone, "ranges", rule, **given)

    @property
    def plain(self) -> bool:
        """Whether the TFLite converter finds the integers, in its own way."""
        chosen = (*self.words().values(), self.activations)
        return (
            self.scheme not in ("int4", "mixed")
            and not self.rules
            and not any(word is not None for word in chosen)
        )

    def choices(self, units: Sequence[Unit]) -> dict[str, Choice]:
        """Returns by path of a layer what is chosen for it; "" is for what belongs to no layer."""
        keys = _METHOD_KEYS + (("scheme", "activations") if self.scheme == "mixed" else ())
        resolved = rules_.resolve(self.rules, units, keys, kind="layer")
        # Blocks are for kernels, which belong to layers.
        chosen = {"": dataclasses.replace(self, granularity=None)._choice({}, "")}
        for unit in units:
            choice = self._choice(resolved[unit.path], unit.layer_path)
            known = chosen.setdefault(unit.layer_path, choice)
            require(
                known == choice,
                f"Rules for layer '{unit.layer_path}'",
                "must not contradict: all its kernels are computed alike",
                one=known.scheme,
                other=choice.scheme,
            )
        return chosen

    def _choice(self, rule: Mapping[str, Any], path: str) -> Choice:
        if "skip" in rule:
            require(
                self.scheme == "mixed",
                f"`skip` for layer '{path}'",
                "needs the scheme mixed: a layer would stay float",
                scheme=self.scheme,
            )
            return Choice("float32", Mode(), Method(), True, rule["skip"])
        scheme = rule.get("scheme", "int8" if self.scheme == "mixed" else self.scheme)
        if scheme not in LAYER_SCHEMES:
            raise unknown(f"scheme for layer '{path}'", scheme, LAYER_SCHEMES)
        activations = rule.get("activations", self.activations)
        if activations is not None and activations not in ACTIVATIONS:
            raise unknown(f"activations for layer '{path}'", activations, ACTIVATIONS)
        words = {**self._words(), **{key: rule[key] for key in _METHOD_KEYS if key in rule}}
        method = _method(words, f"layer '{path}'" if rule else "convert")
        if method.block and (scheme != "int4" or activations != DYNAMIC):
            raise _no_blocks(scheme, activations)
        mode = Mode("int4", activations or INT8) if scheme == "int4" else _MODES[scheme]
        return Choice(scheme, mode, method, bool(rule))

    def words(self) -> dict[str, Any]:
        """Returns the words that choose integers, None where one is not given."""
        return {**self._words(), "ranges": self.ranges, "search_ranges": self.search_ranges or None}

    def _words(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _METHOD_KEYS}

    def _check_words_fit(self) -> None:
        if self.scheme not in ("float32", "float16", "sparse"):
            return
        given = {k: v for k, v in self.words().items() if v is not None}
        given |= {"rules": self.rules} if self.rules else {}
        rule = "finds no integers, so that nothing of these can be chosen"
        require(not given, f"Scheme {self.scheme}", rule, **given)


def _method(words: Mapping[str, Any], owner: str) -> Method:
    """Returns the method of these words; those that no file can hold are refused."""
    given = {key: word for key, word in words.items() if word is not None}
    method = Method(
        GRANULARITIES.create(given.get("granularity", "per_channel")),
        RANGES.create(given.get("weight_ranges", "min_max")),
        ROUNDINGS.create(given.get("rounding", "nearest")),
    )
    if hasattr(method.granularity, "count"):
        raise InputError(
            f"granularity of {owner} must be one that a .tflite file can hold: per_tensor, "
            "per_channel, or blocks for int4 with dynamic activations. Received: tiers"
        )
    if method.block and method.block not in BLOCKS:
        raise InputError(
            f"size of blocks of {owner} must be one of {', '.join(map(str, BLOCKS))}. "
            f"Received: size={method.block}"
        )
    return method


def _no_blocks(scheme: str, activations: str | None) -> InputError:
    # LiteRT's DEQUANTIZE, which float activations need, takes no scale of a block.
    return InputError(
        "granularity blocks can be held by the kernels of the scheme int4 with activations "
        f"'dynamic' only. Received: scheme={scheme!r}, activations={activations!r}"
    )
