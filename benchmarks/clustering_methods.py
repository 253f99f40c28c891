"""Every clustering method on whole models and on one kernel of 25 million weights.

    python benchmarks/clustering_methods.py --output clustering.jsonl
    python benchmarks/clustering_methods.py --models large --views scalar --methods kmeans gmm

Rows are model x view x method. Models: MLPerf Tiny's trained ResNet-8 (`--resnet8`), MobileNetV2
with random weights, and `large`, one kernel of 25 million normal and Laplace weights. Views: single
weights (`scalar`), blocks of 1 x 4 (`blocks`), and two additive levels of such blocks (`levels`).
Every method gets `--clusters` and its defaults otherwise; those that find their number may find
fewer. Kernels with no more blocks than clusters are left out.

Columns: squared error over that of the best clustering with as many values as each kernel got
(scalars) or over the kernel's own around its mean (`sse`); values per kernel on average; entropy in
bits per weight; bytes of indices (one byte each) and centroids after deflate, per weight in bits;
seconds; peak memory above what the process held before it began, kernels included. Each row is one
process. Rows that the output file holds are not run again.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
import zlib

import jsonl
import numpy as np

MODELS = ("resnet8", "mobilenetv2", "large")
VIEWS = ("scalar", "blocks", "levels")
SIDE = 5000  # inputs and outputs of the large kernel
BLOCK = (1, 4)


def kernels(model, resnet8):
    """Returns the kernels of a model, float32."""
    if model == "large":
        from kmeans import make_kernel

        return [make_kernel(SIDE * SIDE).reshape(SIDE, SIDE)]
    import keras

    from tfcompress import models, weights

    keras.utils.set_random_seed(0)
    if model == "resnet8":
        return [kernel.value() for kernel in weights.kernels(models.load(resnet8))]
    network = keras.applications.MobileNetV2(weights=None)
    return [kernel.value() for kernel in weights.kernels(network)]


def measure(model, view, method, clusters, resnet8):
    """Returns the figures of one row."""
    from tfcompress import clustering
    from tfcompress.weights import to_blocks

    shape = (1, 1) if view == "scalar" else BLOCK
    all_blocks = [to_blocks(kernel, shape) for kernel in kernels(model, resnet8)]
    all_blocks = [blocks for blocks in all_blocks if len(blocks) > clusters]
    arguments = {method: {"clusters": clusters}}
    before = resident_bytes()
    begin = time.perf_counter()
    found = [
        clustering.additive(blocks, arguments)
        if view == "levels"
        else [clustering.METHODS.create(arguments).fit(blocks)]
        for blocks in all_blocks
    ]
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = summary(all_blocks, found)
    return figures | {"seconds": round(seconds, 2), "peak_mb": round((peak - before) / 1e6)}


def summary(all_blocks, found):
    from tfcompress import clustering

    size = sum(blocks.size for blocks in all_blocks)
    error = own = optimum = bits = deflated = values = 0.0
    for blocks, books in zip(all_blocks, found, strict=True):
        decoded = clustering.decode(books)
        error += squares(blocks, decoded)
        alone = squares(blocks, blocks.mean(axis=0, dtype=np.float64).astype(np.float32))
        own += alone
        bits += sum(book.entropy_bits for book in books) * len(blocks)
        values += len(np.unique(decoded)) / len(found)
        deflated += sum(deflated_bytes(book) for book in books)
        if blocks.shape[1] == 1:
            count = len(books[0].centroids)
            best = clustering.KMeans(count).fit(blocks).sse(blocks) if count > 1 else alone
            optimum += best
    return {
        "sse": round(error / own, 6),
        "over_optimum": round(error / optimum, 4) if optimum else None,
        "values": round(values, 1),
        "entropy_bits": round(bits / size, 3),
        "deflated_bits": round(8 * deflated / size, 3),
    }


def squares(blocks, others):
    total = 0.0
    for begin in range(0, len(blocks), 1 << 20):
        part = slice(begin, begin + (1 << 20))
        other = others[part] if others.shape == blocks.shape else others
        total += float(((blocks[part].astype(np.float64) - other) ** 2).sum())
    return total


def deflated_bytes(book):
    indices = book.indices.astype(np.uint8 if len(book.centroids) <= 256 else np.uint16)
    return len(zlib.compress(indices.tobytes(), 6)) + len(zlib.compress(book.centroids.tobytes()))


def resident_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def main(arguments=None):
    options = _parse(arguments)
    if options.row:
        model, view, method = options.row
        print(json.dumps(measure(model, view, method, options.clusters, options.resnet8)))
        return 0
    from tfcompress import clustering

    rows = jsonl.read(options.output)
    known = {tuple(row["row"]): row for row in rows if row["clusters"] == options.clusters}
    failed = 0
    print(f"{'model':12}{'view':8}{'method':16}{'sse':>9}{'/ best':>8}{'values':>9}", end="")
    print(f"{'entropy':>9}{'deflated':>9}{'s':>8}{'MB':>7}")
    for model in options.models:
        for view in options.views:
            for method in options.methods or clustering.METHODS.names():
                row = known.get((model, view, method)) or run(options, model, view, method)
                failed += "error" in row
                print(line(row), flush=True)
    return int(failed > 0)


def run(options, model, view, method):
    """Measures one row in a process of its own and adds it to the output file."""
    command = [sys.executable, __file__, "--row", model, view, method]
    command += ["--clusters", str(options.clusters), "--resnet8", str(options.resnet8)]
    result = subprocess.run(command, capture_output=True, text=True)
    row = {"row": [model, view, method], "clusters": options.clusters}
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        return row | {"error": reason}  # not kept: it is tried again next time
    row |= json.loads(result.stdout.splitlines()[-1])
    with options.output.open("a") as output:
        output.write(json.dumps(row) + "\n")
    return row


def line(row):
    model, view, method = row["row"]
    start = f"{model:12}{view:8}{method:16}"
    if "error" in row:
        return start + row["error"]
    over = f"{row['over_optimum']:8.3f}" if row["over_optimum"] else f"{'':8}"
    return (
        f"{start}{row['sse']:9.5f}{over}{row['values']:9.1f}{row['entropy_bits']:9.3f}"
        f"{row['deflated_bits']:9.3f}{row['seconds']:8.1f}{row['peak_mb']:7d}"
    )


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--resnet8", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("clustering.jsonl"))
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
