"""Deep Compression's two LeNets, stage by stage: what pruning, clustering and int8 each bring.

    python benchmarks/deep_compression.py --data npz:mnist.npz

Runs configs/lenet300_mnist.yaml and configs/lenet5_mnist.yaml and prints, for each, the table of
its stages. The ratio is 4 bytes x the baseline's parameters / deflated bytes (zlib, level 9): of
the kernels after each stage as float32, in the last row of the finished `model.tflite`. The error
is on the validation images, in the last row on the 10,000 test images, which nothing else reads.

Han, Mao and Dally 2016, table 1: LeNet-300-100 40x at 1.58 % error (1.64 % before compression),
LeNet-5 39x at 0.74 % (0.80 %).
"""

import argparse
import json
import pathlib
import time

from rich.console import Console
from rich.table import Table

from tfcompress import compress

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = {"lenet300_mnist": (40, 1.64), "lenet5_mnist": (39, 0.80)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="keras:mnist", help="as in recipes: npz:FILE, ...")
    parser.add_argument("--output", default="runs/deep_compression", type=pathlib.Path)
    parser.add_argument("--recipes", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    for name in options.recipes:
        started = time.perf_counter()
        folder = options.output / name
        recipe = str(ROOT / "configs" / f"{name}.yaml")
        status = compress.main([recipe, "--data", options.data, "--output", str(folder)])
        if status == 2:
            return status
        seconds = time.perf_counter() - started
        show(name, json.loads((folder / "report.json").read_text()), seconds)
    return 0


def show(name, record, seconds):
    """Prints a run's stages."""
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
    row(
        table,
        "model.tflite, test images",
        record["after"],
        record["after"]["deflated_bytes"],
        full,
        record["after"]["accuracy"],
    )
    Console(width=100).print(table)


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
