"""How TFLite's integer kernels round what they compute, to the last bit.

A tensor's grid is float64 (2,): the distance of two codes, and the int8 code of 0. Each function
takes a float tensor that tells the kernel's integers exactly, or nearly so, its result's grid as
`codes_of` has it, and what the kernel makes it of; it returns values of the grid.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def grid_of(low: Any, high: Any) -> Any:
    """Returns the grid of a range as the converter computes it; of an empty range, a step of 0."""
    low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    size = (high - low) / 255.0
    return tf.stack([size, tf.round(-128.0 - tf.math.divide_no_nan(low, size))])


def codes_of(grid: Any) -> tuple[Any, Any]:
    """Returns the distance of a grid's codes, and the code of 0, as float32."""
    return tf.unstack(tf.cast(grid, tf.float32))


@tf.custom_gradient
def straight_through(x: Any, rounded: Any) -> Any:
    """Returns `rounded`, with the gradient of `x`."""
    return rounded, lambda upstream: (upstream, None)


@tf.custom_gradient
def in_steps(x: Any, steps: Any, whole: Any) -> Any:
    """Returns x / steps, rounded where `whole`; the gradient passes straight through."""
    position = x / steps
    y = tf.where(whole, tf.round(position), position)
    return y, lambda upstream: (upstream / steps, None, None)


def round_values(x: Any, own: Any, parts: Any = None) -> Any:
    """Rounds to the nearest code and ties to even, as `tflite.quantize` does."""
    return _of_codes(tf.round(x / own[0]), own)


def round_sums(x: Any, own: Any, sums: Any) -> Any:
    """Rounds sums of products as XNNPACK does, to the last bit.

    The float `x` tells the integer sum, exactly up to 2**22; the kernel multiplies that by one
    float32 factor and rounds ties to even. Where the steps are 0 (a channel of zeros) `x` is
    rounded itself.
    """
    scale, _ = own
    integers = tf.round(tf.math.divide_no_nan(x, sums))
    codes = tf.where(sums > 0.0, integers * (sums / scale), x / scale)
    return _of_codes(tf.round(codes), own)


def round_rescaled(x: Any, own: Any, grid: Any) -> Any:
    """Rounds codes of another grid as XNNPACK does: times an integer with 8 binary places."""
    other, _ = codes_of(grid)
    factor = tf.round(256.0 * (other / own[0]))
    integers = tf.round(tf.math.divide_no_nan(x, other)) * factor
    return _of_codes(tf.floor(integers / 256.0 + 0.5), own)


def round_product_of_two(x: Any, own: Any, grids: Any) -> Any:
    """Rounds the product of two tensors, value by value."""
    first, second = (codes_of(grid)[0] for grid in grids)
    return round_sums(x, own, first * second)


def round_means(x: Any, own: Any, parts: Any) -> Any:
    """Rounds means as XNNPACK does, with the float32 errors of its sums of int8.

    These have the zero points in them, which are taken off after the sum was scaled. parts: (what
    the means are of, its grid).
    """
    tensor, grid = parts
    count = tf.cast(tf.size(tensor) / tf.maximum(tf.size(x), 1), tf.float32)
    (size, zero), (scale, zero_point) = codes_of(grid), own
    factor, zeros = size / scale / count, count * zero
    integers = tf.round(tf.math.divide_no_nan(x * count, size)) + zeros
    codes = tf.round(integers * factor + (zero_point - zeros * factor))
    return _of_codes(codes - zero_point, own)


def round_products(x: Any, own: Any, grids: Any) -> Any:
    """Rounds sums of products of two tensors as the kernel does that gets them.

    XNNPACK takes only those whose second tensor has its zero at code 0.
    """
    (first, _), (second, zero) = (codes_of(grid) for grid in grids)
    steps = first * second
    twice = _round_twice(x, own, steps, steps / own[0])
    return tf.where(zero == 0.0, round_sums(x, own, steps), twice)


def round_roots(x: Any, own: Any, grid: Any) -> Any:
    """Rounds inverse roots of a grid's codes, which TFLite's kernel has with 20 binary places."""
    root = tf.sqrt(codes_of(grid)[0])
    return _round_twice(x, own, 2.0**-20 / root, 2.0**-20 / (root * own[0]))


def _round_twice(x: Any, own: Any, steps: Any, factor: Any) -> Any:
    """Rounds as TFLite's own kernels do: to more binary places, then to a code.

    steps: of the kernel's integers. factor: a step in steps of the output.
    """
    steps, factor = tf.cast(steps, tf.float64), tf.cast(factor, tf.float64)
    exponent = _exponent(factor)
    integers = tf.round(tf.cast(x, tf.float64) / steps) * 2.0 ** tf.maximum(exponent, 0.0)
    wide = tf.floor(integers * tf.round(factor * 2.0 ** (31.0 - exponent)) / 2.0**31 + 0.5)
    codes = tf.abs(wide) * 2.0 ** tf.minimum(exponent, 0.0)
    codes = tf.cast(tf.sign(wide) * tf.floor(codes + 0.5), tf.float32)
    return tf.cast(_of_codes(codes, own), x.dtype)


def round_sum_of_two(x: Any, own: Any, parts: Any, sign: int = 1) -> Any:
    """Rounds the sum of two tensors as XNNPACK does: their codes times integers of 21 bits.

    parts: ((tensor, its grid), (tensor, its grid)). `x` is the sum, or its ReLU.
    """
    scale, _ = own
    steps = [codes_of(grid)[0] for _, grid in parts]
    factors = tf.stack(steps) / scale
    exponent = 21.0 - _exponent(tf.reduce_max(factors))
    factors = tf.cast(tf.round(factors * 2.0**exponent), tf.int32)
    a, b = (_whole(tensor, size) for (tensor, _), size in zip(parts, steps, strict=True))
    shift = tf.cast(exponent, tf.int32)
    total = a * factors[0] + sign * b * factors[1] + tf.bitwise.left_shift(1, shift - 1)
    codes = tf.cast(tf.bitwise.right_shift(total, shift), tf.float32)
    codes = tf.clip_by_value(codes, tf.floor(x / scale), tf.math.ceil(x / scale))
    return _of_codes(codes, own)


def round_hard_swish(x: Any, own: Any, parts: Any) -> Any:
    """Returns x * relu6(x + 3) / 6 as TFLite's kernel does, in whole numbers of 16 bits.

    parts: (the input, its grid). Both factors have 7 more binary places than the input's codes.
    """
    size, _ = codes_of(parts[1])
    value = _whole(parts[0], size) * 128
    factor, exponent = _factor_of_16_bits(size / 128.0 / own[0])
    linear = _half_product(value, factor)
    factor, shift = _factor_of_16_bits(size / 128.0 * (32768.0 / 3.0))
    share = _saturated(value * tf.bitwise.left_shift(1, tf.maximum(shift - 1, 0)))
    share = _half_product(share, factor)
    share = tf.where(shift > 0, _saturated(share * 2), _halved(share, tf.maximum(-shift, 0)))
    share = tf.bitwise.right_shift(share + 32768, 1)
    product = tf.truncatediv(share * linear, 32768)
    codes = tf.cast(_halved(product, tf.maximum(-exponent, 0)), tf.float32)
    return _of_codes(codes, own)


def round_sigmoid(x: Any, own: Any, inputs: Any) -> Any:
    """Rounds the sigmoid of `inputs` as XNNPACK's table of all codes has it.

    `x`, TensorFlow's sigmoid, has other last bits in vectors of floats than in those left over, so
    that a value next to a half would become two codes. The table is computed in float64; each
    value's float32 is rounded after the code of 0 was added, which takes last bits, too.
    """
    scale, zero_point = own
    y = tf.cast(1.0 / (1.0 + tf.exp(-tf.cast(inputs, tf.float64))), tf.float32)
    return _of_codes(tf.round(y / scale + zero_point) - zero_point, own)


def round_tanh(x: Any, own: Any, inputs: Any) -> Any:
    """Rounds the hyperbolic tangent of `inputs` as XNNPACK's table of all codes has it.

    The table's tanhf rounds to the nearest float from glibc 2.41 on; before, one value in eight has
    another last bit, which counts only next to a half.
    """
    return round_values(tf.cast(tf.tanh(tf.cast(inputs, tf.float64)), tf.float32), own)


def _of_codes(codes: Any, own: Any) -> Any:
    """Returns the values of codes, counted from that of 0, after int8's ends have clipped them."""
    scale, zero_point = own
    return tf.clip_by_value(codes, -128.0 - zero_point, 127.0 - zero_point) * scale


def _whole(x: Any, size: Any) -> Any:
    """Returns a tensor on a grid as its codes, counted from that of 0: int32."""
    return tf.cast(tf.round(tf.math.divide_no_nan(tf.cast(x, tf.float32), size)), tf.int32)


def _exponent(factor: Any) -> Any:
    """Returns the e with a factor from 2^(e - 1) up to 2^e, as a float."""
    return tf.floor(tf.math.log(factor) / math.log(2.0)) + 1.0


def _factor_of_16_bits(factor: Any) -> tuple[Any, Any]:
    """Returns f, int32 of 15 bits, and e with factor = f / 2^15 * 2^e."""
    wide = tf.cast(factor, tf.float64)
    exponent = _exponent(wide)
    long = tf.round(wide * 2.0 ** (31.0 - exponent))
    short = tf.minimum(tf.floor((long + 32768.0) / 65536.0), 32767.0)
    return tf.cast(short, tf.int32), tf.cast(exponent, tf.int32)


def _half_product(a: Any, b: Any) -> Any:
    """Returns a * b / 2^15 to the nearest, halves away from zero."""
    product = a * b
    return tf.truncatediv(product + tf.where(product >= 0, 1 << 14, 1 - (1 << 14)), 1 << 15)


def _halved(x: Any, times: Any) -> Any:
    """Returns x / 2^times to the nearest, halves away from zero."""
    rest = tf.bitwise.bitwise_and(x, tf.bitwise.left_shift(1, times) - 1)
    half = tf.bitwise.right_shift(tf.bitwise.left_shift(1, times) - 1, 1)
    up = rest > half + tf.cast(x < 0, tf.int32)
    return tf.bitwise.right_shift(x, times) + tf.cast(up, tf.int32)


def _saturated(x: Any) -> Any:
    return tf.clip_by_value(x, -32768, 32767)


ROUNDINGS: dict[str, Callable[..., Any]] = {
    "nearest": round_values,
    "sums": round_sums,
    "rescaled": round_rescaled,
    "multiply": round_product_of_two,
    "means": round_means,
    "products": round_products,
    "roots": round_roots,
    "hard_swish": round_hard_swish,
    "sigmoid": round_sigmoid,
    "tanh": round_tanh,
    "add": round_sum_of_two,
    "subtract": functools.partial(round_sum_of_two, sign=-1),
}


def round_as(x: Any, own: Any, rounding: str | list[str], parts: Any) -> Any:
    """Rounds by a word of `ROUNDINGS`; a concatenation by one for each (tensor, what it is of)."""
    if isinstance(rounding, str):
        return ROUNDINGS[rounding](x, own, parts)
    sizes = zip(x.shape, parts[0][0].shape, strict=True)
    axis = next(axis for axis, (size, part) in enumerate(sizes) if size != part)
    rounded = [
        ROUNDINGS[word](tf.cast(tensor, tf.float32), own, made_of)
        for word, (tensor, made_of) in zip(rounding, parts, strict=True)
    ]
    return tf.concat(rounded, axis)
