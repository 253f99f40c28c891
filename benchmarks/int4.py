"""4-bit weights that cost no time: bytes and speed of int4 files against int8 files.

    python benchmarks/int4.py

MobileNet and MobileNetV2 (224x224, random weights; BatchNorm's moments are those of the images, so
that activations have the spread of a trained network's) as int8 and as int4, rounded by AdaRound:
bytes, time in the interpreter with XNNPACK and one thread, both files in turn in one run.

XNNPACK rounds sums once, LiteRT's own kernels twice, so that codes can be one step apart, in int8
as in int4. So each operator is run alone by XNNPACK on the codes that LiteRT's own kernels find in
front of it in a run of the whole file: the largest difference of any code of its outputs, in steps,
and the share of codes that are equal. (Through a whole network of random weights a code that is off
moves many others: the outputs' largest difference is shown as well.)

With `--qat` the models are trained with 4-bit weights for a few steps, and the files hold the codes
of the simulation.

In these files the 1x1 convolutions over maps of up to 1,024 places are FULLY_CONNECTED operators
with INT4 kernels; the others, the first convolution and the depthwise ones have 8-bit kernels.

XNNPACK has int8 kernels for AMX, in the newest servers, but none for 4-bit weights: `--no-amx`
keeps it from them.

Exits with 1 if an int4 file has more than 0.58 of the int8 file's bytes, or less than 0.93 of its
speed, or an operator whose codes are more than one step apart.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from channel_speed import refuse_amx

import tfcompress as tfc
from tfcompress import tflite
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter, prefixes

NETWORKS = {
    "mobilenet": keras.applications.MobileNet,
    "mobilenet_v2": keras.applications.MobileNetV2,
}
MOST_BYTES, LEAST_SPEED = 0.58, 0.93


def main(arguments=None):
    options = _parse(arguments)
    if options.no_amx:
        refuse_amx()
    keras.utils.set_random_seed(options.seed)
    rows = [measure(network, options) for network in options.networks]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return int(any(missed(row) for row in rows))


def missed(row):
    apart = max(row[f"{scheme}_operators"]["steps"] for scheme in ("int8", "int4"))
    return row["bytes"] > MOST_BYTES or row["speed"] < LEAST_SPEED or apart > 1


def measure(network, options):
    """Returns the network's row, after printing it."""
    x = images(options)
    model = build(network, x, options)
    int8, int4 = files(model, x, options)
    latencies = tfc.measure_latency([int8, int4], threads=1, runs=options.runs)
    ratio = latencies[1].ratio_to_first
    row = {
        "network": network,
        "int8_bytes": len(int8),
        "int4_bytes": len(int4),
        "bytes": len(int4) / len(int8),
        "speed": 1 / ratio,
        "int8_steps": steps(int8, x),
        "int4_steps": steps(int4, x),
        "int8_operators": operators(int8, x),
        "int4_operators": operators(int4, x),
        "int8_error": tflite.compare(model, int8, x).relative_error,
        "int4_error": tflite.compare(model, int4, x).relative_error,
        "int4_weights": sum(w.size for w in tfc.audit(int4).weights if w.dtype == "INT4"),
    }
    print(
        f"{network:<14}{row['int8_bytes']:>11,} -> {row['int4_bytes']:>9,} bytes: "
        f"{row['bytes']:.3f}x; speed {row['speed']:.3f}x (int8 {latencies[0].median_ms:.1f} ms); "
        f"{row['int4_weights']:,} INT4 weights; error {row['int8_error']:.3f} -> "
        f"{row['int4_error']:.3f}"
    )
    for scheme in ("int8", "int4"):
        found = row[f"{scheme}_operators"]
        print(
            f"  {scheme}, XNNPACK against LiteRT's kernels: {found['equal']:.2%} of the codes of "
            f"{found['operators']} operators equal, all within {found['steps']} step(s); outputs "
            f"of the whole within {row[f'{scheme}_steps']}",
            flush=True,
        )
    return row


def images(options):
    """Returns smooth random images in [-1, 1]: like photographs, neighbours are alike."""
    random = np.random.default_rng(options.seed)
    coarse = random.uniform(-1, 1, (options.samples, 14, 14, 3)).astype(np.float32)
    return np.asarray(keras.ops.image.resize(coarse, (options.size, options.size)))


def build(network, x, options):
    make = NETWORKS[network]
    shape = (options.size, options.size, 3)
    model = make(input_shape=shape, weights=None, classifier_activation=None)
    norms = [layer for layer in model.layers if "BatchNormalization" in type(layer).__name__]
    for layer in norms:
        layer.momentum = 0.0
    model(x[:16], training=True)
    return model


def files(model, x, options):
    """Returns the int8 and the int4 file."""
    if not options.qat:
        int8 = tfc.convert(model, "int8", x)
        return int8, tfc.convert(model, "int4", x, rounding=options.rounding)
    made = []
    labels = np.arange(len(x)) % 1000
    for bits in (8, 4):
        trained = tfc.quantize_aware(model, samples=x, weight_bits=bits)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trained.compile(keras.optimizers.SGD(1e-4), loss)
        trained.fit(x, labels, batch_size=4, epochs=1, verbose=0)
        made.append(tfc.convert(trained, f"int{bits}"))
    return made


def steps(content, x):
    """Returns the largest difference of output codes between XNNPACK and the reference kernels."""
    fast, reference = (
        tflite.run_integers(content, x[:8], xnnpack=on).astype(int) for on in (True, False)
    )
    return int(np.abs(fast - reference).max())


def operators(content, x):
    """Returns how far each operator's codes are apart, both kernels given the same codes."""
    model = fb.parse(content)
    graph = model.subgraphs[0]
    whole = interpreter.start(content, xnnpack=False, preserve=True)
    (detail,) = whole.get_input_details()
    computed = {*map(int, graph.inputs), *(int(i) for o in graph.operators for i in o.outputs)}
    runs = []
    for row in x[:8]:
        whole.set_tensor(detail["index"], interpreter.quantize(row[np.newaxis], detail))
        whole.invoke()
        runs.append({i: whole.get_tensor(i).astype(np.int8) for i in computed})
    apart = []
    for number, operator in enumerate(graph.operators):
        inputs = [i for i in dict.fromkeys(map(int, operator.inputs)) if i in computed]
        alone = interpreter.start(prefixes.single(model, [number], inputs))
        (place,) = alone.get_output_details()
        for run in runs:
            for i, given in zip(inputs, alone.get_input_details(), strict=True):
                alone.set_tensor(given["index"], run[i])
            alone.invoke()
            found = alone.get_tensor(place["index"]).astype(int)
            apart.append(np.abs(found - run[int(operator.outputs[0])]).ravel())
    apart = np.concatenate(apart)
    return {
        "operators": len(graph.operators),
        "steps": int(apart.max()),
        "equal": float(np.mean(apart == 0)),
    }


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounding", default="adaround")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--qat", action="store_true", help="train with 4-bit weights first")
    parser.add_argument("--no-amx", action="store_true", help="see channel_speed.py")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
