"""python -m tfcompress.latency A.tflite [B.tflite ...] [flags]: how long .tflite files take.

The files run on the LiteRT interpreter, in 25 rounds, in random order, in blocks of at least 8 ms;
the ratio to the first file is the median over rounds, so that it holds on a busy machine. The time
per operator is an estimate: prefixes of the model are timed in the same rounds (Python has no
profiler). The arena is what one run holds in memory besides the constants, with LiteRT's own
kernels.

Examples:
  python -m tfcompress.latency model.tflite
  python -m tfcompress.latency baseline.tflite model.tflite --threads 2
  python -m tfcompress.latency model.tflite --xnnpack false --json

Exit status: 0 done; 2 bad input, one line says which.
"""

import sys
from collections.abc import Sequence

from absl import flags

from tfcompress import commands, tflite
from tfcompress.errors import InputError

FLAGS = commands.flags("json")
flags.DEFINE_integer("threads", 1, "Threads of the interpreter.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "runs", 200, "Timed runs of each file, at least.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_enum(
    "xnnpack",
    "true",
    ["true", "false"],
    "Whether XNNPACK takes the operators that it can, as by default in LiteRT.",
    flag_values=FLAGS,
)

KEYS = (
    "path",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "ratio_to_first",
    "threads",
    "runs",
    "xnnpack",
    "delegated_operators",
    "operators",
    "arena_bytes",
)


def latency(options: flags.FlagValues, arguments: list[str]) -> commands.Outcome:
    """Times the files against each other."""
    if not arguments:
        raise InputError("latency takes at least one .tflite file. Received: none")
    results = tflite.measure_latency(
        arguments, threads=options.threads, runs=options.runs, xnnpack=options.xnnpack == "true"
    )
    entries = [result.to_dict() for result in results]
    return commands.Outcome(
        [{key: entry[key] for key in KEYS} for entry in entries], "\n\n".join(map(str, results))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command on `argv` (without the program's name); returns the exit status."""
    return commands.run(latency, argv, FLAGS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
