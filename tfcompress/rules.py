"""Which kernels are treated how: ordered rules, selected by a regular expression on the path.

rules = [
    {"layers": ".*depthwise.*", "skip": "too few weights to spare"},
    {"layers": "head/kernel", "sparsity": 0.5},
]
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from tfcompress.errors import InputError, unknown


class HasPath(Protocol):
    """What `resolve` needs to know of a kernel; `weights.Kernel` has it."""

    @property
    def path(self) -> str: ...

    @property
    def layer_path(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Place:
    """A path that rules can match, where there is no kernel to name."""

    path: str
    layer_path: str


def resolve(
    rules: Sequence[Mapping[str, Any]],
    kernels: Iterable[HasPath],
    allowed_keys: Iterable[str],
    kind: str = "kernel",
) -> dict[str, dict[str, Any]]:
    """Returns for each kernel's path the rule that holds for it, without its `layers` key.

    A rule is `{"layers": REGEX, "skip": REASON}` or `{"layers": REGEX, key: value, ...}` with keys
    among `allowed_keys`. REGEX must match the kernel's whole path ("encoder/dense/kernel") or its
    layer's ("encoder/dense"). The last rule that matches holds, alone; a kernel that none matches
    gets `{}`.

    Raises `InputError` for an unknown key (with the nearest right one), an invalid expression, a
    `skip` without a reason or with other keys, and a rule that matches nothing. `kind` is what an
    error calls the things with a path.
    """
    kernels, allowed = list(kernels), set(allowed_keys)
    resolved: dict[str, dict[str, Any]] = {kernel.path: {} for kernel in kernels}
    if isinstance(rules, Mapping | str) or not isinstance(rules, Iterable):
        raise InputError(f"Rules must be a list of mappings. Received: {rules!r}")
    for number, rule in enumerate(rules, 1):
        _check(rule, number, allowed)
        pattern = _compile(rule["layers"], number)
        matched = [kernel for kernel in kernels if matches(pattern, kernel)]
        if not matched:
            raise _nothing_matched(rule["layers"], number, kernels, kind)
        for kernel in matched:
            resolved[kernel.path] = {key: value for key, value in rule.items() if key != "layers"}
    return resolved


def matches(pattern: str | re.Pattern, kernel: HasPath) -> bool:
    """Returns whether a rule's `layers` selects the kernel."""
    return any(re.fullmatch(pattern, path) for path in (kernel.path, kernel.layer_path))


def _check(rule: Any, number: int, allowed: set[str]) -> None:
    if not isinstance(rule, Mapping):
        raise InputError(f"Rule {number} must be a mapping. Received: {rule!r}")
    for key in rule:
        if key not in allowed | {"layers", "skip"}:
            raise unknown(f"key of rule {number}", key, allowed | {"layers", "skip"})
    if not isinstance(rule.get("layers"), str):
        raise InputError(
            f"Rule {number} must say in `layers` which layers it is for, as a regular expression. "
            f"Received: {dict(rule)!r}"
        )
    if "skip" not in rule:
        return
    if not isinstance(rule["skip"], str) or not rule["skip"].strip():
        raise InputError(
            f"`skip` of rule {number} must be the reason, a text. Received: skip={rule['skip']!r}"
        )
    if len(rule) > 2:
        raise InputError(f"Rule {number} must not ask for more with `skip`. Received: {rule!r}")


def _compile(expression: str, number: int) -> re.Pattern:
    try:
        return re.compile(expression)
    except re.error as error:
        raise InputError(
            f"`layers` of rule {number} must be a regular expression ({error}). "
            f"Received: layers={expression!r}"
        ) from None


def _nothing_matched(
    expression: str, number: int, kernels: Sequence[HasPath], kind: str
) -> InputError:
    paths = list(dict.fromkeys(path for k in kernels for path in (k.path, k.layer_path)))
    near = difflib.get_close_matches(expression, paths, n=1, cutoff=0.0)
    hint = f" The nearest path is '{near[0]}'." if near else f" There are no {kind}s."
    return InputError(f"`layers` of rule {number} matches no {kind}: '{expression}'.{hint}")
