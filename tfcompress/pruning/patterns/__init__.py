"""In what shape weights go: one file per pattern.

A pattern is a frozen dataclass with `mask(scores, sparsity) -> bool array` of the scores' shape,
True where the weight stays. The lowest scores go; among equal ones those that come first. At least
one weight stays. `max_sparsity` is the most that the pattern can be asked for.
"""

from tfcompress.registry import Registry

PATTERNS = Registry("pattern", __name__)
