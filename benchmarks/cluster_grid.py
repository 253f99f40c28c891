"""Sixteen values of each kernel, in the int8 file: clusters of floats against clusters of codes.

    python benchmarks/cluster_grid.py --baseline resnet8-jpeg.keras --data cifar10-jpeg.tar.gz

The baseline is a float model with BatchNorm, for example the one that channel_pruning.py leaves. It
is clustered without any training after that, once as floats and once on the int8 grid, and written
as int8 with 200 training images for the ranges. Codes are read back from the file; accuracy is the
file's own, on test images. Finished rows are kept in `results.jsonl`. Exits with 1 if a kernel of
the grid's file has more codes than clusters.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from channel_pruning import load_images, read

import tfcompress as tfc
from tfcompress import tflite

ROWS = {"whole": None, "floats": {}, "int8 grid": {"grid": "int8"}}


def main(arguments=None):
    options = _parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    key = {"clusters": options.clusters, "images": options.images, "model": options.baseline.name}
    images = load_images(options.data, options.output)
    for name, arguments_ in ROWS.items():
        if any(row["row"] == name and key.items() <= row.items() for row in read(results)):
            continue
        found = {"row": name} | key | row(arguments_, images, options)
        with open(results, "a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)
    found = [row for row in read(results) if key.items() <= row.items()]
    print(f"\n{'':12}{'most codes':>12}{'float':>10}{'int8':>10}{'deflated':>11}{'seconds':>9}")
    for one in found:
        print(
            f"{one['row']:12}{max(one['codes']):>12}{one['float accuracy']:>10.2%}"
            f"{one['int8 accuracy']:>10.2%}{one['deflated bytes']:>11,}{one['seconds']:>9.1f}"
        )
    grid = next(one for one in found if one["row"] == "int8 grid")
    return int(max(grid["codes"]) > options.clusters)


def row(arguments, images, options):
    """Returns the figures of the model, clustered as the arguments say."""
    model = keras.models.load_model(options.baseline, compile=False)
    started = time.perf_counter()
    if arguments is not None:
        model = tfc.cluster(model, clusters=options.clusters, **arguments)
    seconds = time.perf_counter() - started
    x, y = images.split("test")
    chosen = np.random.default_rng(0).permutation(len(y))[: options.images]
    x, y = images.prepare(x[chosen]), y[chosen]
    content = tfc.convert(model, scheme="int8", samples=images.samples(200, 0))
    audit = tfc.audit(content)
    codes = tflite.run_integers(content, x)
    return {
        "codes": [weight.distinct + (weight.nonzeros < weight.size) for weight in audit.weights],
        "float accuracy": float(np.mean(model.predict(x, verbose=0).argmax(-1) == y)),
        "int8 accuracy": float(np.mean(codes.argmax(-1) == y)),
        "deflated bytes": audit.deflated_bytes,
        "seconds": round(seconds, 1),
    }


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--baseline", type=pathlib.Path, required=True, help="a .keras file")
    add("--data", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/cluster_grid"))
    add("--clusters", type=int, default=16)
    add("--images", type=int, default=10_000, help="test images for the accuracy")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
