"""python -m tfcompress.archive pack|unpack|report FILE [flags]: models in as few bytes as possible.

pack writes FILE.tfc, the model in FILE (.tflite, .keras or .h5) packed; unpack writes the same
bytes back to FILE without .tfc; report says, array by array, how a packed FILE is coded and what
it takes. A file is written only after it was unpacked again and compared, bit for bit.

Examples:
  python -m tfcompress.archive pack model.tflite
  python -m tfcompress.archive report model.tflite.tfc
  python -m tfcompress.archive unpack model.tflite.tfc --output copy.tflite

Exit status: 0 done and verified; 2 bad input, one line says which.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from tfcompress import commands, packing
from tfcompress.errors import InputError, unknown
from tfcompress.files import written_whole

SUFFIX = ".tfc"
VERBS = ("pack", "unpack", "report")
FLAGS = commands.flags("json")
flags.DEFINE_string(
    "output",
    None,
    f"The file to write. Without it: FILE with {SUFFIX} behind its name, or without it.",
    flag_values=FLAGS,
)


def archive(options: flags.FlagValues, arguments: list[str]) -> commands.Outcome:
    """Packs, unpacks or describes one file."""
    if len(arguments) != 2:
        raise InputError(f"archive takes a verb and a FILE. Received: {' '.join(arguments)}")
    verb, path = arguments[0], pathlib.Path(arguments[1])
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    if verb == "report":
        report = packing.report(path)
        return commands.Outcome(report.to_dict(), str(report))
    output = pathlib.Path(options.output) if options.output else _default_output(verb, path)
    if output.resolve() == path.resolve():
        raise InputError(
            f"--output must be another file than the one to {verb}. Received: {output}"
        )
    content = packing.pack(path) if verb == "pack" else packing.unpack(path)
    with written_whole(output) as file:
        file.write(content)
    before, after = path.stat().st_size, len(content)
    result = {"path": str(output), "bytes_before": before, "bytes_after": after}
    return commands.Outcome(result, f"Written: {output} ({before:,} bytes before, {after:,} after)")


def _default_output(verb: str, path: pathlib.Path) -> pathlib.Path:
    if verb == "pack":
        return path.with_name(path.name + SUFFIX)
    if path.suffix != SUFFIX:
        raise InputError(f"unpack needs --output for a file without {SUFFIX}. Received: {path}")
    return path.with_suffix("")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command on `argv` (without the program's name); returns the exit status."""
    return commands.run(archive, argv, FLAGS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
