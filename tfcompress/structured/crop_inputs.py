"""Spatial slicing: image borders that the model does not look at are cropped off its input."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph, weights
from tfcompress.errors import call, require, unknown
from tfcompress.structured import evaluation
from tfcompress.structured.moments import input_tensors, moments
from tfcompress.structured.positions import Grid, Positions, total_stride

SALIENCIES = ("gradient", "gradient_times_input")


@dataclasses.dataclass(frozen=True)
class Border:
    """Lines cropped off an image on each side, in pixels, and the share of the saliency in [0, 1]
    that went with them."""

    top: int
    bottom: int
    left: int
    right: int
    saliency: float = 0.0


def crop_inputs(
    model: keras.Model,
    data: Any,
    max_saliency: float = 0.01,
    loss: Any = None,
    *,
    saliency: str = "gradient_times_input",
    inside: bool = True,
    step: int | None = None,
    input_name: str | None = None,
    batches: int | None = 16,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a new model that computes on the images without the borders that carry no saliency.

    `model` stays as it was; the new one is flat (`graph.functional`), has to be compiled and should
    be trained on. Its attribute `border`, a `Border`, says what was cropped (it is not saved with
    the model; the layer `Cropping2D` is).

    The saliency of a pixel is the mean over the data of |g| or |x g|, summed over channels, with g
    the gradient of the loss by the input. Lines are taken off the four sides, always the side with
    the least saliency next, as long as all that is taken holds at most the share `max_saliency` of
    the whole.

    Convolutions, pooling and all that follows are rebuilt for the smaller size with the weights
    that they have. A Dense behind a Flatten keeps the rows of the positions that remain, and the
    mean of what it read at the others goes into its bias: position i of a smaller map is position
    i + offset of the old one, where the offset is the border at the input, and becomes
    (offset + old padding - new padding) / stride at each strided layer. Where maps are padded
    ("same"), the padding moves inwards with the border: values near it change. Where they are not,
    a position whose window reached into the border goes with all else that it saw.

    Args:
        data: (x, y) and the other forms of `tfcompress.structured.evaluation.batches`.
        max_saliency: in [0, 1).
        loss: as `compile` takes it; None: the compiled one.
        saliency: "gradient" or "gradient_times_input"; the second is zero where images are.
        inside: True: the new model takes the same images as before and crops them itself; False: it
            takes the smaller images.
        step: pixels by which each side grows, at least 1. None: the product of the model's strides,
            so that strided layers look at the positions that they knew; smaller steps are for
            models without a Flatten.
        input_name: which input, where several are images.
        batches: at most so many batches of the data are read, and kept in memory; None: all.
        batch_size: rows of a batch where `data` is arrays.

    Raises:
        InputError: arguments out of range; no image input (height, width, channels) of known size;
            a layer through which positions cannot be followed, named with the reason; offsets that
            are not whole where a Flatten needs them or differ where maps meet.

    Source: Simonyan et al. 2014, "Deep Inside Convolutional Networks", for the gradient; Shrikumar
    et al. 2016, "Not Just a Black Box", for its product with the input.

        small = tfc.crop_inputs(model, (x_train, y_train), max_saliency=0.01)
        print(small.border)
    """
    _check(max_saliency, saliency, step)
    flat = graph.functional(model)
    image = _image_input(flat, input_name)
    read = list(evaluation.batches(data, batch_size, batches))
    judge = evaluation.loss_of(model, loss)
    measured = _saliency(flat, image, read, judge, saliency == "gradient_times_input")
    steps = (step, step) if step else total_stride(flat, image)
    border = _border(measured, max_saliency, steps)
    small = _cropped(flat, image, border, inside, read)
    small.border = border
    return small


def _check(max_saliency: Any, saliency: str, step: Any) -> None:
    require(
        isinstance(max_saliency, int | float) and 0 <= max_saliency < 1,
        "max_saliency of crop_inputs",
        "must be in [0, 1)",
        max_saliency=max_saliency,
    )
    if saliency not in SALIENCIES:
        raise unknown("saliency", saliency, SALIENCIES)
    require(
        step is None or (isinstance(step, int) and step >= 1),
        "step of crop_inputs",
        "must be None or an integer of at least 1",
        step=step,
    )


def _image_input(flat: keras.Model, name: str | None) -> Any:
    """Returns the input (batch, height, width, channels) that is to be cropped."""
    found = {tensor._keras_history.operation.name: tensor for tensor in flat.inputs}
    images = {n: x for n, x in found.items() if len(x.shape) == 4 and None not in x.shape[1:]}
    if name is not None and name not in images:
        raise unknown("image input", name, images)
    require(
        name is not None or len(images) == 1,
        f"Model '{flat.name}'",
        "must have one image input (height, width, channels) of known size for crop_inputs, or "
        "`input_name` say which",
        inputs={n: tuple(x.shape) for n, x in found.items()},
    )
    image = images[name] if name is not None else next(iter(images.values()))
    require(
        keras.backend.is_float_dtype(image.dtype),
        "The image input of crop_inputs",
        "must be float: integers have no gradient",
        dtype=image.dtype,
    )
    return image


def _saliency(
    flat: keras.Model, image: Any, read: Iterable[evaluation.Batch], judge: Any, times_input: bool
) -> np.ndarray:
    """Returns the saliency of each pixel, summed over the data, float64 (height, width)."""
    number = next(i for i, tensor in enumerate(flat.inputs) if tensor is image)

    def sums(arrays: list[Any], y: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(arrays[number])
            x = keras.tree.pack_sequence_as(graph.inputs_of(flat), arrays)
            now = evaluation.values(flat, {})
            loss = judge(y, flat.stateless_call(*now, x, training=False)[0])
        pixels = arrays[number]
        slopes = tape.gradient(loss, pixels, unconnected_gradients="zero")
        effects = tf.abs(slopes * pixels if times_input else slopes)
        # The loss is a mean over the rows of the batch.
        rows = tf.cast(tf.shape(pixels)[0], effects.dtype)
        return loss, tf.reduce_sum(effects, axis=(0, 3)) * rows

    step = tf.function(sums, reduce_retracing=True)
    total = np.zeros(image.shape[1:3])
    for x, y in read:
        inputs = input_tensors(flat, x)
        require(y is not None, "data", "must be (x, y): a gradient of the loss needs labels")
        loss, effects = call(functools.partial(step, inputs, y), "The loss")
        evaluation.finite(loss)
        total += effects.numpy()
    require(
        total.sum() > 0 and np.isfinite(total).all(),
        "The saliency of the images",
        "must be finite and not zero everywhere",
        sum=float(total.sum()),
    )
    return total


def _border(saliency: np.ndarray, most: float, steps: tuple[int, int]) -> Border:
    """Returns the border: on the side with the least saliency it grows, as long as it may."""
    (height, width), (down, across) = saliency.shape, steps
    total, gone = saliency.sum(), 0.0
    top = bottom = left = right = 0
    while True:
        rest = saliency[top : height - bottom, left : width - right]
        costs: dict[str, float] = {}
        if len(rest) > down:
            costs |= {"top": rest[:down].sum(), "bottom": rest[-down:].sum()}
        if rest.shape[1] > across:
            costs |= {"left": rest[:, :across].sum(), "right": rest[:, -across:].sum()}
        side = min(costs, key=lambda name: costs[name], default="")
        if not side or gone + costs[side] > most * total:
            return Border(top, bottom, left, right, float(gone / total))
        gone += costs[side]
        top += down * (side == "top")
        bottom += down * (side == "bottom")
        left += across * (side == "left")
        right += across * (side == "right")


def _cropped(
    flat: keras.Model, image: Any, border: Border, inside: bool, read: Sequence[evaluation.Batch]
) -> keras.Model:
    sides = (border.top, border.bottom), (border.left, border.right)
    if not any(sides[0] + sides[1]):
        return flat
    positions, start = Positions(), Grid(Fraction(border.top), Fraction(border.left))
    sizes = keras.tree.map_structure(
        lambda x: _smaller(x, sides) if x is image and not inside else x, graph.inputs_of(flat)
    )
    inputs = graph.new_inputs(flat, sizes)
    whole = keras.tree.flatten(inputs)[[x is image for x in flat.inputs].index(True)]
    names = weights.Names(operation.name for operation in flat.operations)
    cropped = whole
    if inside:
        cropped = keras.layers.Cropping2D(sides, name=names.unique("crop"))(whole)
    positions.place(cropped, start)

    def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(
            lambda x: cropped if x is whole else x, (args, kwargs)
        )
        return positions.call(node, copy, *args, **kwargs)

    small = graph.rebuild(flat, call, inputs)
    for tensor in small.outputs:
        require(
            positions.of(tensor) is None,
            f"Output '{tensor._keras_history.operation.name}' of model '{flat.name}'",
            "must not be a map of the image for crop_inputs: it would change its size",
            shape=tuple(tensor.shape),
        )
    means, _ = moments(flat, list(positions.readers.values()), read)
    positions.load_weights(dict(zip(positions.readers, means, strict=True)))
    return small


def _smaller(x: Any, sides: tuple[tuple[int, int], tuple[int, int]]) -> keras.KerasTensor:
    batch, height, width, channels = x.shape
    shape = (batch, height - sum(sides[0]), width - sum(sides[1]), channels)
    return keras.KerasTensor(shape, x.dtype)
