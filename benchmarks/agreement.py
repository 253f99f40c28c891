"""Compares models after quantization-aware training with their int8 files, code by code.

    python benchmarks/agreement.py

Each model is trained in float, made quantization-aware with 200 calibration samples, trained on,
and converted without samples. The file runs on LiteRT's default interpreter (XNNPACK); its integer
outputs are compared with what the Keras model computes, over 1,000 test samples. "worst": the least
share within one step of an intermediate tensor, over 64 samples; a second file puts out each
tensor that the Keras model rounds, so that each is compared with its own counterpart. Exits with 1
if fewer than 99.9 % of the outputs, or 99 % of any intermediate tensor, agree within one step.

A code that is off in an early layer moves others in the next ones. `--sources` prints where that
starts: each tensor that differs though it is computed of the file's own codes.
"""

import argparse
import io
import itertools
import os
import pathlib
import tarfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import tfcompress as tfc
from tfcompress import graph, models, tflite
from tfcompress.wrappers import FakeQuantize

SAMPLES = 1000
LIMIT, INNER_LIMIT, INNER_SAMPLES = 0.999, 0.99, 64


def main(arguments=None):
    options = _parse(arguments)
    rows = []
    for name in options.models:
        keras.utils.set_random_seed(options.seed)
        rows.append(row(name, *CASES[name](options), options))
        print(_line(rows[-1]) if rows[1:] else f"{_header()}\n{_line(rows[0])}", flush=True)
    return int(any(r["within 1 step"] < LIMIT or r["worst"] < INNER_LIMIT for r in rows))


def row(name, model, train, test, float_epochs, options):
    """Returns the model's name, accuracies and shares of equal and nearly equal outputs."""
    _fit(model, train, float_epochs, 1e-3 if float_epochs > 1 else 1e-4)
    x, y = test
    in_float = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    quantized = tfc.quantize_aware(model, samples=train[0][:200])
    # BatchNorm is folded now: what was a good rate with it is too high.
    _fit(quantized, train, options.epochs, 2e-5)
    content = tflite.convert(quantized)
    # Softmax: TFLite prescribes steps of 1/256 and zero point -128.
    expected = np.rint(quantized.predict(x, verbose=0) * 256.0) - 128.0
    codes = tflite.run_integers(content, x)
    difference = np.abs(codes - expected)
    shares = intermediate(quantized, x[:INNER_SAMPLES], options.sources)
    worst = min(shares, key=shares.get)
    return {
        "model": name,
        "float accuracy": in_float,
        "int8 accuracy": np.mean(codes.argmax(-1) == y),
        "equal": np.mean(difference == 0),
        "within 1 step": np.mean(difference <= 1),
        "largest": int(difference.max()),
        "outputs": difference.size,
        "tensors": len(shares),
        "worst": shares[worst],
        "worst tensor": worst,
    }


def intermediate(quantized, x, tell_sources=False):
    """Returns, by name, the share of each rounded tensor that the file has within one step."""
    rounded, found, steps = inner_tensors(quantized, x)
    inner = keras.Model(quantized.inputs, [node.outputs[0] for node in rounded])
    expected = inner.predict(x, verbose=0)
    if tell_sources:
        for name, difference in differences_at_sources(quantized, x).items():
            if difference.any():
                print(f"  {name}: {np.mean(difference > 0):.3%} differ", flush=True)
    return {
        f"{number} {node.operation.name}": np.mean(np.abs(found[number] - expected[number]) < limit)
        for number, (node, limit) in enumerate(zip(rounded, 1.01 * steps, strict=True))
    }


def inner_tensors(quantized, x):
    """Returns the nodes that round a tensor, its values in the file and the distance of its codes.

    A file that puts out each of these tensors computes them as the one that puts out the last.
    """
    rounded = [n for n in graph.nodes(quantized) if isinstance(n.operation, FakeQuantize)]
    # A tensor that is rounded in training only would be another one here.
    rounded = [node for node in rounded if not node.operation.only_inference]
    content = tflite.convert(keras.Model(quantized.inputs, [n.outputs[0] for n in rounded]))
    steps = np.array([detail["scale"] for detail in tflite.audit(content).outputs])
    found = tflite.run(content, x)
    return rounded, found if len(rounded) > 1 else [found], steps


def differences_at_sources(quantized, x):
    """Returns, by name, how many steps each rounded tensor is off that is computed of equal codes.

    Each operation of the Keras model gets the values that the file computed, and what it makes of
    them is compared with the file's: a difference is its own, not one that came down to it.
    """
    rounded, found, steps = inner_tensors(quantized, x)
    numbers = {id(node): number for number, node in enumerate(rounded)}
    differences = {}

    def call(node, path, args, kwargs):
        outputs = node.operation(*args, **kwargs)
        number = numbers.get(id(node))
        if number is None:
            return outputs
        name = f"{number} {node.operation.name}"
        differences[name] = np.rint(np.abs(found[number] - outputs[0].numpy()) / steps[number])
        return keras.ops.convert_to_tensor(found[number]), outputs[1]

    graph.interpret(quantized, keras.tree.map_structure(keras.ops.convert_to_tensor, x), call)
    return differences


def digits_cnn(options):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1).astype(np.float32)
    order = np.random.default_rng(options.seed).permutation(len(images))
    train, test = order[SAMPLES:], order[:SAMPLES]
    model = models.load("digits_cnn", data_shape=(8, 8, 1), classes=10)
    return model, (images[train], labels[train]), (images[test], labels[test]), 15


def mobilenetv2(options):
    """MobileNetV2 of width 0.35, on digits enlarged to 32 x 32."""
    _, train, test, _ = digits_cnn(options)
    model = keras.applications.MobileNetV2((32, 32, 1), 0.35, weights=None, classes=10)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 would need thousands of steps
    enlarged = [(np.kron(x, np.ones((1, 4, 4, 1), np.float32)), y) for x, y in (train, test)]
    return model, *enlarged, 30


def transformer(options):
    """Two blocks of attention over the rows of digits."""
    _, train, test, _ = digits_cnn(options)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Dense(32)(layers.Reshape((8, 8))(inputs))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
        y = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(32)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    return model, train, test, 20


def lenet5(options):
    with np.load(options.mnist, allow_pickle=False) as file:
        images = {key: file[f"x_{key}"][..., None].astype(np.float32) / 255 for key in _PARTS}
        labels = {key: file[f"y_{key}"] for key in _PARTS}
    train = images["train"][: options.images], labels["train"][: options.images]
    test = images["test"][:SAMPLES], labels["test"][:SAMPLES]
    return models.load("lenet5", data_shape=(28, 28, 1), classes=10), train, test, 2


def resnet8(options):
    """The model was trained on uncompressed CIFAR-10: one epoch gets it used to JPEG."""
    each = {"train": options.images // 10, "test": SAMPLES // 10}
    images = {key: [] for key in each}
    labels = {key: [] for key in each}
    classes = ["airplane", "automobile", "bird", "cat", "deer"]
    classes += ["dog", "frog", "horse", "ship", "truck"]
    taken = dict.fromkeys(itertools.product(each, classes), 0)
    with tarfile.open(options.cifar) as archive:
        for member in archive:
            part, label = pathlib.PurePath(member.name).parts[-3:-1] if member.isfile() else _NONE
            if taken.get((part, label), np.inf) >= each.get(part, 0):
                continue
            taken[part, label] += 1
            image = Image.open(io.BytesIO(archive.extractfile(member).read()))
            images[part].append(np.asarray(image.convert("RGB"), np.float32))
            labels[part].append(classes.index(label))
    parts = {key: (np.stack(images[key]), np.array(labels[key])) for key in each}
    order = np.random.default_rng(options.seed).permutation(len(parts["train"][0]))
    train = tuple(array[order] for array in parts["train"])
    return models.load(options.resnet8), train, parts["test"], 1


CASES = {
    "digits_cnn": digits_cnn,
    "lenet5": lenet5,
    "resnet8": resnet8,
    "mobilenetv2": mobilenetv2,
    "transformer": transformer,
}
_PARTS = ("train", "test")
_NONE = (None, None)


def _fit(model, train, epochs, rate):
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
    model.fit(*train, epochs=epochs, batch_size=64, verbose=0)


def _header():
    return (
        f"{'model':12} {'float accuracy':>14} {'int8 accuracy':>13} {'equal':>9} "
        f"{'within 1 step':>13} {'largest':>7} {'outputs':>7} {'tensors':>7} {'worst':>7}"
    )


def _line(r):
    return (
        f"{r['model']:12} {r['float accuracy']:14.2%} {r['int8 accuracy']:13.2%} "
        f"{r['equal']:9.3%} {r['within 1 step']:13.3%} {r['largest']:7} {r['outputs']:7} "
        f"{r['tensors']:7} {r['worst']:7.2%} {r['worst tensor']}"
    )


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epochs", type=int, default=1, help="epochs of quantized training")
    parser.add_argument("--images", type=int, default=10_000, help="training images taken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", action="store_true", help="tell where differences start")
    parser.add_argument("--mnist", default=shared / "data" / "mnist.npz")
    parser.add_argument("--cifar", default=shared / "data" / "cifar10-jpeg.tar.gz")
    parser.add_argument("--resnet8", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
