"""Removes half of the channels of every architecture of keras.applications.

    python benchmarks/channel_coverage.py [--small] [--only REGEX] [--output runs/channel_coverage]

Each architecture (random weights, a small input, BatchNorm statistics measured on noise) runs in a
process of its own: its channel groups are found, half of the channels of every group are removed,
and the smaller model is run, saved, reloaded (equal outputs), exported to a float32 .tflite file
and run there. It passes if every output agrees. "silenced": another model, that loses channels of
exact groups only, against the original in which nothing reads these channels.
The last row is a synthetic network of 1,000 layers: finding its groups must take under 5 seconds.

Rows are kept in OUTPUT/rows.jsonl; the command continues where it was stopped, and tries again what
did not pass (--fresh: everything). Exit status 1 if a row fails. All 40 take over an hour on 2
cores.
"""

import argparse
import collections
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import jsonl
import keras
import numpy as np

from tfcompress import structured, tflite
from tfcompress.weights import kernels

SYNTHETIC = "1,000 layers"
SECONDS = 5.0  # for the groups of the synthetic network
SIZES = {"Xception": 96, "InceptionV3": 96, "InceptionResNetV2": 96}  # others: 64
SMALL = "MobileNet|MobileNetV2|ResNet50|DenseNet121|EfficientNetB0|VGG16|ConvNeXtTiny"
# Relative to the largest output. A file sums in another order; so does a model with fewer channels.
LIMITS = {"silenced": 1e-3, "reloaded": 0.0, "tflite": 1e-3}
COLUMNS = {
    "name": "{:18}",
    "input": "{:>5}",
    "parameters": "{:>11,}",
    "after": "{:>11,}",
    "groups": "{:>6}",
    "free": "{:>6.1%}",
    "graph_s": "{:>7.2f}",
    "removal_s": "{:>9.2f}",
    "silenced": "{:>8.0e}",
    "tflite": "{:>8.0e}",
    "passed": "{!s:>6}",
    "pinned": "{}",
}


def main(arguments=None):
    options = parse(arguments)
    if options.one:
        print(json.dumps(row(options.one)))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "rows.jsonl"
    if options.fresh:
        file.unlink(missing_ok=True)
    rows = {r["name"]: r for r in jsonl.read(file) if r["passed"]}
    wanted = [name for name in names() if re.fullmatch(options.only or ".*", name)]
    print(" ".join(blank(form).format(column) for column, form in COLUMNS.items()), flush=True)
    for name in wanted:
        if name not in rows:
            rows[name] = in_a_process(name)
            with file.open("a") as stream:
                stream.write(json.dumps(rows[name]) + "\n")
        print(line(rows[name]), flush=True)
    passed = sum(rows[name]["passed"] for name in wanted)
    print(f"{passed} of {len(wanted)} pass")
    return int(passed < len(wanted))


def names():
    """Returns every architecture that this Keras has, and the synthetic network."""
    functions = inspect.getmembers(keras.applications, inspect.isfunction)
    return [name for name, _ in functions] + [SYNTHETIC]


def in_a_process(name):
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return {"name": name, "passed": False, "failed": reason}


def line(r):
    if "failed" in r:
        return f"{r['name']:18} failed: {r['failed']}"
    return " ".join(
        blank(form).format("-") if r.get(column) is None else form.format(r[column])
        for column, form in COLUMNS.items()
    )


def blank(form):
    """Returns the form for a text of the same width."""
    return re.sub(r"[,.][^}]*|!s", "", form)


def row(name):
    """Returns one line of the table; see COLUMNS."""
    if name == SYNTHETIC:
        return synthetic_row()
    model, x = build(name)
    started = time.perf_counter()
    groups = structured.channel_groups(model)
    found = time.perf_counter()
    kept = halves(groups)
    cut = time.perf_counter()
    small = structured.keep_channels(groups, kept)
    removed = time.perf_counter()
    errors = check(model, groups, kept, small, x)
    return {
        "name": name,
        "input": x.shape[1],
        "parameters": model.count_params(),
        "after": small.count_params(),
        "groups": len(groups),
        "free": free_share(model, groups),
        "graph_s": found - started,
        "removal_s": removed - cut,
        **errors,
        "passed": bool(kept) and all(e is None or e <= LIMITS[key] for key, e in errors.items()),
        "pinned": pinned(model, groups),
    }


def build(name):
    """Returns an architecture with lively random weights, and noise images (2, size, size, 3)."""
    keras.utils.set_random_seed(0)
    size = SIZES.get(name, 64)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    random = np.random.default_rng(0)
    x = random.uniform(0, 255, (8, size, size, 3)).astype(np.float32)
    norms = [y for y in model.layers if isinstance(y, keras.layers.BatchNormalization)]
    for norm in norms:
        if norm.scale:
            norm.gamma.assign(random.uniform(0.5, 1.5, norm.gamma.shape))
        if norm.center:
            norm.beta.assign(random.normal(0, 0.3, norm.beta.shape))
    for layer in model.layers:
        if type(layer).__name__ == "LayerScale":  # starts at 1e-6, which would hide everything
            layer.gamma.assign(random.uniform(0.1, 0.5, layer.gamma.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # one batch says it all
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model, x[:2]


def halves(groups):
    """Returns for each group a random half of its channels, the larger one if they are odd."""
    random = np.random.default_rng(1)
    return {
        group.name: np.sort(random.permutation(group.size)[: (group.size + 1) // 2])
        for group in groups
        if group.size > 1
    }


def check(model, groups, kept, small, x):
    """Returns the largest relative errors of the small model, None where nothing can be said."""
    expected = small.predict(x, verbose=0)
    inexact = {group.name for group in groups if group.inexact}
    exactly = {name: chosen for name, chosen in kept.items() if name not in inexact}
    exact = structured.keep_channels(groups, exactly) if len(exactly) < len(kept) else small
    silent = silenced_outputs(model, groups, exactly, x)
    errors = {"silenced": distance(exact.predict(x, verbose=0), silent)}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.keras"
        small.save(path)
        reloaded = keras.models.load_model(path)
        errors["reloaded"] = distance(reloaded.predict(x, verbose=0), expected)
    content = tflite.convert(small, scheme="float32")
    errors["tflite"] = distance(tflite.run(content, x), expected)
    return errors


def silenced_outputs(model, groups, kept, x):
    """Returns what the original computes when nothing reads the removed channels."""
    for group in groups:
        goes = np.ones(group.size, bool)
        goes[kept.get(group.name, slice(None))] = False  # groups that are not named stay whole
        for member in group.members:
            if member.role == "in":
                weights = np.array(member.variable)
                index = [slice(None)] * weights.ndim
                index[member.axis] = member.indices[goes[member.channels]]
                weights[tuple(index)] = 0.0
                member.variable.assign(weights)
    return model.predict(x, verbose=0)


def distance(found, expected):
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def free_share(model, groups):
    """Returns the share of the output channels of all kernels that are in a group."""
    whole = [k for k in kernels(model) if len(k.output_axes) == 1]  # depthwise ones make none
    every = sum(k.variable.shape[k.output_axes[0]] for k in whole)
    mine = {id(k.variable) for k in whole}
    members = [m for group in groups for m in group.members]
    return (
        sum(len(m.indices) for m in members if m.role == "out" and id(m.variable) in mine) / every
    )


def pinned(model, groups):
    """Returns what holds channels, and why: 'Dense: it is an output of the model'."""
    kinds = {y.name: type(y).__name__ for y in model._flatten_layers(include_self=False)}
    counts = collections.Counter()
    for path, reason in groups.pinned.items():
        general = re.sub(" '[^']*'", "", reason)
        counts[f"{kinds.get(path.split('/')[-1], path)}: {general}"] += 1
    return "; ".join(f"{n}x {what}" if n > 1 else what for what, n in counts.items()) or "nothing"


def synthetic_row():
    """Times the groups of 200 residual blocks of five layers."""
    inputs = keras.Input((8, 8, 16))
    x = inputs
    for _ in range(200):
        y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
        y = keras.layers.BatchNormalization()(y)
        y = keras.layers.ReLU()(y)
        y = keras.layers.Conv2D(16, 1)(y)
        x = keras.layers.Add()([x, y])
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    started = time.perf_counter()
    groups = structured.channel_groups(model)
    seconds = time.perf_counter() - started
    return {
        "name": SYNTHETIC,
        "input": 8,
        "parameters": model.count_params(),
        "groups": len(groups),
        "graph_s": seconds,
        "passed": len(groups) == 200 and seconds < SECONDS,
        "pinned": pinned(model, groups),
    }


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="architectures whose whole name matches this expression")
    parser.add_argument("--small", dest="only", action="store_const", const=f"{SMALL}|{SYNTHETIC}")
    parser.add_argument("--output", default="runs/channel_coverage", type=pathlib.Path)
    parser.add_argument("--fresh", action="store_true", help="forget finished rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
