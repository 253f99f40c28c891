"""Whether `prune_channels(keep_latency=...)` keeps its word: the models are measured again.

    python benchmarks/keep_latency.py --model mlperf_tiny_resnet8.h5

For ResNet-8 and MobileNet 0.5 (96x96, random weights: time does not depend on them) and each of
`--targets`, the pruned model's float file is timed beside the original's in a run of its own, in
the interpreter with XNNPACK and one thread, `--repeats` times. Exits with 1 if the median misses a
target by more than 10 %.
"""

import argparse
import json
import pathlib
import time

import numpy as np

import tfcompress as tfc
from tfcompress.tflite.latency import measure_ratios

TOLERANCE = 0.1


def main(arguments=None):
    options = _parse(arguments)
    rows = []
    print(f"{'network':10} {'target':>6} {'MACs':>6} {'measured again':>22} {'search':>8}")
    for name in options.networks:
        model = tfc.models.load(str(options.model) if name == "resnet8" else "mobilenet:0.5")
        whole = tfc.convert(model, scheme="float32")
        for target in options.targets:
            started = time.perf_counter()
            small = tfc.prune_channels(model, keep_latency=target, round_to=options.round_to)
            seconds = time.perf_counter() - started
            file = tfc.convert(small, scheme="float32")
            ratios = sorted(measure_ratios([whole, file])[1] for _ in range(options.repeats))
            row = {
                "network": name,
                "target": target,
                "macs": tfc.audit(file).macs / tfc.audit(whole).macs,
                "ratios": ratios,
                "search_seconds": seconds,
            }
            rows.append(row | {"met": abs(np.median(ratios) / target - 1) <= TOLERANCE})
            shown = f"{np.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
            print(f"{name:10} {target:6.2f} {row['macs']:6.2f} {shown:>22} {seconds:6.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, default=float))
    return 0 if all(row["met"] for row in rows) else 1


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="ResNet-8, .h5 or .keras")
    parser.add_argument("--networks", nargs="+", default=["resnet8", "mobilenet"])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.8, 0.6, 0.5])
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
