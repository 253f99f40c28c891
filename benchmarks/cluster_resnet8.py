"""ResNet-8 with shared weights: points lost on CIFAR-10 as JPEG files, and bits per weight.

    python benchmarks/cluster_resnet8.py --baseline resnet8-jpeg.keras --data cifar10-jpeg.tar.gz

The baseline is the fine-tuned float model that `channel_pruning.py --stages baseline` leaves.

float32_trained  the float model, trained on as the next two are: what training alone does
scalars   each kernel has 16 values; weights change their cluster while they train
blocks    1 x 4 blocks are sums of two codebooks' entries, as many as 4 bits per weight pay for,
          codebooks included; kernels of less than 4,096 weights, to which codebooks of blocks are
          dear, have 16 values as above
METHOD    one clustering method with as many clusters as bring it nearest to the bytes of k-means
          with 16: accuracy before and after `--method-epochs` of fine-tuning with fixed clusters

Bits are those of all kernels: indices as an ideal entropy coder writes them (of blocks, as they
are) and codebooks in float32. Accuracy is the float .tflite's. Each finished row
is kept in `results.jsonl` of `--output`, with the training's checkpoints beside: the same command
goes on after a kill. Exits with 1 if `scalars` loses more than 0.3 points, or has more than 16
values in a kernel, or `blocks` takes more than 4 bits per weight.
"""

import math

import keras
import numpy as np
import resnet8_quantization
from resnet8_quantization import percentage

import tfcompress as tfc
from tfcompress import clustering, weights
from tfcompress.clustered import Plan, cluster_kernel

CLUSTERS, BITS, MOST_LOST = 16, 4, 0.3
FEWEST_IN_BLOCKS = 4096
NEVER = 10**9  # dynamic clusters whose values train, and are never found anew


def main(arguments=None):
    options = _parse(arguments)
    return report(Bench(options).finished(("float32", *options.rows)))


class Bench(resnet8_quantization.Bench):
    """The model, the images, and a folder in which each row's result is kept."""

    def result(self, row):
        """Returns the figures of one row."""
        how = {
            "float32": self.as_it_is,
            "float32_trained": self.trained_on,
            "scalars": self.scalars,
            "blocks": self.blocks,
        }
        model, found = how[row]() if row in how else self.method(row)
        values = max(len(np.unique(kernel.value())) for kernel in weights.kernels(model))
        return found | {"values": values} | self.measured(tfc.convert(model, scheme="float32"))

    def as_it_is(self):
        return self.model, {"bits": 32.0}

    def trained_on(self):
        return self.trained("float32_trained", []), {"bits": 32.0}

    def scalars(self):
        callback = tfc.ClusterOnSchedule("kmeans", clusters=CLUSTERS, update_every=NEVER)
        model = self.trained("scalars", [callback])
        return model, {"bits": bits_of(model)}

    def blocks(self):
        rules = [
            {"layers": f".*{kernel.path}", "block": (1, 4), "levels": 2, "clusters": entries}
            for kernel, entries in in_blocks(self.model)
        ]
        callback = tfc.ClusterOnSchedule(clusters=CLUSTERS, update_every=NEVER, rules=rules)
        model = self.trained("blocks", [callback])
        return model, {"bits": bits_of(model, in_blocks(model))}

    def method(self, name):
        clusters, bits = self.clusters_for(name)
        model = tfc.cluster(self.model, name, clusters)
        right = self.right(tfc.convert(model, scheme="float32"), "test")
        tfc.preserve(model)
        self.train(model, name, self.options.method_epochs, *self.how, [])
        return model, {"bits": bits, "clusters": clusters, "before": percentage(right)}

    def trained(self, name, callbacks):
        """Returns a copy of the model that is trained on."""
        model = keras.models.clone_model(self.model)
        model.set_weights(self.model.get_weights())
        self.train(model, name, self.options.epochs, *self.how, callbacks)
        return model

    @property
    def how(self):
        """The learning rate and the share of the soft labels in the loss."""
        return self.options.rate, self.options.distill

    def clusters_for(self, method):
        """Returns for how many clusters a method's bits are nearest to those of k-means."""
        wanted = self.bits("kmeans", CLUSTERS)
        low, high = 2, 4 * CLUSTERS
        while low < high:  # bits grow with the clusters
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.bits(method, middle) < wanted else (low, middle)
        nearest = min((max(low - 1, 2), low), key=lambda k: abs(self.bits(method, k) - wanted))
        return nearest, self.bits(method, nearest)

    def bits(self, method, clusters):
        plan = Plan("cluster_resnet8", method).with_clusters(clusters)
        kernels = weights.kernels(self.model)
        found = [cluster_kernel(k.value(), plan, k.output_axes) for k in kernels]
        total = sum(one.index_bits + 8 * one.codebook_bytes for one in found)
        return round(total / sum(one.values.size for one in found), 3)


def in_blocks(model):
    """Returns the kernels that are large enough for blocks, and how many entries each codebook
    has: the largest power of two that `BITS` per weight pay for."""
    found = []
    for kernel in weights.kernels(model):
        size = int(np.prod(kernel.variable.shape))
        if size >= FEWEST_IN_BLOCKS:
            paid = [2**n for n in range(1, 9) if bits_of_blocks(kernel, 2**n) <= BITS * size]
            found.append((kernel, max(paid)))
    return found


def bits_of_blocks(kernel, entries):
    """Returns all bits of a kernel of 1 x 4 blocks, the sums of two entries each."""
    rows, columns = weights.matrix_shape(tuple(kernel.variable.shape))
    return rows * math.ceil(columns / 4) * 2 * math.log2(entries) + 2 * entries * 4 * 32


def bits_of(model, blocks=()):
    """Returns the bits per weight; kernels not among `blocks` have few values."""
    entries = {kernel.path: count for kernel, count in blocks}
    total = size = 0
    for kernel in weights.kernels(model):
        _, counts = np.unique(kernel.value(), return_counts=True)
        size += counts.sum()
        if kernel.path in entries:
            total += bits_of_blocks(kernel, entries[kernel.path])
        else:
            total += (counts * np.log2(counts.sum() / counts)).sum() + 32 * len(counts)
    return round(float(total / size), 3)


def report(rows):
    """Prints the table and returns the exit status."""
    base = rows["float32"]["test"]
    print(f"\n{'':<18}{'clusters':>9}{'values':>8}{'bits':>7}{'before':>9}{'test':>9}{'lost':>7}")
    failed = False
    for name, row in rows.items():
        lost = round(base - row["test"], 2)
        before = f"{row['before']:.2f}%" if "before" in row else ""
        print(
            f"{name:<18}{row.get('clusters', ''):>9}{row['values']:>8}{row['bits']:>7.2f}"
            f"{before:>9}{row['test']:>8.2f}%{lost:>+7.2f}"
        )
        failed |= name == "scalars" and (lost > MOST_LOST or row["values"] > CLUSTERS)
        failed |= name == "blocks" and row["bits"] > BITS
    return int(failed)


def _parse(arguments):
    rows = ["float32_trained", "scalars", "blocks", *clustering.METHODS.names()]
    parser = resnet8_quantization.parser(__doc__, rows, "cluster_resnet8")
    parser.set_defaults(epochs=6, rate=3e-4, distill=0.5)
    parser.add_argument("--method-epochs", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
