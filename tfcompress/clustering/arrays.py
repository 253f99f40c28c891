"""What the methods share: checks of what they are given, and the means of clusters."""

import numbers
from typing import Any

import numpy as np

from tfcompress.errors import require


def check_whole(method: Any, name: str, low: int, high: int) -> None:
    """Raises `InputError` unless the method's field `name` is a whole number in [low, high]."""
    value = getattr(method, name)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    rule = f"must be a whole number in [{low}, {high}]"
    owner = f"{name} of {type(method).__name__}"
    require(whole and low <= value <= high, owner, rule, **{name: value})


def checked(
    blocks: np.ndarray, sample_weight: np.ndarray | None, owner: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns blocks as float32 (n, d) and their weights as float64 (n,), finite and not empty."""
    blocks = np.asarray(blocks)
    require(
        blocks.ndim == 2 and blocks.size > 0,
        f"blocks of {owner}",
        "must have shape (n, d), not empty",
        shape=blocks.shape,
    )
    blocks = blocks.astype(np.float32, copy=False)
    require(np.isfinite(blocks).all(), f"blocks of {owner}", "must be finite")
    if sample_weight is not None:
        sample_weight = _checked_weight(sample_weight, len(blocks), owner)
    return blocks, sample_weight


def _checked_weight(sample_weight: np.ndarray, count: int, owner: str) -> np.ndarray:
    weight = np.asarray(sample_weight, np.float64)
    require(
        weight.shape == (count,),
        f"sample_weight of {owner}",
        f"must have shape ({count},)",
        shape=weight.shape,
    )
    valid = np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0
    require(valid, f"sample_weight of {owner}", "must be finite, not negative and not all zero")
    return weight


def means(blocks: np.ndarray, indices: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
    """Returns each cluster's mean, float32 (k, d); where all weights are 0, the plain mean."""
    weight = np.ones(len(blocks)) if sample_weight is None else sample_weight
    totals = np.bincount(indices, weight)
    if (totals == 0).any():
        weight = np.where(totals[indices] == 0, 1.0, weight)
        totals = np.bincount(indices, weight)
    columns = [np.bincount(indices, weight * column) / totals for column in blocks.T]
    return np.stack(columns, axis=1).astype(np.float32)
