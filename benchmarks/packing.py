"""Bytes of packed models against general compressors, and the entropy of single weights.

    python benchmarks/packing.py --model mlperf_tiny_resnet8.h5 --data mnist.npz

LeNet-300-100 and LeNet-5, trained shortly on MNIST, pruned to 97 % and clustered to 8 values, and
MLPerf Tiny's ResNet-8, as files of several schemes. `entropy`: what an ideal coder of single
values takes for the arrays, without tables and without the file's structure. Ratios are to the
float32 weights, the packed file counted whole. brotli is another package (`pip install brotli`).
Exits with 1 if a packed model does not come back, or a general compressor makes a smaller file.
"""

import argparse
import lzma
import pathlib
import time
import zlib

import brotli
import keras
import numpy as np

import tfcompress as tfc
from tfcompress import models, packing

SCHEMES = ("int8", "float16", "float32")


def main(arguments=None):
    options = _parse(arguments)
    keras.utils.set_random_seed(options.seed)
    networks = {name: lenet(name, options) for name in ("lenet300", "lenet5")}
    images = np.random.default_rng(options.seed).uniform(0, 255, (50, 32, 32, 3))
    networks["resnet8"] = models.load(options.model), images.astype(np.float32)
    print(
        f"{'file':<18}{'bytes':>11}{'zlib -9':>10}{'xz':>10}{'brotli':>10}{'pack':>10}"
        f"{'entropy':>10}{'ratio':>8}{'s':>7}"
    )
    passed = True
    for name, (model, samples) in networks.items():
        for scheme in SCHEMES:
            content = tfc.convert(model, scheme, samples)
            passed &= row(f"{name} {scheme}", content, model.count_params())
    if options.large:
        passed &= large(options.large)
    return int(not passed)


def lenet(name, options):
    """Returns the network pruned and clustered, and images to calibrate on."""
    with np.load(options.data) as arrays:
        x = arrays["x_train"][..., None].astype(np.float32) / 255
        y = arrays["y_train"]
    model = models.load(name)
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    schedule = tfc.schedules.Polynomial(end=0.97, begin_step=100, end_step=600)
    clusters = tfc.clustering.KMeans(clusters=8)
    callbacks = [
        tfc.PruneOnSchedule(schedule),
        tfc.ClusterOnSchedule(clusters, begin_step=750),
    ]
    model.fit(x, y, batch_size=256, epochs=4, verbose=0, callbacks=callbacks)
    return model, x[:200]


def row(name, content, parameters):
    begin = time.perf_counter()
    packed = tfc.pack(content)
    seconds = time.perf_counter() - begin
    others = (
        len(zlib.compress(content, 9)),
        len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        len(brotli.compress(content, quality=11, lgwin=24)),
    )
    entropy = sum(part.entropy_bytes for part in packing.report(packed).parts)
    print(
        f"{name:<18}{len(content):>11,}{others[0]:>10,}{others[1]:>10,}{others[2]:>10,}"
        f"{len(packed):>10,}{entropy:>10,}{4 * parameters / len(packed):>7.1f}x{seconds:>7.1f}",
        flush=True,
    )
    return tfc.unpack(packed) == content and len(packed) < min(others)


def large(millions):
    """Times the arrays of a model of many weights: pruned and clustered, int8, float32."""
    random = np.random.default_rng(0)
    size = millions * 1_000_000 // 1000
    dense = random.normal(size=(1000, size)).astype(np.float32)
    arrays = {
        "pruned": random.choice([0.0, -0.5, 0.5, 1.0], (1000, size), p=[0.9, 0.04, 0.03, 0.03]),
        "int8": np.clip(np.round(dense * 32), -127, 127),
        "float32": dense,
    }
    for name, array in arrays.items():
        model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(size, use_bias=False)])
        model.set_weights([array])
        begin = time.perf_counter()
        packed = tfc.pack(model)
        seconds = time.perf_counter() - begin
        print(f"{millions} million weights, {name}: {len(packed):,} bytes, {seconds:.1f} s")
    return True


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    parser.add_argument("--data", type=pathlib.Path, default=shared / "data" / "mnist.npz")
    parser.add_argument("--large", type=int, default=0, help="millions of weights to time, too")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
