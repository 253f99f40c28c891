"""How much faster ResNet-8 can be at 2.1x fewer multiply-accumulates: many choices of its widths.

    python benchmarks/channel_widths.py

Whatever chooses channels, it ends at some widths of the six groups that ResNet-8 has. `--choices`
of them, at random, have 2.08x to 2.18x fewer multiply-accumulates than the whole network, by
multiples of 4 in the first stage and of 8 below; then the neighbours of the fastest, as long as one
of them is faster. The files (random weights: time does not depend on them) are timed in turn, in
the interpreter with XNNPACK and one thread, the whole network's among them. The last line is the
fastest of all that were tried, measured anew; accuracy plays no part.

Exits with 1 if that is less than 1.6x.
"""

import argparse
import itertools

import architectures
import keras
import numpy as np

import tfcompress as tfc

WHOLE = (16, 32, 64), (16, 32, 64)  # of the sums, and between a stage's two convolutions
STEPS = (4, 8, 8) * 2
BETWEEN = 2.08, 2.18
LEAST_SPEED_UP = 1.6
AT_ONCE = 15


def main(arguments=None):
    options = parse(arguments)
    allowed = [w for w in every_width() if BETWEEN[0] <= macs(WHOLE) / macs(w) <= BETWEEN[1]]
    order = np.random.default_rng(0).permutation(len(allowed))[: options.choices]
    found = measured([allowed[i] for i in order], options)
    median = np.median(list(found.values()))
    print(f"{len(found)} of {len(allowed)} widths: {median:.2f}x faster in the median")
    while True:
        best = max(found, key=found.get)
        print(f"{found[best]:.2f}x {best}, {macs(WHOLE) / macs(best):.2f}x fewer", flush=True)
        near = [w for w in allowed if w not in found and is_near(w, best)]
        found |= measured(near, options)
        if max(found, key=found.get) == best:
            break
    again = measured([best], options, runs=5 * options.runs)[best]
    print(f"the fastest of {len(found)}, measured anew: {again:.2f}x faster")
    return int(again < LEAST_SPEED_UP)


def every_width():
    sizes = [range(step, size + 1, step) for step, size in zip(STEPS, sum(WHOLE, ()), strict=True)]
    return [(sizes[:3], sizes[3:]) for sizes in itertools.product(*sizes)]


def macs(widths):
    """Returns the multiply-accumulates of the network."""
    (a, b, c), (x, y, z) = widths
    first = 1024 * 9 * (3 * a + 2 * a * x)
    second = 256 * (9 * (a * y + y * b) + a * b)
    return first + second + 64 * (9 * (b * z + z * c) + b * c) + 10 * c


def is_near(widths, other):
    """Returns whether no group is more than a step away."""
    pairs = zip(sum(widths, ()), sum(other, ()), STEPS, strict=True)
    return all(abs(a - b) <= step for a, b, step in pairs)


def measured(choices, options, runs=None):
    """Returns by widths how many times as fast as the whole network they are."""
    whole, found = file(WHOLE, options.scheme), {}
    for start in range(0, len(choices), AT_ONCE):
        chosen = choices[start : start + AT_ONCE]
        files = [whole, *(file(widths, options.scheme) for widths in chosen)]
        latencies = tfc.measure_latency(files, threads=1, runs=runs or options.runs)[1:]
        found |= {w: 1 / y.ratio_to_first for w, y in zip(chosen, latencies, strict=True)}
    return found


def file(widths, scheme):
    samples = np.random.default_rng(0).uniform(0, 255, (32, 32, 32, 3)).astype(np.float32)
    return tfc.convert(architectures.resnet8(keras, 0, *widths), scheme=scheme, samples=samples)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--choices", type=int, default=120)
    parser.add_argument("--scheme", choices=("float32", "int8"), default="int8")
    parser.add_argument("--runs", type=int, default=60)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
