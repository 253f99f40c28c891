"""Compares tfcompress with TensorFlow Model Optimization: LeNets on MNIST, prune to int8 file.

    python benchmarks/against_tfmot.py --data mnist.npz

Both start from the same trained weights and take the same stages (prune, cluster,
quantization-aware training, int8 .tflite) with the same data, batches, epochs, sparsities and
seeds. Clusters and the learning rates that train them are each side's own (`--same`: tfmot's for
both). With `--one-fit` tfcompress prunes, clusters and quantizes in a single `fit`, of as many
epochs as tfmot's three together. Each works in a process of its own, tfmot on `tf_keras`; the two
take turns epoch by epoch, so that both are timed under the same load, and never run at the same
time. An epoch's time is that of the processor (`turns.train`).
"""

import argparse
import dataclasses
import importlib
import pathlib
import statistics
import sys
import tempfile

import numpy as np
import turns

HERE = pathlib.Path(__file__).resolve().parent
SIDES = ("tfmot", "tfcompress")
STAGES = ("prune", "cluster", "quantize")
SAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one network is compressed with.

    epochs, rates: of train, prune, cluster and quantize; Adam's learning rate falls linearly to a
        tenth of it over a stage.
    own: what tfcompress takes instead of `clusters` and `rates`, unless `--same` is given, chosen
        on validation images (`--validation`). tfmot's centroids crowd where weights are many, and
        of 16 clusters it uses about 13; the nearest to that here is `linear`. And tfmot's Adam
        normalises the gradient of a centroid, tfcompress's takes the mean of the normalised steps
        of its weights, which is smaller: so the rates differ.
    """

    sparsities: dict[str, float]
    clusters: int
    epochs: tuple[int, int, int, int]
    rates: tuple[float, float, float, float]
    own: dict[str, object]


# Sparsities are near those of Deep Compression (Han, Mao and Dally 2016, tables 2 and 3).
NETWORKS = {
    "lenet300": Settings(
        {"fc1": 0.93, "fc2": 0.91, "fc3": 0.74},
        clusters=16,
        epochs=(8, 12, 4, 4),
        rates=(1e-3, 1e-3, 3e-4, 1e-4),
        own={"clusters": 12, "rates": (1e-3, 1e-3, 1e-3, 1e-3)},
    ),
    "lenet5": Settings(
        {"conv1": 0.34, "conv2": 0.88, "fc1": 0.93, "fc2": 0.81},
        clusters=16,
        epochs=(4, 8, 3, 3),
        rates=(1e-3, 1e-3, 3e-4, 1e-4),
        own={"clusters": 12, "rates": (1e-3, 1e-3, 1e-3, 1e-3)},
    ),
}


def main(arguments=None):
    options = _parse(arguments)

    def compared(network):
        return [compare(options, network, seed) for seed in options.seeds]

    return turns.run(options, work, compared, table)


def compare(options, network, seed):
    """Trains the network once, then lets both sides compress it in turns; returns their results."""
    with tempfile.TemporaryDirectory() as folder:
        baseline = start("tfcompress", "train", options, network, seed, folder)
        turns.in_turns([baseline])
        sides = {side: start(side, "compress", options, network, seed, folder) for side in SIDES}
        turns.in_turns(sides.values())
        for name, side in sides.items():
            file = pathlib.Path(folder, f"{name}.tflite")
            side.result |= read_back(file, options.data, options.validation)
        return {"baseline": baseline.result} | {name: side.result for name, side in sides.items()}


def start(side, task, options, network, seed, folder):
    """Returns the process of one side, which waits for its turn."""
    command = [sys.executable, __file__, "--side", side, "--task", task]
    command += ["--data", options.data, "--networks", network, "--seeds", str(seed)]
    command += ["--folder", folder, "--epochs", str(options.epochs or 0)]
    command += ["--validation"] * options.validation + ["--same"] * options.same
    command += ["--one-fit"] * options.one_fit
    return turns.Side(f"{side} {network} seed {seed}", command)


def work(options):
    """Does one side's task in this process and hands over its result."""
    turn = turns.Turn()
    network, seed = options.networks[0], options.seeds[0]
    settings = NETWORKS[network]
    if options.side == "tfcompress" and not options.same:
        settings = dataclasses.replace(settings, **settings.own)
    if options.epochs:
        settings = dataclasses.replace(settings, epochs=(options.epochs,) * 4)
    x, y, x_test, y_test = load(options.data, options.validation)
    chain = importlib.import_module(f"{options.side}_chain")
    model = getattr(importlib.import_module("architectures"), network)(chain.keras, seed)
    weights = pathlib.Path(options.folder, "baseline.npz")
    stages = {}

    def fit_for(stage):
        if stage == "one fit":
            epochs, rate = sum(settings.epochs[1:]), settings.rates[1]
        else:
            number = ("train", *STAGES).index(stage)
            epochs, rate = settings.epochs[number], settings.rates[number]

        def fit(model, callbacks):
            timed = turns.train(chain.keras, turn, model, callbacks, (x, y), stage, epochs, rate)
            accuracy = model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
            stages[stage] = {"epoch_seconds": timed, "accuracy": accuracy}

        return fit

    if options.task == "train":
        fit_for("train")(model, [])
        np.savez(weights, *model.get_weights())
        turn.hand_over({"parameters": model.count_params(), "stages": stages})
        return
    with np.load(weights) as arrays:
        model.set_weights(list(arrays.values()))
    steps = [epochs * -(-len(x) // turns.BATCH) for epochs in settings.epochs[1:]]
    end_step = steps[0] * 3 // 4
    if options.one_fit and options.side == "tfcompress":
        how = settings.sparsities, end_step, settings.clusters, steps
        model = chain.one_fit(model, fit_for("one fit"), x[:SAMPLES], *how)
    else:
        model = chain.prune(model, fit_for("prune"), settings.sparsities, end_step)
        model = chain.cluster(model, fit_for("cluster"), settings.clusters)
        model = chain.quantize(model, fit_for("quantize"), x[:SAMPLES])
    flatbuffer = chain.convert(model)
    pathlib.Path(options.folder, f"{options.side}.tflite").write_bytes(flatbuffer)
    turn.hand_over({"settings": dataclasses.asdict(settings), "stages": stages})


def load(path, validation):
    """Returns float32 images in [0, 1], 28 x 28 x 1, and labels: to train on and to judge by.

    With `validation` the last 5,000 training images take the place of the test images, which are
    not read; they are never trained on.
    """
    with np.load(path, allow_pickle=False) as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
        judged = slice(-5000, None)
        x_test, y_test = (
            (x[judged], y[judged]) if validation else (arrays["x_test"], arrays["y_test"])
        )
    x, y = x[:-5000], y[:-5000]
    return (x[..., None] / np.float32(255), y, x_test[..., None] / np.float32(255), y_test)


def read_back(path, data, validation):
    """Returns what the file itself shows: accuracy in LiteRT, bytes, zeros, distinct values."""
    from tfcompress import tflite

    _, _, x, y = load(data, validation)
    flatbuffer = path.read_bytes()
    audit = tflite.audit(flatbuffer)
    kernels = [weight for weight in audit.weights if len(weight.shape) > 1]
    return {
        "accuracy": float(np.mean(tflite.run(flatbuffer, x).argmax(-1) == y)),
        "size_bytes": audit.size_bytes,
        "deflated_bytes": audit.deflated_bytes,
        "full_integer": audit.full_integer,
        "sparsity": 1 - sum(w.nonzeros for w in kernels) / sum(w.size for w in kernels),
    }


def table(network, runs):
    """One row per measure: tfmot, tfcompress and how they compare; means over the seeds."""
    parameters = runs[0]["baseline"]["parameters"]

    def mean(read):
        return {side: statistics.mean(read(run[side]) for run in runs) for side in SIDES}

    baseline = statistics.mean(run["baseline"]["stages"]["train"]["accuracy"] for run in runs)
    rows = []
    stages = [stage for stage in STAGES if stage in runs[0]["tfcompress"]["stages"]]
    for stage in stages:
        accuracy = mean(lambda side, stage=stage: side["stages"][stage]["accuracy"])
        rows.append((f"accuracy after {stage} (Keras)", accuracy, "{:.2%}", None))
    accuracy = mean(lambda side: side["accuracy"])
    rows.append(("accuracy of the int8 .tflite", accuracy, "{:.2%}", "{:+.2f} points"))
    rows.append(("bytes", mean(lambda side: side["size_bytes"]), "{:,.0f}", "{:.3f}x"))
    rows.append(("zeros in its kernels", mean(lambda side: side["sparsity"]), "{:.2%}", None))
    deflated = mean(lambda side: side["deflated_bytes"])
    rows.append(("deflated bytes (zlib 9)", deflated, "{:,.0f}", "{:.3f}x"))
    shrunk = {side: 4 * parameters / size for side, size in deflated.items()}
    rows.append(("compression (float32 / deflated)", shrunk, "{:.1f}x", "{:.3f}x"))
    lines = [
        f"{network}: {parameters:,} parameters, baseline {baseline:.2%}, {len(runs)} seed(s)",
        f"{'':36}{'tfmot':>12}{'tfcompress':>12}   compared",
    ]
    used = {side: runs[0][side]["settings"] for side in SIDES}
    rows.insert(0, ("clusters", {side: used[side]["clusters"] for side in SIDES}, "{}", None))
    for label, values, form, compared in rows:
        ratio = values["tfcompress"] / values["tfmot"]
        if compared and "points" in compared:
            ratio = 100 * (values["tfcompress"] - values["tfmot"])
        cells = "".join(f"{form.format(values[side]):>12}" for side in SIDES)
        lines.append(f"{label:36}{cells}   {compared.format(ratio) if compared else ''}".rstrip())
    for stage in stages:
        pairs = [
            pair
            for run in runs
            for pair in zip(
                *(run[side]["stages"][stage]["epoch_seconds"] for side in SIDES), strict=True
            )
        ]
        cells = "".join(f"{statistics.median(times):>11.2f}s" for times in zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for theirs, ours in pairs)
        lines.append(f"{'seconds per epoch, ' + stage:36}{cells}   {ratio:.3f}x")
    totals = [
        statistics.mean(
            sum(sum(s["epoch_seconds"]) for s in run[side]["stages"].values()) for run in runs
        )
        for side in SIDES
    ]
    cells = "".join(f"{seconds:>11.0f}s" for seconds in totals)
    lines.append(f"{'seconds of all epochs':36}{cells}   {totals[1] / totals[0]:.3f}x")
    return "\n".join(lines) + "\n"


def _parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=str(HERE.parent.parent / "shared" / "data" / "mnist.npz"),
        help="npz file with x_train, y_train, x_test, y_test, as keras.datasets.mnist has it",
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="epochs of every stage: 1 is the quick mode")
    parser.add_argument(
        "--validation",
        action="store_true",
        help="judge by the last 5,000 training images, to choose settings, not by the test images",
    )
    parser.add_argument(
        "--one-fit", action="store_true", help="tfcompress: all stages in one fit of all epochs"
    )
    parser.add_argument("--same", action="store_true", help="tfmot's settings for both sides")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save all results here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=("train", "compress"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
