"""ResNet-8 in 8, 4 and mixed bits: points lost on CIFAR-10 as JPEG files, and bytes.

    python benchmarks/resnet8_quantization.py --baseline resnet8.keras --data cifar10-jpeg.tar.gz

`--baseline` is a trained float model, for example `baseline-*.keras` of `channel_pruning.py`.
Rows (`--rows`):

    float32          the float file
    float32_trained  the float model, trained on as the rows below are: what training alone does
    int8             post-training
    int16x8          post-training, int16 activations
    int4_nearest     post-training, 4-bit weights rounded to the nearest
    int4_adaround    post-training, 4-bit weights by adaptive rounding
    mixed            4 or 8 bits per layer by `mixed_precision`, at least 35 % fewer bytes than int8
    iterative_int4   4-bit weights, rounded and clipped bit by bit while training
    qat_int8         quantization-aware training, 8 bits
    qat_int4         the same with 4-bit weights
    qat_mixed        the same in the bits of the row `mixed`

Rows that train see the training images as they are, neither moved nor flipped as the baseline did,
and are taught by the float model as well, or by the mean of `--teachers`. BatchNorm trains, too,
but for `iterative_int4`, which needs it folded.

Every file sees the 10,000 test images once, on the LiteRT interpreter. A tenth of the training
images is held out: on these every choice is made (how ranges are found, which epoch's weights).
Finished rows are kept in `results.jsonl` of `--output`, from which the table is drawn; training
goes on after `kill -9` at the last epoch. Exits with 1 if a row loses more than its limit.
"""

import argparse
import functools
import json
import pathlib
import time

import channel_pruning
import jsonl
import keras
import numpy as np
import resnet8_training
import tensorflow as tf
from resnet8_training import SEED

import tfcompress as tfc
from tfcompress import graph, tflite
from tfcompress.data.batches import steps_per_epoch
from tfcompress.recipe.optimizer import learning_rate_at

# Points that a row may lose against float32; None: it is there to be compared with.
LIMITS = {
    "float32": None,
    "float32_trained": None,
    "int8": 0.2,
    "int16x8": 0.05,
    "int4_nearest": None,
    "int4_adaround": 2.0,
    "mixed": 0.3,
    "iterative_int4": 1.0,
    "qat_int8": 0.1,
    "qat_int4": 1.0,
    "qat_mixed": 0.3,
}
# How the rows that train do so: epochs, rate, share of the soft labels in the loss.
TRAINING = {
    "float32_trained": (3, 3e-4, 0.5),
    "iterative_int4": (7, 1e-4, 0.5),
    "qat_int8": (3, 3e-4, 0.5),
    "qat_int4": (6, 3e-4, 0.5),
    "qat_mixed": (3, 3e-4, 0.5),
}
FEWER_BYTES = 0.35
POST_TRAINING = {
    "float32": [{"scheme": "float32"}],
    "int8": [
        {"scheme": "int8", "ranges": word, "rounding": "adaround", "weight_ranges": weights}
        for word in ("min_max", "percentile", "mse", "entropy")
        for weights in ("min_max", "mse")
    ]
    + [
        {"scheme": "int8", "ranges": word, "correct_bias": corrected}
        for word in ("min_max", "mse")
        for corrected in (False, True)
    ],
    "int16x8": [{"scheme": "int16x8", "rounding": "adaround", "weight_ranges": "mse"}],
    "int4_nearest": [{"scheme": "int4", "target": "reference"}],
    "int4_adaround": [
        {
            "scheme": "int4",
            "target": "reference",
            "rounding": "adaround",
            "weight_ranges": weights,
            "ranges": word,
        }
        for weights in ("min_max", "mse")
        for word in ("percentile", "mse", "entropy")
    ],
}


def main(arguments=None):
    options = parser(__doc__, list(LIMITS), "resnet8_quantization").parse_args(arguments)
    bench = Bench(options)
    images = len(bench.images.split("test")[1][: options.limit or None])
    return report(bench.finished(options.rows), options.rows, images)


class Bench:
    """The model, the images, and a folder in which each row's result is kept."""

    def __init__(self, options):
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        options.output.mkdir(parents=True, exist_ok=True)
        self.options, self.results = options, options.output / "results.jsonl"
        self.images = channel_pruning.load_images(options.data, options.images or options.output)
        self.model = keras.models.load_model(options.baseline, compile=False)
        self.samples = self.images.samples(options.samples, seed=SEED)

    def rows(self):
        return {row["row"]: row for row in jsonl.read(self.results)}

    def finished(self, names):
        """Makes and measures the rows that are not finished; returns all that are, by name."""
        for name in names:
            if name in self.rows():
                continue
            started = time.perf_counter()
            result = {"row": name} | self.result(name)
            result["seconds"] = round(time.perf_counter() - started)
            with open(self.results, "a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
        return self.rows()

    def result(self, row):
        """Returns the figures of one row, whose file is written beside."""
        content, how = self.made(row)
        (self.options.output / f"{row}.tflite").write_bytes(content)
        types = {w.name: w.dtype for w in tfc.audit(content).weights}
        return {"bytes": len(content)} | self.measured(content) | {"types": types, "how": how}

    def made(self, row):
        """Returns the row's file and how it was made."""
        if row in POST_TRAINING:
            return self.best([(self.converted(self.model, w), w) for w in POST_TRAINING[row]])
        if row == "mixed":
            return self.mixed()
        if row == "iterative_int4":
            return self.iterative()
        if row == "float32_trained":
            model = without_weight_decay(graph.functional(self.model))
            self.train(model, row, *self.training(row), [])
            return tfc.convert(model, scheme="float32"), {"training": self.training(row)}
        return self.quantize_aware(row)

    def converted(self, model, words):
        if words.get("correct_bias"):
            model = tfc.correct_bias(model, self.samples)
        given = {key: word for key, word in words.items() if key != "correct_bias"}
        return tfc.convert(model, samples=self.samples, **given)

    def best(self, tried):
        """Returns the file whose probabilities on the validation images are nearest to float's.

        Which file is right most often is chance: a hundred images go one way, a hundred the other.
        """
        if len(tried) == 1:
            return tried[0]
        losses = []
        for content, words in tried:
            found = _at_least_half_a_code(self.predictions(content, "validation"))
            losses.append(
                float(np.mean(np.sum(self.expected * np.log(self.expected / found), axis=-1)))
            )
            print(f"  {words}: divergence {losses[-1]:.5f}", flush=True)
        return tried[int(np.argmin(losses))]

    @functools.cached_property
    def expected(self):
        """The float file's probabilities on the validation images."""
        return _at_least_half_a_code(self.predictions(self.float_file, "validation"))

    def mixed(self):
        chosen = np.random.default_rng(SEED).permutation(len(self.images.y_train))[:2000]
        limit = int((1 - FEWER_BYTES) * self.rows()["int8"]["bytes"])
        adaround = {"rounding": "adaround", "weight_ranges": "mse"}
        found = tfc.mixed_precision(
            self.model,
            self.images.prepare(self.images.x_train[chosen]),  # no labels: float's outputs count
            ({"int8": adaround}, {"int4": adaround}),
            max_bytes=limit,
            most=len(chosen),
            samples=self.samples,
            ranges="mse",
        )
        print(found, flush=True)
        found.plot().savefig(self.options.output / "mixed.png")
        words = {"scheme": "mixed", "rules": found.rules}
        tried = [words | {"ranges": ranges} for ranges in ("percentile", "mse", "entropy")]
        content, _ = self.best([(self.converted(self.model, words), words) for words in tried])
        return content, found.chosen.schemes

    def training(self, row):
        """Returns epochs, rate and the soft labels' share, as the row or the command line has
        them."""
        options = self.options
        given = options.epochs, options.rate, options.distill
        return [y if x is None else x for x, y in zip(given, TRAINING[row], strict=True)]

    def iterative(self):
        model = without_weight_decay(tfc.fold_batch_norm(self.model))
        chosen = np.random.default_rng(SEED).permutation(len(self.images.y_train))[:512]
        x, y = self.images.x_train[chosen], self.images.y_train[chosen]
        truth = resnet8_training.with_truth(self.images.prepare(x), y)
        shares = (0.5, 0.75, 0.875, 0.94, 0.97, 0.985, 1.0)
        rounding = tfc.RoundIteratively(4, shares, data=tuple(map(np.asarray, truth)))
        self.train(model, "iterative_int4", *self.training("iterative_int4"), [rounding])
        words = {"scheme": "int4", "target": "reference"}
        tried = [{**words, "ranges": word} for word in ("min_max", "mse", "percentile")]
        return self.best([(self.converted(model, w), w) for w in tried])

    def quantize_aware(self, row):
        words, rules = {"ranges": "percentile", "batch_norm": "train"}, []
        if row == "qat_int4":
            words["weight_bits"] = 4
        if row == "qat_mixed":
            schemes = self.rows()["mixed"]["how"]
            rules = [
                {"layers": path, "weight_bits": int(scheme.removeprefix("int"))}
                for path, scheme in schemes.items()
            ]
        model = without_weight_decay(
            tfc.quantize_aware(self.model, samples=self.samples, rules=rules, **words)
        )
        self.train(model, row, *self.training(row), [])
        scheme = {"qat_int8": "int8", "qat_int4": "int4", "qat_mixed": "mixed"}[row]
        given = {"scheme": scheme} | ({"target": "reference"} if scheme == "int4" else {})
        if scheme == "mixed":
            given["rules"] = [
                {"layers": path, "scheme": word} for path, word in schemes.items() if word != "int8"
            ]
        return self.converted(model, given), {**words, **given}

    def train(self, model, name, epochs, rate, distill, callbacks):
        """Trains the model in place, with the teachers' soft labels; goes on after a kill."""
        options = self.options
        steps = min(steps_per_epoch(self.images, resnet8_training.BATCH), options.steps or 10**9)
        model.compile(
            keras.optimizers.Adam(
                learning_rate_at("cosine", rate, 0.0, steps * epochs, steps // 2)
            ),
            loss=resnet8_training.soft_label_loss(distill, options.temperature),
            metrics=[resnet8_training.accuracy],
            jit_compile=False,
        )
        backup = keras.callbacks.BackupAndRestore(options.output / f"{name}.backup")
        with resnet8_training.convolutions_in_bfloat16(options.bfloat16):
            model.fit(
                resnet8_training.taught_batches(
                    self.images,
                    options.teachers or [options.baseline],
                    options.output,
                    steps=steps,
                    augment=None,
                ),
                steps_per_epoch=steps,
                epochs=epochs,
                callbacks=[*callbacks, backup, _Tell(name)],
                shuffle=False,
                verbose=0,
            )
        model.save(options.output / f"{name}.keras")

    def measured(self, content):
        """Returns the percentages of images whose class the file tells right, and how many of the
        test images it has lost and won against the float file."""
        right = {split: self.right(content, split) for split in ("validation", "test")}
        changes = self.float_right.astype(int) - right["test"]
        shares = {split: percentage(x) for split, x in right.items()}
        return shares | {"lost": int(np.sum(changes > 0)), "won": int(np.sum(changes < 0))}

    @functools.cached_property
    def float_right(self):
        return self.right(self.float_file, "test")

    @functools.cached_property
    def float_file(self):
        return tfc.convert(self.model, scheme="float32")

    def right(self, content, split):
        """Returns of which of the split's images the file tells the class."""
        y = self.images.split(split)[1][: self.options.limit or None]
        return self.predictions(content, split).argmax(-1) == y

    def predictions(self, content, split):
        x = self.images.split(split)[0][: self.options.limit or None]
        return tflite.run(content, self.images.prepare(x), threads=self.options.threads)


def percentage(right):
    return round(100 * float(np.mean(right)), 2)


def _at_least_half_a_code(probabilities):
    """Returns them as eight bits can tell them: smaller ones would all be errors, the same ones."""
    found = np.maximum(probabilities, 1 / 512)
    return found / found.sum(axis=-1, keepdims=True)


def without_weight_decay(model):
    """Takes the regularizers away, whose pull is many times that of what rounding changes."""
    for variable in model.trainable_variables:
        variable.regularizer = None
    return model


class _Tell(keras.callbacks.Callback):
    def __init__(self, name):
        super().__init__()
        self._name, self._started = name, time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        parts = ", ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items())
        seconds = time.perf_counter() - self._started
        print(f"  {self._name}, epoch {epoch + 1}: {parts} ({seconds:.0f} s)", flush=True)


def report(rows, wanted, images):
    """Prints the table and returns the exit status. "+-": the standard error of what is lost, by
    the images that are right with one file only."""
    base = rows.get("float32")
    print(f"\n{'':<16}{'bytes':>10}{'validation':>12}{'test':>9}{'lost':>7}{'+-':>7}{'limit':>7}")
    failed = False
    for name in LIMITS:
        if name not in rows:
            continue
        row, limit = rows[name], LIMITS[name]
        lost = base["test"] - row["test"] if base else float("nan")
        error = 100 * (row["lost"] + row["won"]) ** 0.5 / images
        failed |= name in wanted and limit is not None and not lost <= limit + 1e-9
        print(
            f"{name:<16}{row['bytes']:>10,}{row['validation']:>11.2f}%{row['test']:>8.2f}%"
            f"{lost:>+7.2f}{error:>7.2f}{'' if limit is None else f'{limit:.2f}':>7}"
        )
    if {"mixed", "int8"} <= rows.keys():
        fewer = 1 - rows["mixed"]["bytes"] / rows["int8"]["bytes"]
        print(f"mixed: {fewer:.1%} fewer bytes than int8 (at least {FEWER_BYTES:.0%})")
        failed |= fewer < FEWER_BYTES
    return int(failed)


def parser(description, rows, name):
    """Returns the command line of a benchmark of such rows, whose folder has the name."""
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    words = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = words.add_argument
    add("--baseline", type=pathlib.Path, required=True)
    add(
        "--teachers",
        nargs="+",
        type=pathlib.Path,
        help="models whose soft labels teach; of several the mean counts (default: the baseline)",
    )
    add("--data", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz")
    add("--images", type=pathlib.Path, help="folder in which images.npz lies or will")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs") / name)
    add("--rows", nargs="+", choices=rows, default=rows)
    add("--samples", type=int, default=500, help="training images that calibrate")
    add("--epochs", type=int, help="in place of each row's own")
    add("--rate", type=float, help="in place of each row's own learning rate")
    add("--distill", type=float, help="share of the soft labels in the loss, 0 to 1")
    add("--temperature", type=float, default=1.0)
    add("--threads", type=int, default=1)
    add("--bfloat16", action="store_true", help="train with bfloat16 convolutions (AMX)")
    add("--limit", type=int, help="images of each split, to try the benchmark out")
    add("--steps", type=int, help="training steps of an epoch, to try the benchmark out")
    return words


if __name__ == "__main__":
    raise SystemExit(main())
