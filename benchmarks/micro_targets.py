"""Do the files run on microcontrollers? TFLite Micro, bit for bit, and Arm's Vela.

    python benchmarks/micro_targets.py --environment micro-environment

The digits CNN, LeNet-5, ResNet-8, a small MobileNetV2 and a small transformer, all with random
weights, as int8 files of both backends (the TFLite converter's; chosen ranges and AdaRound), and
the digits CNN and ResNet-8 as int4 for TFLite Micro (`target="tflm"`). Each runs in TFLite Micro's
interpreter on 16 inputs, which must give the output codes of LiteRT's reference kernels (not those
of its optimised ones, which round some sums otherwise), and goes through Arm's Vela compiler for
the Ethos-U55; that says how many operators the NPU takes.

One operator is not the same in both: FULLY_CONNECTED, whose sums LiteRT rounds once and TFLite
Micro twice. A file that puts out other codes is therefore looked at operator by operator. It passes
if each one that gets equal codes gives equal codes, but for FULLY_CONNECTED, which in TFLite Micro
must give the codes that rounding twice gives.

TFLite Micro (a pre-release) and Vela need versions of their own: they are installed in a virtual
environment in the folder `--environment`, which is made if it is missing.

Exits with 1 if a file fails in TFLite Micro or gives other codes, or if Vela refuses it. An int4
file is not for Vela.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import venv

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import tfcompress as tfc
from tfcompress import models, tflite
from tfcompress.tflite import flatbuffer as fb

PACKAGES = ("tflite-micro", "ethos-u-vela")
INPUTS = 16
TIES = "equal but for FULLY_CONNECTED"
# Runs in the other environment: a file, its inputs; the output codes go to a third file.
RUNNER = """
import sys, numpy as np
from tflite_micro import runtime
content, inputs, outputs, count = sys.argv[1:]
engine = runtime.Interpreter.from_bytes(open(content, "rb").read())
found = [[] for _ in range(int(count))]
for row in np.load(inputs):
    engine.set_input(row[np.newaxis], 0)
    engine.invoke()
    for number, rows in enumerate(found):
        rows.append(np.array(engine.get_output(number)))
np.savez(outputs, *map(np.concatenate, found))
"""


def main(arguments=None):
    options = _parse(arguments)
    binaries = environment(options.environment)
    keras.utils.set_random_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks().items():
            x = np.random.default_rng(0).uniform(0, 1, (64, *model.input_shape[1:]))
            x = x.astype(np.float32)
            settle(model, x)
            for kind, content in files(name, model, x).items():
                rows.append(row(name, kind, content, x[:INPUTS], binaries, pathlib.Path(folder)))
                print(show(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    passed = ("equal", TIES)
    return int(any(e["tflm"] not in passed or e["vela"] == "refused" for e in rows))


def environment(folder):
    """Returns where the environment's commands are, after making it."""
    binaries = folder / "bin"
    if not (binaries / "vela").exists():
        print(f"installing {', '.join(PACKAGES)} in {folder}", flush=True)
        venv.create(folder, with_pip=True)
        install = [binaries / "python", "-m", "pip", "install", "-q", "--pre", *PACKAGES]
        subprocess.run(install, check=True)
    return binaries


def networks():
    return {
        "digits_cnn": models.load("digits_cnn"),
        "lenet5": models.load("lenet5"),
        "resnet8": models.load("resnet8"),
        "mobilenet_v2": keras.applications.MobileNetV2(
            input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=10
        ),
        "transformer": transformer(),
    }


def settle(model, x):
    """Gives BatchNorm the moments of the inputs: otherwise activations vanish layer by layer."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)


def transformer():
    inputs = keras.Input((16, 24))
    attended = keras.layers.MultiHeadAttention(2, 12)(inputs, inputs)
    x = keras.layers.LayerNormalization()(attended + inputs)
    y = keras.layers.Dense(24)(keras.layers.Dense(48, activation="relu")(x))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x + y))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))


def files(name, model, x):
    """Returns the network's files by kind."""
    made = {
        "int8": tfc.convert(model, "int8", x),
        "int8, mse, adaround": tfc.convert(model, "int8", x, ranges="mse", rounding="adaround"),
    }
    if name in ("digits_cnn", "resnet8"):
        made["int4"] = tfc.convert(model, "int4", x, target="tflm", rounding="adaround")
    return made


def row(name, kind, content, x, binaries, folder):
    """Returns what both tools made of a file."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    codes = tflite.interpreter.quantize(x, tflite.interpreter.start(content).get_input_details()[0])
    np.save(folder / "x.npy", codes)
    return {
        "network": name,
        "kind": kind,
        "bytes": len(content),
        "full_integer": tfc.audit(content).full_integer,
        "tflm": in_tflm(content, codes, binaries, folder),
        "vela": "not for it" if kind == "int4" else in_vela(path, binaries, folder),
    }


def by_reference_kernels(content, codes):
    """Returns the codes of each output that LiteRT's reference kernels compute."""
    engine = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    engine.allocate_tensors()
    found = [[] for _ in engine.get_output_details()]
    for sample in codes:
        engine.set_tensor(engine.get_input_details()[0]["index"], sample[np.newaxis])
        engine.invoke()
        for rows, detail in zip(found, engine.get_output_details(), strict=True):
            rows.append(engine.get_tensor(detail["index"]))
    return list(map(np.concatenate, found))


def by_tflm(content, count, binaries, folder):
    """Returns the codes of each of the outputs in TFLite Micro, or its last words."""
    (folder / "tflm.tflite").write_bytes(content)
    arguments = [folder / "tflm.tflite", folder / "x.npy", folder / "y.npz", str(count)]
    done = subprocess.run(
        [binaries / "python", "-c", RUNNER, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        return _last_words(done)
    with np.load(folder / "y.npz") as file:
        return [file[f"arr_{number}"] for number in range(count)]


def in_tflm(content, codes, binaries, folder):
    """Returns equal, what else the codes are, or the interpreter's last words."""
    found = by_tflm(content, 1, binaries, folder)
    (expected,) = by_reference_kernels(content, codes)
    if isinstance(found, str):
        return found
    if np.array_equal(found[0], expected):
        return "equal"
    others = deviating(content, codes, binaries, folder)
    off = np.abs(found[0].astype(int) - expected.astype(int)).max()
    return f"off by {off}, from {', '.join(others)}" if others else TIES


def deviating(content, codes, binaries, folder):
    """Returns the operators that from equal codes give others, if not by rounding twice."""
    model = fb.parse(content)
    main = model.subgraphs[0]
    main.outputs = [int(number) for operator in main.operators for number in operator.outputs]
    model.signatureDefs = None
    opened = fb.pack(model)
    found = by_tflm(opened, len(main.outputs), binaries, folder)
    if isinstance(found, str):
        return [found]
    expected = dict(zip(main.outputs, by_reference_kernels(opened, codes), strict=True))
    found = dict(zip(main.outputs, found, strict=True))
    known = {int(main.inputs[0]): codes} | found
    others = []
    for operator in main.operators:
        inputs, output = [int(number) for number in operator.inputs], int(operator.outputs[0])
        if np.array_equal(found[output], expected[output]):
            continue
        name = fb.operator_name(model, operator)
        if name == "FULLY_CONNECTED":
            if not np.array_equal(found[output], rounded_twice(model, operator, known)):
                others.append(name)
        elif all(np.array_equal(known[n], expected.get(n, codes)) for n in inputs if n in known):
            others.append(name)
    return others


def rounded_twice(model, operator, known):
    """Returns the codes of a FULLY_CONNECTED whose sums are rounded to 31 bits, then to codes."""
    tensors = model.subgraphs[0].tensors
    x, kernel, bias = (int(number) for number in operator.inputs)
    y = tensors[operator.outputs[0]]
    weights = fb.data(model, tensors[kernel]).astype(np.int64)
    zero = int(tensors[x].quantization.zeroPoint[0])
    sums = (known[x].astype(np.int64).reshape(-1, weights.shape[1]) - zero) @ weights.T
    sums += fb.data(model, tensors[bias]) if bias >= 0 else 0
    steps = np.asarray(tensors[kernel].quantization.scale, np.float64)
    factor = tensors[x].quantization.scale[0] * steps / y.quantization.scale[0]
    mantissa, exponent = np.frexp(factor)
    high = (sums * np.rint(mantissa * 2**31).astype(np.int64) + (1 << 30)) >> 31
    shift = np.maximum(-exponent, 0)  # halves away from zero
    rounded = np.sign(high) * ((np.abs(high) + ((1 << shift) >> 1)) >> shift)
    lowest = (
        int(y.quantization.zeroPoint[0])
        if operator.builtinOptions.fusedActivationFunction
        else -128
    )
    return np.clip(rounded + y.quantization.zeroPoint[0], lowest, 127).reshape(-1, *fb.shape(y)[1:])


def in_vela(path, binaries, folder):
    """Returns the share of operators that the NPU takes, or refused."""
    done = subprocess.run(
        [binaries / "vela", path, "--accelerator-config", "ethos-u55-128"]
        + ["--output-dir", folder / "vela", "--verbose-performance"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(_last_words(done), file=sys.stderr)
        return "refused"
    on_cpu = re.search(r"CPU operators = (\d+) \(([\d.]+)%\)", done.stdout)
    on_npu = re.search(r"NPU operators = (\d+) \(([\d.]+)%\)", done.stdout)
    counts = [found.group(1) if found else "?" for found in (on_npu, on_cpu)]
    return f"{counts[0]} operators on the NPU, {counts[1]} on the CPU"


def _last_words(done):
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1][:120] if lines else f"ended with status {done.returncode}"


def show(entry):
    whole = "full integer" if entry["full_integer"] else "not full integer"
    return (
        f"{entry['network']:<14}{entry['kind']:<21}{entry['bytes']:>9,} bytes  {whole:<18}"
        f"TFLite Micro: {entry['tflm']:<32}Vela: {entry['vela']}"
    )


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
