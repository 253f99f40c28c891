"""Accuracy for compute: channels of ResNet-8 removed, fine-tuned, on CIFAR-10 as JPEG files.

    python benchmarks/channel_pruning.py --model mlperf_tiny_resnet8.h5 --data cifar10-jpeg.tar.gz

1. `baseline`: the trained model, fine-tuned on the JPEG training images until it no longer gains.
2. `headline`: the baseline with 2.1x fewer multiply-accumulates, fine-tuned, for `--score`; with
   `--distill` the soft labels of a teacher teach it as well: the baseline's, or with `--teacher 3`
   those of a ResNet-8 three times as wide, trained before on the same images; of several
   teachers the mean counts. With `--mixup` the images are mixed in pairs. Beside it `control`: the
   baseline itself, trained on in exactly the same way, so that what is lost is lost by the removal
   alone. `--scope` and `--per` say how channels of different groups are compared
   (`tfc.prune_channels`); `--widths` says itself how many of each stay. `--drop` names layers (a
   regular expression) that go whole before (`tfc.drop_layers`).
3. `curve`: each of `--scores` at each of `--ratios`, fine-tuned for `--epochs`; and the baseline
   itself (`none`), trained on in the same way.

Every point is pruned in `--rounds` steps of equal ratio, of which all but the last are
fine-tuned for `--round-epochs`. MACs are read from the float `.tflite` file. A tenth of the
training images is held out: on these all choices were made (the published model has seen them,
uncompressed, so that they flatter the baseline a little). Each finished point sees the 10,000 test
images once. Training goes on after `kill -9` at the last epoch; finished points are kept
in `results.jsonl`, from which the table and `curve.png` are drawn. Exits with 1 if the headline
loses more than 0.6 points of the baseline.

`--bfloat16` trains with bfloat16 convolutions where the processor has them (AMX: 1.7x faster);
accuracies are always those of the float32 model. On one such core, left alone, an epoch takes 20
to 30 seconds.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time

import architectures
import channel_pruning_report
import jsonl
import keras
import numpy as np
import resnet8_int8
import resnet8_training
import tensorflow as tf
from resnet8_training import AUGMENT, BATCH, SEED

import tfcompress as tfc
from tfcompress.data.batches import evaluation_batches, steps_per_epoch, training_batches
from tfcompress.data.images import read_folder
from tfcompress.pipeline.fit import Resume
from tfcompress.pipeline.state import State
from tfcompress.recipe.optimizer import learning_rate_at

SCORES = ("magnitude", "gradient", "bn_scale", "geometric_median", "hessian", "random")
RATIOS = (1.3, 1.6, 2.1, 3.0, 4.0)
HEADLINE = 2.1
MOST_POINTS_LOST = 0.6
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    # Decoupled: of the learning rate's size, as 5e-4 in the loss is with momentum.
    "sgd": lambda rate: keras.optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=5e-3),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of the result: how a model is pruned and fine-tuned.

    ratio: MACs of the baseline / MACs to keep. epochs: of each of `cycles`, in which the learning
    rate falls to zero. temperature: of the teacher's soft labels, which take the place of the true
    ones in a share `distill` of the loss. mixup: whether each image is mixed with another of its
    batch, which needs soft labels alone. teacher: how many times as wide as ResNet-8 the models
    are that they come from, 1 for the baseline. widths: the channels that stay, of each group in
    the order of `tfc.channel_groups`; none: as many as `ratio` asks for. drop: a regular
    expression that names the layers that go before.
    """

    stage: str
    score: str = "none"
    scope: str = "global"
    per: str | None = None
    ratio: float = 1.0
    round_to: int = 1
    rounds: int = 1
    round_epochs: int = 0
    epochs: int = 1
    cycles: int = 1
    learning_rate: float = 1e-3
    distill: float = 0.0
    temperature: float = 1.0
    teacher: tuple[int, ...] = (1,)
    mixup: bool = False
    optimizer: str = "adam"
    widths: tuple[int, ...] = ()
    drop: str = ""

    @property
    def name(self):
        """A word for files, its own for each point."""
        changed = {k: v for k, v in vars(self).items() if v != getattr(Point, k, None)}
        digest = hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]
        return f"{self.stage}-{self.score}-{self.ratio:g}x-{digest}"


def main(arguments=None):
    options = _parse(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    images = load_images(options.data, options.output)
    work = Work(images, options.output, options.bfloat16)
    baseline = Point("baseline", epochs=options.baseline_epochs, learning_rate=3e-3)
    if "baseline" in options.stages:
        work.finish(baseline, tfc.models.load(options.model))
    teachers = {1: baseline}
    for times in sorted(set(options.teacher) - {1}):
        teachers[times] = Point(
            "teacher",
            epochs=options.teacher_epochs,
            learning_rate=0.1,
            teacher=(times,),
            optimizer="sgd",
        )
        work.finish(teachers[times], wide(times))
    for point in points(options):
        names = [teachers[times].name for times in point.teacher] if point.distill else []
        work.finish(point, work.model(baseline), names)
    least = channel_pruning_report.write(options.output, baseline.name)
    return int(least is not None and least > MOST_POINTS_LOST)


def wide(times):
    """Returns a ResNet-8 with so many times the channels, untrained; probabilities."""
    channels = tuple(times * size for size in (16, 32, 64))
    logits = architectures.resnet8(keras, SEED, channels, channels)
    return keras.Model(logits.inputs, keras.layers.Softmax()(logits.output))


def points(options):
    """Yields the points of the stages that were asked for, the headline first."""
    long = {
        "epochs": options.headline_epochs,
        "cycles": options.cycles,
        "learning_rate": options.learning_rate,
        "optimizer": options.optimizer,
    }
    if options.distill:
        long |= {
            "distill": options.distill,
            "temperature": options.temperature,
            "teacher": tuple(options.teacher),
            "mixup": options.mixup,
        }
    removal = {
        "scope": options.scope,
        "per": options.per,
        "round_to": options.round_to,
        "rounds": options.rounds,
        "round_epochs": options.round_epochs,
        "widths": tuple(options.widths),
        "drop": options.drop,
    }
    if "headline" in options.stages:
        yield Point("headline", options.score, ratio=HEADLINE, **removal, **long)
    if "control" in options.stages:
        yield Point("control", **long)
    if "curve" in options.stages:
        short = {"epochs": options.epochs, "learning_rate": options.learning_rate}
        yield Point("curve", **short)
        for ratio in sorted(options.ratios, key=lambda ratio: abs(ratio - HEADLINE)):
            for score in options.scores:
                yield Point("curve", score, ratio=ratio, **short)


class Work:
    """Images, and a folder in which each point's models and results are kept."""

    def __init__(self, images, folder, bfloat16):
        self.images = images
        self.bfloat16 = bfloat16
        self.folder = folder
        self.results = folder / "results.jsonl"

    def model(self, point):
        """Returns a finished point's model."""
        return keras.models.load_model(self.folder / f"{point.name}.keras", compile=False)

    def finish(self, point, model, teachers=()):
        """Prunes, fine-tunes and measures, going on from what is on disk."""
        if any(row["name"] == point.name for row in jsonl.read(self.results)):
            return
        started = time.perf_counter()
        print(f"{point.name}: {point}", flush=True)
        first = dataclasses.replace(point, cycles=1)  # more cycles go on from where fewer ended
        keep = 1 / point.ratio
        if point.drop:
            whole = macs(model)
            model = without_layers(model, self.calibration(), point.drop)
            keep *= whole / macs(model)
        keep **= 1 / point.rounds
        for number in range(point.rounds if point.ratio > 1 else 0):
            last = number == point.rounds - 1
            # Each round keeps a share of the MACs of the model that it is given.
            model = self.pruned(model, point, keep, f"{first.name}-round{number}")
            if not last:
                name = f"{first.name}-tuned{number}"
                self.train(model, point, point.round_epochs, name, teachers)
        before = self.accuracy(model, "validation")
        for cycle in range(point.cycles):
            name = f"{first.name}-cycle{cycle}"
            self.train(model, first, point.epochs, name, teachers, seed=SEED + cycle)
        row = dataclasses.asdict(point) | {
            "name": point.name,
            "macs": macs(model),
            "parameters": model.count_params(),
            "pruned": before,
            "validation": self.accuracy(model, "validation"),
            "test": self.accuracy(model, "test"),
            "seconds": round(time.perf_counter() - started),
        }
        model.save(self.folder / f"{point.name}.keras")
        with open(self.results, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def calibration(self):
        chosen = np.random.default_rng(SEED).permutation(len(self.images.y_train))[:2048]
        return self.images.prepare(self.images.x_train[chosen]), self.images.y_train[chosen]

    def pruned(self, model, point, keep, name):
        """Returns the smaller model, from disk if it is there: a kill must not score it anew."""
        path = self.folder / f"{name}.keras"
        if not path.exists():
            small = tfc.prune_channels(
                model,
                keep_macs=keep,
                score=score_of(point),
                data=self.calibration(),
                loss="sparse_categorical_crossentropy",
                scope=point.scope,
                per=point.per,
                round_to=point.round_to,
                rules=rules_of(point, model),
            )
            small.save(path.with_suffix(".part.keras"))
            path.with_suffix(".part.keras").rename(path)
        return keras.models.load_model(path, compile=False)

    def train(self, model, point, epochs, name, teachers, seed=SEED):
        """Trains the model's weights in place, with cosine rate, shifts and flips."""
        trained = resnet8_training.to_train(model)
        steps = steps_per_epoch(self.images, BATCH)
        rate = learning_rate_at("cosine", point.learning_rate, 0.0, steps * epochs, steps // 2)
        trained.compile(
            OPTIMIZERS[point.optimizer](rate),
            loss=resnet8_training.soft_label_loss(point.distill, point.temperature),
            metrics=[resnet8_training.accuracy],
            jit_compile=False,  # XLA's convolutions are half as fast on processors
        )
        trained.optimizer.build(trained.trainable_variables)
        path = self.folder / f"{name}.npz"
        fingerprint = f"{point} {epochs} {[w.shape for w in model.weights]}"
        state = State.read(path, fingerprint) or State(fingerprint, 0, {}, 0.0, [], [])
        resume = Resume(state, path, name, epochs, lambda line: print(line, flush=True))
        if state.epoch < epochs:
            validation = evaluation_batches(self.images, "validation")
            with resnet8_training.convolutions_in_bfloat16(self.bfloat16):
                trained.fit(
                    self.batches(point, teachers, epochs, state.epoch, seed),
                    steps_per_epoch=steps,
                    epochs=epochs,
                    initial_epoch=state.epoch,
                    validation_data=validation.map(resnet8_training.with_truth),
                    callbacks=[resume],
                    shuffle=False,
                    verbose=0,
                )
        else:
            resume.restore(trained)
        resnet8_training.take_back(model, trained)

    def batches(self, point, teachers, epochs, first, seed):
        """Returns the batches from epoch `first` on: images, and classes beside soft labels."""
        if teachers:
            paths = [self.folder / f"{name}.keras" for name in teachers]
            return resnet8_training.taught_batches(
                self.images, paths, self.folder, first, seed, point.mixup
            )
        return training_batches(self.images, BATCH, epochs, first, seed, AUGMENT).map(
            resnet8_training.with_truth
        )

    def accuracy(self, model, split):
        x, y = self.images.split(split)
        found = model.predict(self.images.prepare(x), batch_size=500, verbose=0).argmax(-1)
        return 100 * float(np.mean(found == y))


def score_of(point):
    """Returns the score to ask for: costs are weighed against changes of the loss, as they are."""
    raw = point.per and point.score in ("gradient", "hessian")
    return {point.score: {"normalise": False}} if raw else point.score


def without_layers(model, data, names):
    """Returns the model without the layers of these names, and what only they need."""
    return tfc.drop_layers(
        model,
        data,
        max_loss_increase=None,
        loss="sparse_categorical_crossentropy",
        rules=[{"layers": names, "drop": True}],
    )


def macs(model):
    return tfc.audit(tfc.convert(model, scheme="float32")).macs


def rules_of(point, model):
    """Returns the rules that hold each group at its width, if the point says them."""
    groups = tfc.channel_groups(model)
    return [
        {"layers": group.name, "keep_at_least": width / group.size}
        for group, width in zip(groups, point.widths, strict=bool(point.widths))
    ]


def load_images(source, folder):
    """Returns the images, decoded once into `images.npz`."""
    cache = folder / "images.npz"
    if not cache.exists():
        with tempfile.TemporaryDirectory() as unpacked:
            raw = read_folder(str(resnet8_int8.unpacked(source, unpacked)), None)
        part = cache.with_suffix(".part.npz")
        np.savez(part, **{key: raw[key] for key in raw if key[:2] in ("x_", "y_")})
        part.rename(cache)
    return tfc.data.load(f"npz:{cache}", validation=0.1, seed=SEED, standardize="none")


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    add("--data", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/channel_pruning"))
    stages = ("baseline", "headline", "control", "curve")
    add("--stages", nargs="+", choices=(*stages, "report"), default=stages)
    add("--scores", nargs="+", choices=SCORES, default=SCORES)
    add("--ratios", nargs="+", type=float, default=RATIOS)
    add("--epochs", type=int, default=3, help="of a point of the curve")
    add("--baseline-epochs", type=int, default=24)
    add("--headline-epochs", type=int, default=30)
    add("--cycles", type=int, default=1, help="of the headline: the learning rate starts anew")
    add("--score", choices=SCORES, default="gradient", help="of the headline")
    add(
        "--scope", choices=("global", "layer", "measured"), default="global", help="of the headline"
    )
    add("--per", choices=("macs", "parameters", "latency"), help="of the headline")
    add("--round-to", type=int, default=1, help="of the headline: channels in multiples of this")
    add("--rounds", type=int, default=1, help="of the headline")
    add("--round-epochs", type=int, default=5)
    add("--learning-rate", type=float, default=2e-3)
    add("--distill", type=float, default=0.0, help="share of the soft labels in the loss, 0 to 1")
    add("--temperature", type=float, default=3.0)
    add("--mixup", action="store_true", help="images mixed in pairs; with --distill 1")
    add(
        "--teacher",
        nargs="+",
        type=int,
        default=(1,),
        help="times ResNet-8's channels; 1: the baseline itself; of several the mean counts",
    )
    add("--teacher-epochs", type=int, default=16)
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="of headline and control")
    add("--drop", default="", help="layers of the headline's model that go whole, by name")
    add("--widths", nargs="+", type=int, default=(), help="of the headline's groups, in order")
    add("--threads", type=int, default=1)
    add("--bfloat16", action="store_true")
    options = parser.parse_args(arguments)
    if options.mixup and options.distill < 1:
        parser.error("--mixup leaves no true labels: it needs --distill 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
