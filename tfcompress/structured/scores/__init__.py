"""In what order channels go: one file per score.

A score is a frozen dataclass with `score(group, evidence) -> array`, float64 (group.size,), finite
and not negative: the lowest go first. `needs` says what evidence it reads ("weights": none,
"gradients" or "activations", see `tfcompress.structured.evidence.collect`), `normalise` whether
the scores of different groups must be divided by their mean before they are compared.

A group is scored over its members: each gives one number per channel, from the channel's slices of
that weight; these are divided by their mean over the channels, so that wide and narrow members
count alike, and averaged. Which members count is said in each score.
"""

from tfcompress.registry import Registry

SCORES = Registry("channel score", __name__)
