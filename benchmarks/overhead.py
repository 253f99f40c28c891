"""Times what tfcompress adds: a training step against plain `fit`, an export against TFLite's own.

    python benchmarks/overhead.py

Every variant is a real `model.fit` with its real callbacks, Adam, and the same batches, in a
thread of its own; one thread runs at a time. They run in rounds: in a round each variant, in random
order, trains 100 steps, so that the mask update that is due every 100 steps is in each measurement
(`--steps`: fewer suffice for the other variants). Tracing, compilation and the first steps are left
out. Reported is the median over the rounds of the ratio to plain `fit` in the same round, with the
quartiles. Times are those of the processor, all threads together, so that they hold on a machine
with neighbours; `taskset -c 0` has them be those of the clock of an idle core. `norm_trains` is
`quantize_aware(batch_norm="train")`, where `quantize` folds BatchNorm before it trains.

`--tfmot` times TensorFlow Model Optimization the same way, in a process of its own after
tfcompress's, against its own plain `fit` of `tf_keras`.

The export is MobileNetV2's (224 x 224, random weights) as full-integer int8, calibrated with
`--samples`: `tfc.convert`, which also runs the file and compares it, against the bare
`tf.lite.TFLiteConverter`, in turns.
"""

import argparse
import functools
import json
import operator
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time

import architectures
import numpy as np

NETWORKS = {
    "lenet5": (architectures.lenet5, (28, 28, 1), 128),
    "resnet8": (architectures.resnet8, (32, 32, 3), 128),
    "mobilenet0.25": (architectures.mobilenet, (96, 96, 3), 32),
    "mobilenet0.5": (functools.partial(architectures.mobilenet, width=0.5), (96, 96, 3), 32),
}
VARIANTS = ("prune", "cluster", "quantize", "norm_trains", "all")
OURS_ALONE = ("norm_trains",)
LIMITS = {"prune": 1.05, "cluster": 1.15, "quantize": 1.5, "norm_trains": 1.5, "all": 1.8}
EXPORT_LIMIT = 1.2
WARM_UP_STEPS = 20
FOREVER = 10**6


def main(arguments=None):
    options = _parse(arguments)
    if options.side:
        print(json.dumps(export_seconds(options) if options.side == "export" else measure(options)))
        return 0
    results = {}
    sides = ("tfcompress", "tfmot") if options.tfmot else ("tfcompress",)
    for side in (*sides, "export") if options.samples else sides:
        command = [sys.executable, __file__, "--side", side, *(arguments or sys.argv[1:])]
        environment = os.environ | ({"TF_USE_LEGACY_KERAS": "1"} if side == "tfmot" else {})
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if answer.returncode:
            return answer.returncode
        results[side] = json.loads(answer.stdout.splitlines()[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    export = results.pop("export", None)
    print(table(results))
    if export:
        print(f"MobileNetV2 as int8, {options.samples} samples: time of an export")
        print(f"  TFLiteConverter {statistics.median(export['plain']):8.1f} s")
        ratio = statistics.median(map(operator.truediv, export["tfcompress"], export["plain"]))
        seconds = statistics.median(export["tfcompress"])
        print(f"  tfcompress      {seconds:8.1f} s {ratio:.3f}x{EXPORT_LIMIT:>9.2f}x")
    return 0


def measure(options):
    """Returns, by network and variant, the seconds of a step in each round."""
    build = tfmot_variant if options.side == "tfmot" else tfcompress_variant
    results = {}
    for network in options.networks:
        fits = {
            name: PacedFit(*build(network, name), data(network), options.jit)
            for name in ("plain", *options.variants)
            if options.side != "tfmot" or name not in OURS_ALONE
        }
        for name, fit in fits.items():
            print(f"{options.side} {network} {name}: warm-up", file=sys.stderr)
            fit.train(WARM_UP_STEPS)
        seconds = {name: [] for name in fits}
        order = random.Random(0)
        for number in range(options.rounds):
            for name in order.sample(list(fits), len(fits)):
                seconds[name].append(fits[name].train(options.steps) / options.steps)
            plain = seconds["plain"][-1]
            ratios = " ".join(f"{name} {seconds[name][-1] / plain:.3f}" for name in fits)
            print(f"{network} round {number + 1}: {ratios}", file=sys.stderr)
        for fit in fits.values():
            fit.stop()
        results[network] = seconds
    return results


def export_seconds(options):
    """Returns the seconds of each export by the bare converter ("plain") and by tfcompress."""
    import keras
    import quantization_coverage as coverage
    import tensorflow as tf

    import tfcompress as tfc

    keras.utils.set_random_seed(0)
    random_numbers = np.random.default_rng(0)
    model = keras.applications.MobileNetV2(weights=None)
    x = random_numbers.uniform(-1, 1, (options.samples, 224, 224, 3)).astype(np.float32)
    coverage.enliven(model, random_numbers)
    coverage.measure(keras, model, x)

    def plain():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[np.newaxis]] for row in x)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        converter.convert()

    exports = {"plain": plain, "tfcompress": lambda: tfc.convert(model, "int8", x)}
    seconds = {name: [] for name in exports}
    for number in range(options.exports + 1):
        for name, export in exports.items():
            started = time.process_time()
            export()
            took = time.process_time() - started
            print(f"export {number} {name}: {took:.1f} s", file=sys.stderr)
            if number > 0:  # the first ones load what the others find loaded
                seconds[name].append(took)
    return seconds


class PacedFit:
    """A `fit` that trains as many steps as it is told to and then waits."""

    def __init__(self, keras, model, callbacks, batches, jit):
        options = {} if jit == "auto" else {"jit_compile": jit == "true"}
        model.compile(
            keras.optimizers.Adam(1e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            **options,
        )
        self._left = 0
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error = None

        def pace(batch, logs):
            self._left -= 1
            if self._left == 0:
                self._done.release()
                self._go.acquire()
                model.stop_training = self._left == 0

        def run():
            self._go.acquire()
            try:
                pacer = keras.callbacks.LambdaCallback(on_train_batch_end=pace)
                # Callbacks act in the order of the list: what they cost lies before the pacer.
                model.fit(
                    batches,
                    steps_per_epoch=FOREVER,
                    callbacks=[*callbacks, pacer],
                    shuffle=False,
                    verbose=0,
                )
            except Exception as error:  # Handed to the thread that waits for the steps.
                self._error = error
            self._done.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def train(self, steps):
        """Trains `steps` steps and returns the seconds that they took."""
        started = time.process_time()
        self._left = steps
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return time.process_time() - started

    def stop(self):
        """Ends the fit."""
        self._left = 0
        self._go.release()
        self._thread.join()


def data(network):
    """Batches of noise and labels, cached: their values do not change what a step costs."""
    import tensorflow as tf

    _, shape, batch = NETWORKS[network]
    rng = np.random.default_rng(0)
    x = rng.random((8 * batch, *shape), np.float32)
    y = rng.integers(0, 10, len(x))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).cache().repeat()


def tfcompress_variant(network, variant):
    """Returns Keras, model and callbacks; every weight is pruned or clustered."""
    import keras

    import tfcompress as tfc

    model = NETWORKS[network][0](keras)
    if variant in ("quantize", "all"):
        model = tfc.quantize_aware(model)
    elif variant == "norm_trains":
        model = tfc.quantize_aware(model, batch_norm="train")
    # The schedule climbs all the time, so each mask update does its work.
    prune = tfc.PruneOnSchedule(tfc.schedules.Polynomial(start=0.5, end=0.9, end_step=100_000))
    cluster = tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=16))
    callbacks = {"prune": [prune], "cluster": [cluster], "all": [prune, cluster]}
    return keras, model, callbacks.get(variant, [])


def tfmot_variant(network, variant):
    """The same with tfmot, where all three together are its PCQAT on a sparse, clustered model."""
    import tfmot_chain as chain

    taken = []

    def take(model, callbacks):
        taken.append((chain.keras, model, callbacks))

    model = NETWORKS[network][0](chain.keras)
    layers = [layer.name for layer in model.layers if layer.weights]
    match variant:
        case "plain":
            take(model, [])
        case "prune":
            chain.prune(model, take, dict.fromkeys(layers, 0.9), 100_000)
        case "cluster":
            chain.cluster(model, take, 16)
        case "quantize":
            take(chain.tfmot.quantization.keras.quantize_model(model), [])
        case "all":
            chain.quantize(_sparse_and_clustered(model), take, None)
    return taken[0]


def _sparse_and_clustered(model):
    """Weights of 16 values and zero, 90 % zeros, as PCQAT expects to find them."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            w = rng.integers(-8, 8, variable.shape) + 0.5
            variable.assign(0.02 * w * (rng.random(variable.shape) < 0.1))
    return model


def table(results):
    """Ratios to plain `fit` and milliseconds per step, with the limits they are held to."""
    lines = []
    for network in next(iter(results.values())):
        lines.append(f"{network}: time per training step, ratio to plain fit (quartiles)")
        lines.append(f"  {'':11}" + "".join(f"{side:>34}" for side in results) + f"{'limit':>9}")
        for name in next(iter(results.values()))[network]:
            cells = "".join(f"{_cell(side[network], name):>34}" for side in results.values())
            limit = f"{LIMITS[name]:.2f}x" if name in LIMITS else ""
            lines.append(f"  {name:11}{cells}{limit:>9}")
    return "\n".join(lines)


def _cell(seconds, name):
    if name not in seconds:
        return "-"
    ratios = [ours / plain for ours, plain in zip(seconds[name], seconds["plain"], strict=True)]
    milliseconds = f"{1000 * statistics.median(seconds[name]):.2f} ms"
    if name == "plain" or len(ratios) < 2:
        return f"{milliseconds} {statistics.median(ratios):.3f}x"
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{milliseconds} {middle:.3f}x ({low:.3f}-{high:.3f})"


def _parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=VARIANTS,
        default=VARIANTS,
        help="only these, beside plain",
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=100, help="of each variant in a round")
    parser.add_argument("--samples", type=int, default=100, help="of the export; 0: no export")
    parser.add_argument("--exports", type=int, default=3, help="exports to time of each kind")
    parser.add_argument(
        "--jit",
        choices=("auto", "true", "false"),
        default="auto",
        help="jit_compile of all models (default: auto, as Keras does it; tf_keras: off)",
    )
    parser.add_argument("--tfmot", action="store_true", help="time tfmot too")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save all results here")
    parser.add_argument("--side", choices=("tfcompress", "tfmot", "export"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
