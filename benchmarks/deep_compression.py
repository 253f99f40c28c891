"""Deep Compression's two LeNets, stage by stage: what pruning, clustering, int8, packing bring.

    python benchmarks/deep_compression.py --data npz:mnist.npz

Runs configs/lenet300_mnist.yaml and configs/lenet5_mnist.yaml and prints, for each, the table of
its stages. The ratio is 4 bytes x the baseline's parameters / deflated bytes (zlib, level 9): of
the kernels after each stage as float32, in the last rows of the finished `model.tflite`, deflated
and by `tfc.pack`, whose every byte counts. The error is on the validation images, in the last rows
on the 10,000 test images, which nothing else reads. Exits with 1 if a packed file is less than 60x
(LeNet-300-100) or 100x (LeNet-5) smaller, or errs more often than Deep Compression's baselines.

Han, Mao and Dally 2016, table 1: LeNet-300-100 40x at 1.58 % error (1.64 % before compression),
LeNet-5 39x at 0.74 % (0.80 %).
"""

import argparse
import json
import pathlib
import time

from rich.console import Console
from rich.table import Table

import tfcompress as tfc
from tfcompress import compress

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = {"lenet300_mnist": (60, 1.64), "lenet5_mnist": (100, 0.80)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="keras:mnist", help="as in recipes: npz:FILE, ...")
    parser.add_argument("--output", default="runs/deep_compression", type=pathlib.Path)
    parser.add_argument("--recipes", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    reached = []
    for name in options.recipes:
        started = time.perf_counter()
        folder = options.output / name
        recipe = str(ROOT / "configs" / f"{name}.yaml")
        status = compress.main([recipe, "--data", options.data, "--output", str(folder)])
        if status == 2:
            return status
        seconds = time.perf_counter() - started
        record = json.loads((folder / "report.json").read_text())
        content = (folder / "model.tflite").read_bytes()
        packed = tfc.pack(content)
        assert tfc.unpack(packed) == content
        reached.append(show(name, record, len(packed), seconds))
    return int(not all(reached))


def show(name, record, packed, seconds):
    """Prints a run's stages; returns whether it got as far as it should."""
    ratio, error = TARGETS[name]
    table = Table(
        "stage",
        "sparsity",
        "values",
        "deflated bytes",
        "ratio",
        "error",
        title=f"{name}: {seconds / 60:.1f} minutes; to reach: {ratio}x at {error:.2f} %",
    )
    full = 4 * record["before"]["parameters"]
    for stage in record["stages"]:
        measures = stage["measures"]
        row(
            table,
            stage["name"],
            measures,
            measures["storage"]["deflated_bytes"],
            full,
            stage["accuracy"],
        )
    after = record["after"]
    for title, size in (("deflated", after["deflated_bytes"]), ("packed", packed)):
        row(table, f"model.tflite, {title}; test images", after, size, full, after["accuracy"])
    Console(width=100).print(table)
    return full / packed >= ratio and 100 * (1 - after["accuracy"]) <= error


def row(table, name, measures, deflated, full, accuracy):
    table.add_row(
        name,
        f"{measures['sparsity']:.2%}",
        f"{measures['distinct_values']:,}",
        f"{deflated:,}",
        f"{full / deflated:.1f}x",
        f"{100 * (1 - accuracy):.2f} %",
    )


if __name__ == "__main__":
    raise SystemExit(main())
