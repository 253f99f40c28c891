"""Time for compute: fewer channels against the same number of bytes saved by zeros alone.

    python benchmarks/channel_speed.py --model mlperf_tiny_resnet8.h5

For ResNet-8 and MobileNet 0.5 (96x96, random weights: time does not depend on them), as float and
int8 files: the whole model; the model with 2.1x fewer multiply-accumulates by `prune_channels`;
and the whole model with the smallest weights of each layer set to zero, as many as it takes for
the deflated file to be as small as the pruned one. A network's six files are timed in one run, in
turn, in the interpreter with XNNPACK and one thread. MACs are read from the files. Speed-ups are
ratios of times taken in the same round, with the spread of 80 % of the rounds.

`--drop 'conv2d_[12]'` takes a residual block of ResNet-8 out whole, before channels are removed
until there are 2.1x fewer multiply-accumulates.

`--per latency` takes first the channels that cost most time for their score, as measured in files
of the same kind.

A server's processor may have AMX. XNNPACK's int8 kernels for it work on tiles of 64 input and 16
output channels: narrower layers gain nothing there. `--no-amx` (Linux) keeps XNNPACK from them, so
that the figures are those of processors without.

Exits with 1 if a model with 2.1x fewer multiply-accumulates is less than 1.6x faster.
"""

import argparse
import ctypes
import errno
import json
import pathlib
import struct

import keras
import numpy as np
from channel_pruning import macs, without_layers

import tfcompress as tfc
from tfcompress import pruning

NETWORKS = ("resnet8", "mobilenet")
SCHEMES = ("float32", "int8")
RATIO = 2.1
LEAST_SPEED_UP = 1.6
TOLERANCE = 0.02  # of the deflated bytes, between the pruned and the sparse file


def main(arguments=None):
    options = _parse(arguments)
    if options.no_amx:
        refuse_amx()
    rows = []
    for network in options.networks:
        rows += measure(network, options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    slow = [
        row for row in rows if row["variant"] == "channels" and row["speed_up"] < LEAST_SPEED_UP
    ]
    return int(bool(slow))


def measure(network, options):
    """Returns a row for each of the network's six files, after printing them."""
    model = build(network, options.model)
    samples = np.random.default_rng(0).uniform(0, 255, (32, *model.input_shape[1:]))
    samples = samples.astype(np.float32) * (1 if network == "resnet8" else 1 / 255)
    files = {}
    base = model
    if network == "resnet8" and options.drop:
        labels = np.random.default_rng(0).integers(0, 10, len(samples))
        base = without_layers(model, (samples, labels), options.drop)
    keep = macs(model) / RATIO / macs(base)
    for scheme in SCHEMES:
        pruned = tfc.prune_channels(
            base,
            keep_macs=keep,
            score=options.score,
            per=options.per,
            round_to=options.round_to,
            scheme=scheme,
            samples=samples,
        )
        files[scheme, "whole"] = tfc.convert(model, scheme=scheme, samples=samples)
        files[scheme, "channels"] = tfc.convert(pruned, scheme=scheme, samples=samples)
        size = tfc.audit(files[scheme, "channels"]).deflated_bytes
        files[scheme, "zeros"] = sparse_file(model, size, scheme, samples)
    latencies = tfc.measure_latency(list(files.values()), threads=1, runs=options.runs)
    rows = rows_of(network, files, latencies)
    show(network, rows)
    return rows


def build(network, path):
    if network == "resnet8":
        return tfc.models.load(path)
    return keras.applications.MobileNet(input_shape=(96, 96, 3), alpha=0.5, weights=None)


def sparse_file(model, size, scheme, samples):
    """Returns the file of the model with so many zeros that it deflates to `size` bytes."""
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        content = tfc.convert(with_zeros(model, middle), scheme=scheme, samples=samples)
        found = tfc.audit(content).deflated_bytes
        if abs(found / size - 1) <= TOLERANCE:
            return content
        low, high = (middle, high) if found > size else (low, middle)


def with_zeros(model, sparsity):
    """Returns a copy whose kernels have this share of zeros, their smallest weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    score, pattern = pruning.Magnitude(), pruning.Unstructured()
    for variable in copy.trainable_variables:
        kernel = keras.ops.convert_to_numpy(variable)
        if kernel.ndim > 1:
            variable.assign(kernel * pattern.mask(score.score(kernel), sparsity))
    return copy


def refuse_amx():
    """Lets this process ask Linux for AMX in vain: XNNPACK then takes its other kernels.

    A seccomp filter answers `arch_prctl(ARCH_REQ_XCOMP_PERM)` with EPERM and allows all else.
    """
    arch_prctl, request, allow, refuse = 158, 0x1023, 0x7FFF0000, 0x00050000 | errno.EPERM
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    instructions = [
        (load, 0, 0, 0),  # number of the system call
        (jump_if_equal, 0, 3, arch_prctl),
        (load, 0, 0, 16),  # its first argument
        (jump_if_equal, 0, 1, request),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, filter_mode = 38, 22, 2
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    if libc.prctl(set_filter, filter_mode, program, 0, 0):
        raise OSError(ctypes.get_errno(), "Linux does not take the filter of system calls")


def rows_of(network, files, latencies):
    rows = []
    whole = {}
    for ((scheme, variant), content), latency in zip(files.items(), latencies, strict=True):
        audit = tfc.audit(content)
        if variant == "whole":
            whole[scheme] = audit, latency
        first_audit, first = whole[scheme]
        rows.append(
            {
                "network": network,
                "scheme": scheme,
                "variant": variant,
                "macs": audit.macs,
                "macs_ratio": first_audit.macs / audit.macs,
                "bytes": audit.size_bytes,
                "deflated_bytes": audit.deflated_bytes,
                "sparsity": audit.sparsity,
                "median_ms": latency.median_ms,
                "speed_up": first.ratio_to_first / latency.ratio_to_first,
                "against_float": 1 / latency.ratio_to_first,
                "against_float_p10": 1 / latency.ratio_p90,
                "against_float_p90": 1 / latency.ratio_p10,
            }
        )
    return rows


def show(network, rows):
    print(
        f"\n{network:<20}{'MACs':>12}{'fewer':>8}{'bytes':>12}{'deflated':>11}{'zeros':>8}"
        f"{'median':>12}{'faster':>8}   against the whole float model"
    )
    for row in rows:
        print(
            f"{row['scheme'] + ' ' + row['variant']:<20}{row['macs']:>12,}"
            f"{row['macs_ratio']:>7.2f}x{row['bytes']:>12,}{row['deflated_bytes']:>11,}"
            f"{row['sparsity']:>7.1%}{row['median_ms']:>9.3f} ms{row['speed_up']:>7.2f}x   "
            f"{row['against_float']:.2f}x ({row['against_float_p10']:.2f} to "
            f"{row['against_float_p90']:.2f})",
            flush=True,
        )


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--score", default="magnitude")
    parser.add_argument("--per", choices=("macs", "parameters", "latency"))
    parser.add_argument("--drop", default="", help="layers of ResNet-8 that go whole, by name")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--no-amx", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
