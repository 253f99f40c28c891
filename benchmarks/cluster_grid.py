"""Sixteen values of each kernel, in the int8 file and in the memory of an Ethos-U.

    python benchmarks/cluster_grid.py --baseline resnet8-jpeg.keras --data cifar10-jpeg.tar.gz

ResNet-8, for example the float model that channel_pruning.py leaves, and MobileNet 0.5 of 96 x 96
pixels with random weights. Each is written as int8 as it is, clustered as floats, clustered on the
int8 grid, with the smallest 80 % of each kernel zero, and with both; nothing is trained after that,
so that only ResNet-8's first three rows have an accuracy worth the name: the file's own, on test
images. Codes are read back from the file. Bits per weight are those of Arm's Vela summary, encoded
for an Ethos-U55 of 128 MACs; Vela is installed into an environment of its own (`--environment`).
Finished rows are kept in `results.jsonl`. Exits with 1 if a kernel of a file on the grid has more
codes than clusters, or if pruned and on the grid a weight takes more than 1.75 bits.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import micro_targets
import numpy as np
from channel_pruning import load_images
from channel_speed import with_zeros
from jsonl import read

import tfcompress as tfc
from tfcompress import tflite

GRID = {"grid": "int8"}
PRUNED = 0.8
# How much of each kernel is zero, and how the kernels are clustered.
ROWS = {
    "as it is": (0.0, None),
    "floats": (0.0, {}),
    "int8 grid": (0.0, GRID),
    "pruned": (PRUNED, None),
    "pruned, int8 grid": (PRUNED, GRID),
}
MOST_BITS = 1.75


def main(arguments=None):
    options = _parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    vela = micro_targets.environment(options.environment) / "vela"
    failed = False
    for network in NETWORKS:
        model, samples, test = NETWORKS[network](options)
        print(f"\n{network:18}{'most codes':>12}{'int8':>9}{'deflated':>11}{'Vela bits':>11}")
        for name, how in ROWS.items():
            key = {"network": network, "row": name, "clusters": options.clusters}
            found = next((row for row in read(results) if key.items() <= row.items()), None)
            if found is None:
                found = key | row(model, how, samples, test, vela, options)
                with open(results, "a") as file:
                    file.write(json.dumps(found) + "\n")
            print(_line(found), flush=True)
            on_grid = name.endswith("int8 grid")
            failed |= on_grid and max(found["codes"]) > options.clusters
            failed |= on_grid and how[0] > 0 and found["vela bits"] > MOST_BITS
    return int(failed)


def resnet8(options):
    """Returns the model, samples, and test images with their labels."""
    images = load_images(options.data, options.images or options.output)
    x, y = images.split("test")
    chosen = np.random.default_rng(0).permutation(len(y))[: options.number]
    model = keras.models.load_model(options.baseline, compile=False)
    return model, images.samples(200, 0), (images.prepare(x[chosen]), y[chosen])


def mobilenet(options):
    """Returns the model and samples; there is nothing to test."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(input_shape=(96, 96, 3), alpha=0.5, weights=None)
    samples = np.random.default_rng(0).normal(size=(64, 96, 96, 3)).astype("float32")
    micro_targets.settle(model, samples)
    return model, samples, None


NETWORKS = {"resnet8": resnet8, "mobilenet0.5": mobilenet}


def row(model, how, samples, test, vela, options):
    """Returns the figures of the model's file, pruned and clustered as `how` says."""
    sparsity, arguments = how
    started = time.perf_counter()
    if sparsity:
        model = with_zeros(model, sparsity)
    if arguments is not None:
        model = tfc.cluster(model, clusters=options.clusters, **arguments)
    seconds = time.perf_counter() - started
    content = tfc.convert(model, scheme="int8", samples=samples)
    audit = tfc.audit(content)
    accuracy = None
    if test is not None:
        accuracy = float(np.mean(tflite.run_integers(content, test[0]).argmax(-1) == test[1]))
    return {
        "codes": [weight.distinct + (weight.nonzeros < weight.size) for weight in audit.weights],
        "int8 accuracy": accuracy,
        "deflated bytes": audit.deflated_bytes,
        "vela bits": bits_per_weight(content, vela, options.output),
        "seconds": round(seconds, 1),
    }


def bits_per_weight(content, vela, folder):
    """Returns the bits that Vela's encoding takes for each weight of the file."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    command = [vela, path, "--accelerator-config", "ethos-u55-128", "--output-dir", folder / "vela"]
    subprocess.run(command, check=True, capture_output=True)
    (summary,) = (folder / "vela").glob("model_summary_*.csv")
    figures = next(csv.DictReader(summary.read_text().splitlines()))
    encoded, weights = (
        int(figures[key]) for key in ("total_npu_encoded_weights", "total_original_weights")
    )
    return round(8 * encoded / weights, 3)


def _line(found):
    accuracy = found["int8 accuracy"]
    return (
        f"{found['row']:18}{max(found['codes']):>12}"
        f"{'' if accuracy is None else f'{accuracy:.2%}':>9}{found['deflated bytes']:>11,}"
        f"{found['vela bits']:>11.2f}"
    )


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--baseline", type=pathlib.Path, required=True, help="a .keras file of ResNet-8")
    add("--data", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz")
    add("--images", type=pathlib.Path, help="folder in which images.npz lies or will")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/cluster_grid"))
    add("--environment", type=pathlib.Path, default=pathlib.Path("runs/micro_targets/environment"))
    add("--clusters", type=int, default=16)
    add("--number", type=int, default=10_000, help="of test images for the accuracy")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
