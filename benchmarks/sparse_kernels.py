"""Do XNNPACK's sparse kernels run when `sparse_inference_report` says so?

    python benchmarks/sparse_kernels.py

Each model is exported with the scheme sparse and timed beside its dense file on a CPU without AVX,
where these kernels run: on ARM as it is, on x86 in an emulator (`apt install qemu-user`), which has
the verdict right though its times are not a real CPU's. The kernels ran where sparse / dense is far
below 1. A file that `convert` refuses (it fails or computes garbage there) is not timed.
"""

import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np

from tfcompress.errors import InputError
from tfcompress.tflite import convert, sparse_inference_report

L = keras.layers
EMULATOR = ["qemu-x86_64", "-cpu", "Nehalem"]
VARIANTS = {
    "meets all conditions": {},
    "60 % zeros": {"zeros": 0.6},
    "stem padded 'same'": {"stem": "same"},
    "depthwise padded 'same'": {"depthwise": "same"},
    "hard-swish": {"activation": "hard_swish"},
    "SiLU": {"activation": "silu"},
    "PReLU": {"activation": "prelu"},
    "residual": {"residual": True},
    "pooling without keepdims": {"keepdims": False},
    "1x1 convolution as head": {"head": "convolution"},
}
TIMER = """
import sys, time, numpy as np
from ai_edge_litert.interpreter import Interpreter
for path in sys.argv[1:]:
    engine = Interpreter(path, num_threads=1)
    engine.allocate_tensors()
    engine.invoke()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        engine.invoke()
        times.append(time.perf_counter() - start)
    print(1e3 * np.median(times))
"""


def build(
    zeros=0.8,
    stem="valid",
    depthwise="valid",
    activation="relu6",
    residual=False,
    keepdims=True,
    head="dense",
):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((64, 64, 3))
    x = L.ZeroPadding2D(1)(x) if stem == "valid" else x
    x = L.Conv2D(16, 3, strides=2, padding=stem, activation="relu6")(x)
    for filters, stride in [(128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
        before = x
        explicit = stride == 2 and depthwise == "valid"
        x = L.ZeroPadding2D(1)(x) if explicit else x
        x = L.DepthwiseConv2D(3, strides=stride, padding="valid" if explicit else "same")(x)
        if activation == "prelu":
            x = L.PReLU(keras.initializers.Constant(0.1), shared_axes=[1, 2])(x)
        else:
            x = L.Activation(activation)(x)
        x = L.Conv2D(filters, 1, activation="relu6")(x)
        if residual and before.shape == x.shape:
            x = L.Add()([x, before])
    x = L.GlobalAveragePooling2D(keepdims=keepdims)(x)
    if head == "convolution":
        outputs = L.Flatten()(L.Conv2D(10, 1)(x))
    else:
        outputs = L.Dense(10)(L.Flatten()(x) if keepdims else x)
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.Conv2D) and layer.kernel_size == (1, 1):
            kernel = np.array(layer.kernel)
            layer.kernel.assign(np.where(generator.random(kernel.shape) < zeros, 0.0, kernel))
    return model


def timed(files, folder):
    """Returns milliseconds of each file on a CPU without AVX; None where there is no such CPU."""
    command = [sys.executable, "-c", TIMER]
    if platform.machine() in ("x86_64", "AMD64"):
        if shutil.which(EMULATOR[0]) is None:
            return None
        command = EMULATOR + command
    paths = [folder / f"{number}.tflite" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    done = subprocess.run([*command, *paths], check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


def main():
    warnings.simplefilter("ignore")
    print(f"{'model':<28}{'eligible':<10}{'sparse / dense time':<22}first condition missed")
    for name, changes in VARIANTS.items():
        model = build(**changes)
        report = sparse_inference_report(model)
        missed = report.missed[0].missed if report.missed else ""
        try:
            files = [convert(model, scheme) for scheme in ("float32", "sparse")]
            with tempfile.TemporaryDirectory() as folder:
                times = timed(files, pathlib.Path(folder))
            shown = f"{times[1] / times[0]:.2f}" if times else "no CPU without AVX"
        except InputError:
            shown = "refused"
        print(f"{name:<28}{'yes' if report.eligible else 'no':<10}{shown:<22}{missed}", flush=True)


if __name__ == "__main__":
    main()
