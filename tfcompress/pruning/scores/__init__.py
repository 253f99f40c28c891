"""In what order weights go: one file per score.

A score is a frozen dataclass with `score(kernel) -> array` of the kernel's shape, finite and not
negative: the lowest go first, and a weight that is zero has score 0. `normalise` says whether the
scores of different kernels must be divided by their norm before they are compared.
"""

from tfcompress.registry import Registry

SCORES = Registry("score", __name__)
