"""python -m tfcompress.export MODEL [flags]: a Keras model becomes a verified .tflite file.

MODEL is a .keras or .h5 file (also those of Keras 2 that Keras 3 refuses), a SavedModel folder,
python:module:function, or a built-in reference (lenet5, resnet8, mobilenet:0.25, ...).

The file gets its name only after it was run on the LiteRT interpreter, compared with the Keras
model, and read back. int8 and int4 are full integer: int8 in, int8 out, no float tensor. If that is
not so, no file is written, the operators at fault are named, and the exit status is 1.

How the integers are found is chosen by words that are a name or a mapping, such as
--rounding '{kmeans: {clusters: 16}}'. --rules is a YAML file, a list such as
  - {layers: ".*attention.*", scheme: float16}
  - {layers: conv1, scheme: int4, rounding: adaround}

Examples:
  python -m tfcompress.export model.keras --scheme float16
  python -m tfcompress.export model.keras --scheme int4 --data npz:f.npz --rounding adaround
  python -m tfcompress.export model.keras --scheme mixed --data npz:f.npz --rules rules.yaml
  python -m tfcompress.export m.keras --scheme mixed --data npz:f.npz --search '{max_bytes: 60000}'
  python -m tfcompress.export model.keras --scheme int8 --data npz:mnist.npz
  python -m tfcompress.export resnet8.h5 --data images:cifar10 --standardize none --json

Exit status: 0 done and verified; 1 a check failed; 2 bad input, one line says which.
"""

import pathlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

from tfcompress import commands, data, models, recipe, structured, tflite
from tfcompress.errors import InputError, require, unknown
from tfcompress.files import written_whole
from tfcompress.pipeline.finish import searched
from tfcompress.pipeline.run import are_probabilities, check_model
from tfcompress.tflite.interpreter import noise, start

FLAGS = commands.flags("json", "unsafe")
flags.DEFINE_string(
    "scheme",
    "int8",
    "float32, float16 (weights), dynamic (int8 weights), int8 (full integer), int16x8 (int16 "
    "activations, int8 weights), int4 (full integer, 4-bit weights where they cost no time), mixed "
    "(see --rules) or sparse (float32, kernels of zeros stored without them).",
    flag_values=FLAGS,
)
_WORDS = {
    "rounding": "Of weights: nearest, truncate, stochastic, max_plus_one, kmeans or adaround.",
    "ranges": "Of activations: min_max, ema, percentile, mse, entropy or sigma.",
    "weight_ranges": "Of weights: as --ranges.",
    "granularity": "What shares a scale: per_channel, per_tensor or '{blocks: {size: 32}}'.",
    "activations": "Of int4: int8, dynamic (floats, quantized by the kernel) or float32.",
    "target": "Whom int4 is for: xnnpack, tflm (TFLite Micro) or reference (LiteRT's own kernels).",
}
for _word, _help in _WORDS.items():
    flags.DEFINE_string(_word, None, _help, flag_values=FLAGS)
flags.DEFINE_string(
    "rules",
    None,
    "A YAML file: a list of {layers: REGEX, ...} with rounding, weight_ranges, granularity and, "
    "for the scheme mixed, scheme and activations, or {layers: REGEX, skip: REASON}.",
    flag_values=FLAGS,
)
flags.DEFINE_boolean(
    "search_ranges",
    False,
    "Then widen and narrow each activation's range as the file's outputs come nearer to float's on "
    "the samples (int8, int16x8, int4, mixed): slow.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "search",
    None,
    "For the scheme mixed, in place of --rules: a mapping such as '{schemes: [int8, int4], "
    "max_bytes: 60000}' with one of max_bytes, max_latency_ms, max_loss_increase and "
    "max_accuracy_drop. Each layer gets its scheme by the loss that it costs on --data.",
    flag_values=FLAGS,
)
flags.DEFINE_boolean(
    "equalize", False, "First give a layer's channels weights of like ranges.", flag_values=FLAGS
)
flags.DEFINE_boolean(
    "correct_bias",
    False,
    "First have biases make up for the mean error of the quantized weights (dynamic, int8 and "
    "int16x8).",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data",
    None,
    "Where samples come from: digits, npz:FILE, images:FOLDER, keras:NAME or "
    "python:module:function. int8 and int16x8 need them, unless the model was trained by "
    "quantize_aware; every scheme is compared on them.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "samples", 200, "How many training images are used.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
    "standardize",
    "unit",
    "What the model's inputs are: unit (0..1), standard (mean 0, deviation 1) or none (as stored).",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "output",
    None,
    "The file to write. Without it: the model's name with .tflite, in tflite_exports/ if there is "
    "such a folder, else here.",
    flag_values=FLAGS,
)
flags.DEFINE_boolean(
    "keep_names", False, "Leave the names of inner tensors in the file.", flag_values=FLAGS
)


def export(options: flags.FlagValues, arguments: list[str]) -> commands.Outcome:
    """Converts, verifies and writes one model."""
    if len(arguments) != 1:
        raise InputError(f"export takes one MODEL. Received: {' '.join(arguments) or 'none'}")
    words = _words(options)
    search = recipe.read_search(options.search, "--search") if options.search else None
    given = {"scheme": options.scheme, "rules": options.rules, "data": options.data}
    fits = options.scheme == "mixed" and options.data and not options.rules
    rule = "needs --scheme mixed and --data, and finds its rules itself"
    require(search is None or fits, "--search", rule, **given)
    if options.standardize not in data.STANDARDIZATIONS:
        raise unknown("standardisation", options.standardize, data.STANDARDIZATIONS)
    source = data.load(options.data, standardize=options.standardize) if options.data else None
    model = models.load(
        arguments[0],
        unsafe=options.unsafe,
        data_shape=source.shape if source else None,
        classes=source.classes if source else None,
    )
    samples = source.samples(options.samples) if source else None
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("ignore")
        told = "Model .* (as dynamic keeps|as .*could not hold|was trained)|Activations of model"
        warnings.filterwarnings("always", message=told)
        prepared = _prepared(model, options, words, samples)
        if search is not None and source is not None:
            logits = not are_probabilities(check_model(prepared, source))
            found = searched(prepared, source, samples, search, words, logits)
            print(found, file=sys.stderr)
            words["rules"] = found.rules
        content = tflite.convert(
            prepared, options.scheme, samples, keep_names=options.keep_names, **words
        )
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    audit = tflite.audit(content)
    compared = noise(start(content), 64) if samples is None else samples
    comparison = tflite.compare(model, content, compared)

    problems = _problems(audit, options.scheme, words)
    path = pathlib.Path(options.output) if options.output else default_output(arguments[0])
    if not problems:
        with written_whole(path) as file:
            file.write(content)
    result = {
        "path": None if problems else str(path),
        "scheme": options.scheme,
        **{key: value for key, value in audit.to_dict().items() if key in _AUDITED},
        "max_abs_error": comparison.max_abs_error,
        "agreement": comparison.agreement,
    }
    text = (
        f"{audit}\n\nAgainst Keras on {len(compared[0] if samples is None else samples)} "
        f"{'random inputs' if samples is None else 'samples'}: largest error "
        f"{comparison.max_abs_error:.3g}, same prediction {comparison.agreement:.1%}\n"
        f"{'Not written.' if problems else f'Written: {path}'}"
    )
    return commands.Outcome(result, text, problems)


def _words(options: flags.FlagValues) -> dict[str, Any]:
    """Returns how the integers are found, as `convert` takes it, checked."""
    given = {word: options[word].value for word in _WORDS if options[word].value is not None}
    words = {word: recipe.read_value(text, f"--{word}") for word, text in given.items()}
    if options.rules:
        words["rules"] = recipe.read_rules(options.rules)
    if options.search_ranges:
        words["search_ranges"] = True
    tflite.Request(options.scheme, **words)
    fits = not options.correct_bias or options.scheme in ("dynamic", "int8", "int16x8")
    rule = "is for the schemes dynamic, int8 and int16x8: others do not say the bits of all weights"
    require(fits, "--correct_bias", rule, scheme=options.scheme)
    return words


def _prepared(
    model: keras.Model, options: flags.FlagValues, words: dict[str, Any], samples: Any
) -> keras.Model:
    """Returns the model that is quantized: equalized, its biases corrected, as wished."""
    if options.equalize:
        model = structured.equalize(model)
    if options.correct_bias:
        names = {"granularity": "granularity", "ranges": "weight_ranges", "rounding": "rounding"}
        chosen = {name: words[word] for name, word in names.items() if word in words}
        model = structured.correct_bias(model, samples, **chosen)
    return model


_AUDITED = (
    "size_bytes",
    "deflated_bytes",
    "inputs",
    "outputs",
    "operators",
    "tensors",
    "float_operators",
    "delegated_operators",
)


def default_output(spec: str) -> pathlib.Path:
    """Returns where the file goes without --output, from the model's word."""
    last = spec.rstrip("/").split(":")[-1] if spec.startswith("python:") else spec
    name = pathlib.Path(last).stem if pathlib.Path(last).exists() else last
    name = re.sub(r"[^\w.-]", "_", name)
    folder = pathlib.Path("tflite_exports")
    return (folder if folder.is_dir() else pathlib.Path()) / f"{name}.tflite"


def _problems(audit: tflite.Audit, scheme: str, words: dict[str, Any]) -> list[str]:
    full = scheme in ("int8", "int16x8", "int4") and words.get("activations", "int8") == "int8"
    if not full:
        return []
    if not audit.full_integer:
        names = audit.float_operators
        counts = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
        return [f"the file is not full integer. Float operators: {', '.join(counts)}"]
    wanted = "int16" if scheme == "int16x8" else "int8"
    return [
        f"{tensor['name']} must be {wanted}, but is {tensor['dtype']}"
        for tensor in (*audit.inputs, *audit.outputs)
        # Integers without a scale are indices, in and out.
        if tensor["scale"] and tensor["dtype"] != wanted
    ]


def main(argv: Sequence[str] | None = None) -> Any:
    """Runs the command on `argv` (without the program's name); returns the exit status."""
    return commands.run(export, argv, FLAGS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
