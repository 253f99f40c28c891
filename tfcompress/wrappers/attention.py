"""Attention as FULLY_CONNECTED, BATCH_MATMUL and SOFTMAX.

softmax(q k' / sqrt(size)) v, with q, k, v projections of the inputs
"""

import inspect
from typing import Any

import keras
import numpy as np

from tfcompress.wrappers.contraction import einsum_dense, reason_of_einsum_dense
from tfcompress.wrappers.operators import CausalMask
from tfcompress.wrappers.parts import (
    Parts,
    masked,
    permuted,
    resized,
    unknown_sizes,
    values,
)

_LAYERS, _OPS = keras.layers, keras.ops


def multi_head(parts: Parts, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """MultiHeadAttention and GroupQueryAttention: heads that share keys lie in one product."""
    call = _call(owner, args, kwargs)
    query, value = call["query"], call["value"]
    key = value if call.get("key") is None else call["key"]

    def projected(dense: Any, x: Any, factor: float = 1.0) -> Any:
        return einsum_dense(parts, dense, x, f"{owner.name}_{dense.name}", factor)

    size = owner._query_dense.kernel.shape[-1]
    q = projected(owner._query_dense, query, float(size) ** -0.5)
    k, v = projected(owner._key_dense, key), projected(owner._value_dense, value)
    (length, heads), groups = q.shape[1:3], k.shape[2]
    # (batch, length, heads, size) -> (batch, groups, heads of a group * length, size)
    causal = call.get("use_causal_mask")
    q = permuted(resized(q, (length, groups, heads // groups, size)), [0, 2, 3, 1, 4])
    q = resized(q, (groups, heads // groups * length, size))
    scores = _OPS.matmul(q, permuted(k, [0, 2, 3, 1]))
    if causal:
        scores = _causal(parts, owner, scores, length)
    dropout = owner._dropout_layer.rate
    y, weights = _attend(owner, scores, permuted(v, [0, 2, 1, 3]), dropout)
    y = resized(y, (groups, heads // groups, length, v.shape[-1]))
    y = resized(permuted(y, [0, 3, 1, 2, 4]), (length, heads, v.shape[-1]))
    y = projected(owner._output_dense, y)
    if not call.get("return_attention_scores"):
        return y
    return y, resized(weights, (heads, length, k.shape[1]))


def attention(parts: Parts, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """Attention and AdditiveAttention: without projections, of one head."""
    call = _call(owner, args, kwargs)
    query, value, *rest = call["inputs"]
    key = rest[0] if rest else value
    if type(owner) is _LAYERS.Attention:
        scores = _OPS.matmul(query, permuted(key, [0, 2, 1]))
        if owner.scale is not None:
            flat = resized(scores, (*scores.shape[1:], 1))
            scale = values(owner.scale)
            flat = parts.affine(owner, f"{owner.name}_scale", flat, scale, None, trains=True)
            scores = resized(flat, scores.shape[1:])
    else:
        scores = _added(parts, owner, query, key)
    if call.get("use_causal_mask"):
        scores = _causal(parts, owner, scores, scores.shape[1])
    y, weights = _attend(owner, scores, value, owner.dropout)
    return (y, weights) if call.get("return_attention_scores") else y


def _added(parts: Parts, owner: Any, query: Any, key: Any) -> Any:
    """Scores of a small network: the sum over tanh(query + key), with weights if there are any."""
    (queries, size), keys = query.shape[1:], key.shape[1]
    pairs = resized(query, (queries, 1, size)) + resized(key, (1, keys, size))
    scale = values(getattr(owner, "scale", None))
    kernel = (np.ones(size, np.float32) if scale is None else scale).reshape(size, 1)
    dense = parts.dense(f"{owner.name}_scale", owner, kernel)
    dense.trainable = dense.trainable and scale is not None
    return resized(dense(_OPS.tanh(pairs)), (queries, keys))


def _causal(parts: Parts, owner: Any, scores: Any, length: int) -> Any:
    name = f"{owner.name}_mask"
    return parts.once(name, lambda: CausalMask(length, name=name))(scores)


def _attend(owner: Any, scores: Any, value: Any, dropout: float) -> Any:
    """Returns the weighted values and their weights."""
    policy = owner.dtype_policy
    weights = _LAYERS.Softmax(dtype=policy)(scores)
    dropped = _LAYERS.Dropout(dropout, dtype=policy)(weights) if dropout else weights
    return _OPS.matmul(dropped, value), weights


def reason_of_multi_head(owner: Any, *args: Any, **kwargs: Any) -> str | None:
    call = _call(owner, args, kwargs)
    query, value = call["query"], call["value"]
    if len(query.shape) != 3 or len(value.shape) != 3:
        return "attention over more than one axis is not simulated"
    if getattr(owner, "_use_gate", False) or getattr(owner, "use_gate", False):
        return "gated attention is not simulated"
    if getattr(owner, "sliding_window_size", None) is not None:
        return "attention in a sliding window is not simulated"
    for dense in (owner._query_dense, owner._key_dense, owner._value_dense):
        if (reason := reason_of_einsum_dense(dense, query)) is not None:
            return reason
    return _reason(args, kwargs, call)


def reason_of_attention(owner: Any, *args: Any, **kwargs: Any) -> str | None:
    call = _call(owner, args, kwargs)
    if getattr(owner, "score_mode", "dot") != "dot":
        return f"the scores '{owner.score_mode}' are not simulated"
    return _reason(args, kwargs, call)


def _reason(args: Any, kwargs: Any, call: dict[str, Any]) -> str | None:
    masks = [call.get(name) for name in ("attention_mask", "mask", "query_mask", "value_mask")]
    if masked((args, kwargs)) or any(x is not None for x in keras.tree.flatten(masks)):
        return "masks that come with the data are not simulated"
    return "the lengths of its inputs must be fixed" if unknown_sizes((args, kwargs)) else None


def _call(owner: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return inspect.signature(owner.call).bind(*args, **kwargs).arguments
