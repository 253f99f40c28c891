"""Compares clustering while training with TensorFlow Model Optimization: accuracy, bytes, time.

    python benchmarks/cluster_against_tfmot.py --mnist mnist.npz \\
        --model mlperf_tiny_resnet8.h5 --images cifar10-jpeg.tar.gz --baseline resnet8.keras

LeNet-5 on MNIST and ResNet-8 on CIFAR-10 as JPEG files. From the same trained weights both sides
cluster every kernel to 8, 16 and 32 values, each in its own best way, and train with the same
batches for as many epochs; the result is a float32 .tflite whose accuracy on the test images and
whose bytes, deflated, are read from the file itself. On both sides weights change their cluster at
each step; tfmot starts with k-means++. Each side works in a process of its own, tfmot on
`tf_keras`; the two take turns epoch by epoch. "of plain": the epoch's time over that of an epoch
without clusters on the same side, since Keras 2 and 3 differ in that already; at the end of a line
stands our time over tfmot's.

`unbiased` is LeNet-5 with BatchNorm instead of biases, clustered per channel of its convolutions:
"values" is the largest number of distinct values in an output channel of a convolution's kernel, or
else in a kernel.

`--static`: our weights stay in the clusters that they are given at the start, whose values move by
the mean of their steps: the least that a step costs which keeps values shared.

`--baseline` is the fine-tuned ResNet-8 (by `channel_pruning.py --stages baseline`); without it the
.h5 file's weights are taken as they are. `--number` of training images: fewer are
faster.
"""

import argparse
import dataclasses
import importlib
import pathlib
import statistics
import sys
import tempfile
from statistics import fmean as mean

import architectures
import numpy as np
import turns

HERE = pathlib.Path(__file__).resolve().parent
SIDES = ("tfmot", "tfcompress")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained: epochs and rate before, epochs of clustering, and of each side the
    rate and what its `cluster` is told, tfcompress's chosen with `--validation`. Images are divided
    by `scale`. `entropy_weights`: of `entropy_kmeans` by the number of clusters, if that is it."""

    scale: float
    before: tuple[int, float]
    epochs: int
    rates: dict[str, float]
    options: dict[str, dict]
    entropy_weights: dict[int, float] = dataclasses.field(default_factory=dict)

    def told(self, side, clusters, static):
        """Returns what `cluster` of a side is told."""
        if static and side == "tfcompress":
            return {"method": "linear"}
        if side == "tfmot" or clusters not in self.entropy_weights:
            return self.options[side]
        method = {"entropy_kmeans": {"entropy_weight": self.entropy_weights[clusters]}}
        return self.options[side] | {"method": method}


DYNAMIC = {"update_every": 100_000}  # beyond the last step: the values train
LINEAR = DYNAMIC | {"method": "linear", "gradients": "root"}
MNIST = Settings(
    scale=255,
    before=(4, 1e-3),
    epochs=3,
    rates={"tfmot": 3e-4, "tfcompress": 1e-3},
    options={
        "tfmot": {"preserve_sparsity": False},
        # Without BatchNorm nothing has to catch up with weights that stay where they are.
        "tfcompress": LINEAR | {"freeze_step": 100_000},
    },
)
NETWORKS = {
    "lenet5": MNIST,
    "resnet8": dataclasses.replace(
        MNIST,
        scale=1,
        before=(0, 0.0),
        epochs=2,
        rates={"tfmot": 3e-4, "tfcompress": 3e-4},
        options=MNIST.options | {"tfcompress": DYNAMIC | {"method": "entropy_kmeans"}},
        # As many bytes as with tfmot's, or fewer.
        entropy_weights={8: 0.003, 16: 0.008, 32: 0.002},
    ),
    "unbiased": dataclasses.replace(
        MNIST,
        epochs=1,
        rates={"tfmot": 3e-4, "tfcompress": 3e-4},
        options={
            "tfmot": {"preserve_sparsity": False, "per_channel": True},
            "tfcompress": LINEAR | {"rules": [{"layers": "conv.*", "per": "channel"}]},
        },
    ),
}


def main(arguments=None):
    options = parse(arguments)

    def compared(network):
        return [compare(options, network, seed) for seed in options.seeds]

    return turns.run(options, work, compared, table)


def compare(options, network, seed):
    """Trains the network, has both sides cluster it in turns, and returns what their files show."""
    with tempfile.TemporaryDirectory() as name:
        return _compare(options, network, seed, pathlib.Path(name))


def _compare(options, network, seed, folder):
    np.savez(folder / "data.npz", **images(options, network, seed))
    baseline = start("tfcompress", "train", options, network, seed, folder)
    turns.in_turns([baseline])
    sides = {side: start(side, "cluster", options, network, seed, folder) for side in SIDES}
    turns.in_turns(sides.values())
    x, y = load(folder, network)[2:]
    results = {"baseline": read_back(folder / "baseline.tflite", x, y)}
    for clusters in asked(options, network):
        results[clusters] = {
            name: side.result[str(clusters)]
            | {"plain": side.result["plain"]}
            | read_back(folder / f"{name}{clusters}.tflite", x, y)
            for name, side in sides.items()
        }
    return results


def asked(options, network):
    """Returns the numbers of clusters; a channel of `unbiased` has no more than 25 weights."""
    return [k for k in options.clusters if network != "unbiased" or k <= 25]


def start(side, task, options, network, seed, folder):
    """Returns the process of one side, which waits for its turn."""
    command = [sys.executable, __file__, "--side", side, "--task", task, "--networks", network]
    command += ["--folder", str(folder), "--model", str(options.model)]
    command += ["--baseline", str(options.baseline)] if options.baseline else []
    command += ["--epochs", str(options.epochs)] if options.epochs else []
    command += ["--static"] if options.static else []
    command += ["--seeds", str(seed), "--clusters", *map(str, asked(options, network))]
    return turns.Side(f"{side} {network} seed {seed}", command)


def images(options, network, seed):
    """Returns the arrays to train on and to judge by, uint8.

    With `--validation` these are the last 5,000 training images, which are never trained on.
    """
    if network == "resnet8":
        import channel_pruning

        options.output.mkdir(parents=True, exist_ok=True)
        channel_pruning.load_images(options.images, options.output)
        path = options.output / "images.npz"
    else:
        path = options.mnist
    with np.load(path, allow_pickle=False) as arrays:
        x, y, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    order = np.random.default_rng(seed).permutation(len(x))
    used, judged = order[:-5000][: options.number], order[-5000:]
    if options.validation:
        x_test, y_test = x[judged], y[judged]
    return {"x": x[used], "y": y[used], "x_test": x_test, "y_test": y_test}


def load(folder, network):
    """Returns images and labels to train on and to judge by, float32."""
    with np.load(folder / "data.npz") as arrays:
        x, y, x_test, y_test = arrays.values()
    if x.ndim == 3:
        x, x_test = x[..., None], x_test[..., None]
    scale = np.float32(NETWORKS[network].scale)
    return x / scale, y, x_test / scale, y_test


def work(options):
    """Trains or clusters in this process and hands over the results."""
    turn = turns.Turn()
    network, folder = options.networks[0], pathlib.Path(options.folder)
    settings = NETWORKS[network]
    x, y, _, _ = load(folder, network)
    chain = importlib.import_module(f"{options.side}_chain")

    def fit(model, callbacks, epochs, rate, title):
        logits = network != "resnet8"
        return turns.train(
            chain.keras, turn, model, callbacks, (x, y), title, epochs, rate, logits=logits
        )

    if options.task == "train":
        model = build(chain.keras, network, options)
        if options.baseline and network == "resnet8":
            trained = chain.keras.models.load_model(options.baseline, compile=False)
            set_weights(model, weights_of(trained))
        epochs, rate = settings.before
        if epochs:
            fit(model, [], epochs, rate, "train")
        np.savez(folder / "baseline.npz", **weights_of(model))
        (folder / "baseline.tflite").write_bytes(chain.convert(model, "float32"))
        turn.hand_over({})
        return

    def baseline():
        model = build(chain.keras, network, options)
        with np.load(folder / "baseline.npz") as weights:
            set_weights(model, weights)
        chain.keras.utils.set_random_seed(options.seeds[0])
        return model

    results = {"plain": fit(baseline(), [], 1, settings.rates[options.side], "plain")[0]}
    for clusters in options.clusters:
        model = baseline()
        seconds = []

        def train(model, callbacks, clusters=clusters, seconds=seconds):
            epochs = options.epochs or settings.epochs
            rate = settings.rates[options.side]
            seconds += fit(model, callbacks, epochs, rate, f"{clusters} clusters")

        model = chain.cluster(
            model, train, clusters, **settings.told(options.side, clusters, options.static)
        )
        content = chain.convert(model, "float32")
        (folder / f"{options.side}{clusters}.tflite").write_bytes(content)
        by_channel = network == "unbiased"
        results[clusters] = {"seconds": seconds, "values": most_values(model, by_channel)}
    turn.hand_over(results)


def build(keras, network, options):
    if network == "resnet8":
        return keras.models.load_model(options.model, compile=False)
    return getattr(architectures, {"unbiased": "lenet5_unbiased"}.get(network, network))(keras)


def weights_of(model):
    return {
        f"{layer.name}:{number}": w
        for layer in model.layers
        for number, w in enumerate(layer.get_weights())
    }


def set_weights(model, weights):
    """Gives the model weights of `weights_of`; both Kerases name layers and order weights alike."""
    for layer in model.layers:
        layer.set_weights([weights[f"{layer.name}:{n}"] for n in range(len(layer.weights))])


def most_values(model, by_channel):
    """Returns the largest number of distinct values that a kernel has, or an output channel."""
    kernels = [w for layer in model.layers for w in layer.get_weights() if w.ndim > 1]
    if not by_channel:
        return max(len(np.unique(w)) for w in kernels)
    maps = [w.reshape(-1, w.shape[-1]) for w in kernels if w.ndim == 4]
    return max(len(np.unique(channel)) for w in maps for channel in w.T)


def read_back(path, x, y):
    """Returns what the file itself shows."""
    from tfcompress import tflite

    content = path.read_bytes()
    found = tflite.run(content, x).argmax(-1)
    deflated = tflite.audit(content).deflated_bytes
    return {"accuracy": float(np.mean(found == y)), "deflated_bytes": deflated}


def table(network, runs):
    """A row for each number of clusters: accuracy, deflated bytes, distinct values, seconds."""
    base = mean(run["baseline"]["accuracy"] for run in runs)
    size = mean(run["baseline"]["deflated_bytes"] for run in runs)
    lines = [
        f"{network}: float {base:.2%}, {size:,.0f} bytes deflated, {len(runs)} seed(s)",
        f"{'clusters':>8}{'':12}{'accuracy':>10}{'deflated':>11}{'values':>8}{'s per epoch':>13}"
        f"{'of plain':>10}",
    ]
    for clusters in [key for key in runs[0] if key != "baseline"]:
        found = {side: [run[clusters][side] for run in runs] for side in SIDES}
        for side, of_seeds in found.items():
            seconds = statistics.median(s for one in of_seeds for s in one["seconds"])
            plain = statistics.median(one["plain"] for one in of_seeds)
            lines.append(
                f"{clusters:>8}  {side:10}{mean(one['accuracy'] for one in of_seeds):>10.2%}"
                f"{mean(one['deflated_bytes'] for one in of_seeds):>11,.0f}"
                f"{max(one['values'] for one in of_seeds):>8}"
                f"{seconds:>13.2f}{seconds / plain:>9.2f}x"
            )
        lines[-1] += compared(*(found[side] for side in SIDES))
    return "\n".join(lines) + "\n"


def compared(theirs, ours):
    """Says how accuracy and time compare, both of equal seeds and epochs."""
    pairs = list(zip(theirs, ours, strict=True))
    points = [100 * (b["accuracy"] - a["accuracy"]) for a, b in pairs]
    spread = f" +- {statistics.stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    times = [
        own / other for a, b in pairs for other, own in zip(a["seconds"], b["seconds"], strict=True)
    ]
    return f"  {mean(points):+.2f}{spread} points, {statistics.median(times):.3f}x the time"


def parse(arguments):
    shared = HERE.parent.parent / "shared"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mnist", default=shared / "data" / "mnist.npz")
    add("--model", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    add("--images", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz")
    add("--baseline", type=pathlib.Path)
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/cluster_against_tfmot"))
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--clusters", nargs="+", type=int, default=[8, 16, 32])
    add("--epochs", type=int, help="of the training with clusters")
    add("--number", type=int)
    add("--static", action="store_true", help="our weights keep their clusters: the fastest step")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--validation", action="store_true", help="judge by 5,000 training images")
    add("--json", type=pathlib.Path, metavar="FILE", help="save all results here")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--task", choices=("train", "cluster"), help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
