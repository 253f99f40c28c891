"""python -m tfcompress.analyze weights|quantization MODEL ... [flags]: what is in a model.

weights MODEL: tells for each kernel how its weights are distributed, and into how many values they
fall. MODEL is what export takes, or a .tflite file, whose integers are looked at as stored. With
--output FOLDER the table goes into weights.csv and weights.json, and each kernel gets a picture:
histogram, estimated density and centroids; error over the number of clusters; silhouettes.

quantization MODEL FILE: runs a quantized .tflite file beside the Keras model that it was made of,
and tells for each layer how far its output is off: by itself, and with all before it. The worst
layer comes first. MODEL is what export takes; FILE may be of any scheme, and needs no names.

Examples:
  python -m tfcompress.analyze weights model.keras --clusters 2..64 --output weights
  python -m tfcompress.analyze weights model.tflite
  python -m tfcompress.analyze quantization model.keras model.tflite --data npz:mnist.npz
  python -m tfcompress.analyze quantization resnet8.h5 resnet8.tflite --data images:cifar10 \\
      --standardize none --plot errors.png

Exit status: 0 done; 2 bad input, one line says which.
"""

import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import flags

from tfcompress import commands, data, models, report
from tfcompress.errors import InputError, require, unknown
from tfcompress.files import written_whole

FLAGS = commands.flags("json", "unsafe")
flags.DEFINE_string(
    "data",
    None,
    "Where samples come from: digits, npz:FILE, images:FOLDER, keras:NAME or "
    "python:module:function.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "samples", 64, "How many training images are used.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
    "standardize",
    "unit",
    "What the model's inputs are: unit (0..1), standard (mean 0, deviation 1) or none (as stored).",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "clusters",
    "2..64",
    "The numbers of clusters that are tried, FEWEST..MOST.",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", None, "A folder for tables and pictures.", flag_values=FLAGS)
flags.DEFINE_string("plot", None, "A picture to write: .png, .svg or .pdf.", flag_values=FLAGS)


def analyze(options: flags.FlagValues, arguments: list[str]) -> commands.Outcome:
    """Runs the analysis that the first argument names."""
    if not arguments:
        raise InputError(f"analyze takes what to analyze: {', '.join(ANALYSES)}. Received: none")
    word, *files = arguments
    if word not in ANALYSES:
        raise unknown("analysis", word, ANALYSES)
    run, own = ANALYSES[word]
    for name in sorted(set().union(*(others for _, others in ANALYSES.values())) - own):
        if options[name].present:
            raise InputError(f"analyze {word} takes no --{name}. See --help.")
    return run(options, files)


def weights(options: flags.FlagValues, files: list[str]) -> commands.Outcome:
    """Tells what the weights of a model look like, kernel by kernel."""
    if len(files) != 1:
        raise InputError(f"analyze weights takes MODEL. Received: {' '.join(files) or 'none'}")
    (file,) = files
    parts = re.fullmatch(r"(\d+)\.\.(\d+)", options.clusters)
    rule = "must be FEWEST..MOST, as 2..64"
    require(parts, "--clusters of analyze weights", rule, clusters=options.clusters)
    assert parts is not None
    is_flatbuffer = file.endswith(".tflite")
    model = pathlib.Path(file) if is_flatbuffer else models.load(file, unsafe=options.unsafe)
    found = report.weights_report(
        model,
        (int(parts[1]), int(parts[2])),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    text = str(found)
    if options.output:
        paths = found.save(options.output)
        text += f"\nWritten: {len(paths)} files in {options.output}"
    return commands.Outcome(found.to_dict(), text)


def quantization(options: flags.FlagValues, files: list[str]) -> commands.Outcome:
    """Compares a quantized file with its model, layer by layer."""
    if len(files) != 2:
        raise InputError(
            f"analyze quantization takes MODEL and FILE. Received: {' '.join(files) or 'none'}"
        )
    if options.data is None:
        raise InputError("analyze quantization needs --data, the images to run on. Received: none")
    source = data.load(options.data, standardize=options.standardize)
    model = models.load(
        files[0], unsafe=options.unsafe, data_shape=source.shape, classes=source.classes
    )
    samples = source.samples(options.samples)
    found = report.quantization_report(model, pathlib.Path(files[1]), samples, options.samples)
    text = str(found)
    if options.plot:
        path = pathlib.Path(options.plot)
        kind = path.suffix[1:].lower()
        if kind not in _PICTURES:
            raise unknown("kind of picture", kind, _PICTURES)
        with written_whole(path) as file:
            found.plot().savefig(file, format=kind)
        text += f"\nWritten: {path}"
    return commands.Outcome(found.to_dict(), text)


Analysis = Callable[[flags.FlagValues, list[str]], commands.Outcome]
# Each with the flags that are its own.
ANALYSES: dict[str, tuple[Analysis, set[str]]] = {
    "quantization": (quantization, {"data", "plot", "samples", "standardize"}),
    "weights": (weights, {"clusters", "output"}),
}
_PICTURES = ("pdf", "png", "svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command on `argv` (without the program's name); returns the exit status."""
    return commands.run(analyze, argv, FLAGS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
