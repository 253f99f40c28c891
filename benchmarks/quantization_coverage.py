"""Trains every layer and every architecture of Keras quantization-aware and runs its int8 file.

    python benchmarks/quantization_coverage.py [--only layers|applications|REGEX] [--no-tfmot]

A row is a model with lively random weights: a layer, a usual pair, or an architecture of
keras.applications with a small input. It passes if nothing in it stays float, it trains a step, is
saved and loaded with equal outputs, its int8 file is full integer, and on 48 samples 99.9 % of the
file's outputs lie within one step of what the Keras model computes.

"equal", "within 1", "largest": shares of outputs, and the largest difference in steps; "inner
equal": share of equal codes in all rounded tensors, each computed of the file's own codes;
"worst": the least share within one step of one of them; "XNNPACK": share of the file's operators
that it takes. "tfmot": whether `tfmot.quantization.keras.quantize_model` builds the same, in
tf_keras.

Rows are kept in OUTPUT/*.jsonl; the command continues where it was stopped, and tries again what
did not pass (--fresh: everything). Exit status 1 if a row fails that is not in INEXPRESSIBLE.
"""

import argparse
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PEER = "--peer" in sys.argv
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if PEER:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"

import jsonl  # noqa: E402 - tf_keras has to be chosen before
import numpy as np  # noqa: E402
from quantization_cases import LAYERS, TOKENS  # noqa: E402

SAMPLES, LIMIT = 48, 0.999
SIZES = {"Xception": 96, "InceptionV3": 96, "InceptionResNetV2": 96}  # others: 64
# What no int8 operator of TFLite computes.
INEXPRESSIBLE = {
    "Conv3D": "CONV_3D is float only",
    "Conv3DTranspose": "CONV_3D_TRANSPOSE is float only",
    "Activation sparsemax": "TOPK_V2 and CUMSUM are float only",
}


def main(arguments=None):
    options = parse(arguments)
    if options.rows:
        work(options.rows, peer_row if PEER else row)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = chosen(options.only)
    rows = collect(wanted, options.output / "tfcompress.jsonl", [], options.fresh)
    peers = {}
    if options.tfmot:
        peers = collect(wanted, options.output / "tfmot.jsonl", ["--peer"], options.fresh)
    print(header())
    for name in wanted:
        print(line(rows[name], peers.get(name, {})))
    possible = [name for name in wanted if name not in INEXPRESSIBLE]
    passed = sum(rows[name]["passed"] for name in possible)
    print(f"{passed} of {len(possible)} pass ({passed / max(len(possible), 1):.1%}); ", end="")
    print(f"{len(wanted) - len(possible)} more have no integer operator in TFLite")
    if peers:
        print(f"tfmot builds {sum(peers[name]['passed'] for name in wanted)} of {len(wanted)}")
    return int(passed < len(possible))


def applications():
    import keras

    return [name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)]


def chosen(only):
    if only == "layers":
        return list(LAYERS)
    if only == "applications":
        return applications()
    names = list(LAYERS) + applications()
    return [name for name in names if re.fullmatch(only or ".*", name)]


def collect(wanted, file, flags, fresh):
    """Returns the rows by name; those that a file does not hold as passed are made anew."""
    if fresh:
        file.unlink(missing_ok=True)
    rows = {r["name"]: r for r in jsonl.read(file)}
    todo = [name for name in wanted if not rows.get(name, {}).get("passed") or name not in rows]
    if flags:  # what tfmot refuses it refuses again
        todo = [name for name in wanted if name not in rows]
    layers = [name for name in todo if name in LAYERS]
    batches = [layers] + [[name] for name in todo if name not in LAYERS]
    with file.open("a") as stream:
        for batch in batches:
            for result in in_a_process(batch, flags):
                rows[result["name"]] = result
                stream.write(json.dumps(result) + "\n")
                stream.flush()
                print(f"{result['name']}: {result.get('failed') or 'passed'}", file=sys.stderr)
    return rows


def in_a_process(names, flags):
    """Yields a row for each name; a process that dies costs the row that it was at."""
    while names:
        command = [sys.executable, __file__, *flags, "--rows", *names]
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            for text in worker.stdout:
                if text.startswith('{"name": '):
                    names = names[1:]
                    yield json.loads(text)
            status = worker.wait()
            errors.seek(0)
            lines = [y for y in errors.read().splitlines() if not re.match(r"[IW]\d{4} |WARN", y)]
            reason = (lines or [""])[-1]
        if names:
            failed = f"the process ended with {status}: {reason}"
            yield {"name": names[0], "passed": False, "failed": failed}
            names = names[1:]


def work(names, make):
    for name in names:
        try:
            result = make(name)
        except Exception as error:  # whatever it is, it is this row's result
            text = str(error).strip().splitlines() or [""]
            result = {"passed": False, "failed": f"{type(error).__name__}: {text[0][:200]}"}
        print(json.dumps({"name": name} | result), flush=True)


def row(name):
    """Returns one line of the table; see the module's docstring."""
    import keras
    from agreement import differences_at_sources

    import tfcompress as tfc
    from tfcompress import tflite

    model, x = build(keras, name)
    quantized = tfc.quantize_aware(model, samples=x)
    reasons = tfc.wrappers.skipped(quantized)
    if reasons:
        return {"passed": False, "failed": "; ".join(dict.fromkeys(reasons.values()))}
    # XLA would take minutes to compile what runs for a second.
    model.jit_compile = quantized.jit_compile = False
    float_outputs = predicted(model, x)
    outputs = predicted(quantized, x)
    drift = np.sqrt(np.mean((outputs - float_outputs) ** 2) / np.mean(float_outputs**2))
    finite = trains(keras, quantized, x, float_outputs)
    outputs = predicted(quantized, x)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        quantized.save(path)
        loaded = keras.models.load_model(path)
        loaded.jit_compile = False
        reloaded = np.array_equal(predicted(loaded, x), outputs)
    content = tflite.convert(quantized)
    audit = tflite.audit(content)
    step = audit.outputs[0]["scale"] or 1.0
    difference = np.abs(tflite.run(content, x) - outputs) / step
    result = {
        "drift": float(drift),
        "reloaded": bool(reloaded),
        "trains": finite,
        "full integer": audit.full_integer,
        "equal": float(np.mean(difference < 0.01)),
        "within 1": float(np.mean(difference < 1.01)),
        "largest": float(difference.max()),
        "operators": sum(audit.operators.values()),
        "XNNPACK": len(audit.delegated_operators) / max(sum(audit.operators.values()), 1),
    }
    if name not in LAYERS:
        inner = differences_at_sources(quantized, x).values()
        result["inner equal"] = sum(np.sum(d == 0) for d in inner) / sum(d.size for d in inner)
        result["worst"] = float(min(np.mean(d <= 1) for d in inner))
    checks = {
        "trained to NaN": finite,
        "computes otherwise when loaded": result["reloaded"],
        f"float operators {sorted(set(audit.float_operators))}": audit.full_integer,
        f"{result['within 1']:.2%} within 1 step": result["within 1"] >= LIMIT,
    }
    failed = [reason for reason, good in checks.items() if not good]
    return result | {"passed": not failed, "failed": "; ".join(failed)}


def predicted(model, x):
    """Predicts in one batch: Keras would trace the graph again for a last one of another size."""
    return model.predict(x, batch_size=SAMPLES, verbose=0)


def build(keras, name):
    """Returns a model whose weights are not as they start, and samples for it."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    if name in LAYERS:
        shapes, make = LAYERS[name]
        inputs = [
            keras.Input((10,), dtype="int32") if shape == TOKENS else keras.Input(shape)
            for shape in shapes
        ]
        samples = [
            random.integers(0, 20, (SAMPLES, 10)).astype("int32")
            if shape == TOKENS
            else random.normal(size=(SAMPLES, *shape)).astype("float32")
            for shape in shapes
        ]
        model = keras.Model(inputs, make(keras.layers, *inputs))
        x = samples[0] if len(samples) == 1 else samples
    else:
        size = SIZES.get(name, 64)
        make = getattr(keras.applications, name)
        model = make(weights=None, input_shape=(size, size, 3), classifier_activation=None)
        x = random.uniform(0, 255, (SAMPLES, size, size, 3)).astype(np.float32)
    enliven(model, random)
    if name not in LAYERS:
        measure(keras, model, x)
    return model, x


def enliven(model, random):
    """Moves biases, BatchNorms and scales away from the values at which they start."""
    for variable in model.weights:
        name = variable.name.split("/")[-1].split(":")[0]
        if name in ("bias", "beta", "moving_mean"):
            variable.assign(random.normal(0, 0.3, variable.shape))
        elif name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))


def measure(keras, model, x):
    """Gives every BatchNorm the statistics of the samples."""
    norms = [y for y in model.layers if isinstance(y, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(x[:16], training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def trains(keras, model, x, targets):
    """Trains a small step; returns whether loss and weights stay finite.

    It moves the weights by 1 in all, at most: through the random weights of a deep network the
    gradients reach 1e10, and a layer that grows so much fits no range that was found before.
    """
    optimizer = keras.optimizers.SGD(1e-4, global_clipnorm=1e4)
    model.compile(optimizer, loss="mse", jit_compile=False)
    loss = model.train_on_batch(x, targets)
    return bool(np.isfinite(loss) and all(np.isfinite(w).all() for w in model.get_weights()))


def peer_row(name):
    """Returns whether tfmot quantizes the same model and it trains a step."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    model, x = build(tf_keras, name)
    quantized = tfmot.quantization.keras.quantize_model(model)
    finite = trains(tf_keras, quantized, x, predicted(model, x))
    return {"passed": finite, "failed": "" if finite else "trained to NaN"}


def header():
    return (
        f"{'model':40} {'drift':>6} {'equal':>8} {'within 1':>8} {'largest':>7} "
        f"{'inner equal':>12} {'worst':>8} {'ops':>5} {'XNNPACK':>7} {'passed':>6} tfmot"
    )


def line(r, peer):
    def shown(key, form):
        return format(r[key], form) if key in r else "-"

    tfmot = ("builds" if peer["passed"] else f"fails: {peer['failed'][:60]}") if peer else "-"
    text = (
        f"{r['name']:40} {shown('drift', '.1%'):>6} {shown('equal', '.2%'):>8} "
        f"{shown('within 1', '.2%'):>8} {shown('largest', '.0f'):>7} "
        f"{shown('inner equal', '.6%'):>12} {shown('worst', '.2%'):>8} "
        f"{shown('operators', 'd'):>5} {shown('XNNPACK', '.0%'):>7} "
        f"{'yes' if r['passed'] else 'no':>6} {tfmot}"
    )
    return text if r["passed"] else f"{text}\n    {INEXPRESSIBLE.get(r['name'], r['failed'])}"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="layers, applications, or what a whole name matches")
    parser.add_argument("--output", default="runs/quantization_coverage", type=pathlib.Path)
    parser.add_argument("--fresh", action="store_true", help="forget finished rows")
    parser.add_argument("--no-tfmot", dest="tfmot", action="store_false")
    parser.add_argument("--rows", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
