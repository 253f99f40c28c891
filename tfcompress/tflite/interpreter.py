"""Runs a `.tflite` file on the LiteRT interpreter, sample by sample."""

import warnings
from collections.abc import Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.errors import InputError, require
from tfcompress.silence import silent_stderr
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.requantization import check_ratios

Arrays = np.ndarray | Sequence[np.ndarray]


def start(
    flatbuffer: fb.Flatbuffer, threads: int = 1, xnnpack: bool = True, preserve: bool = False
) -> Interpreter:
    """Returns an interpreter of the file with its tensors allocated.

    With `xnnpack` it is LiteRT's default, which hands what it can to XNNPACK; without it every
    operator runs on LiteRT's own kernels. With `preserve` inner tensors can be read after a run,
    which makes XNNPACK take each operator by itself: not a file's own speed.

    Raises:
        InputError: a file that is damaged, or that LiteRT or XNNPACK does not run.
    """
    require(threads >= 1, "threads of the interpreter", "must be at least 1", threads=threads)
    model = fb.parse(flatbuffer)  # the interpreter trusts what it is given
    if xnnpack:
        check_ratios(model)
    # BUILTIN would mean XNNPACK as well.
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with silent_stderr(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all")
            result = Interpreter(
                model_content=fb.read_bytes(flatbuffer),
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=preserve,
            )
            result.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"Flatbuffer does not run on the LiteRT interpreter: {line}.") from None
    return result


def run(flatbuffer: fb.Flatbuffer, x: Arrays, threads: int = 1, xnnpack: bool = True):
    """Returns the file's outputs for each of n samples, as real numbers.

    Args:
        flatbuffer: the file's content or its path.
        x: float inputs (n, ...); for several inputs a list of such arrays, in the file's order.
            They are quantized (rounded, clipped) where the file takes integers.
        threads, xnnpack: see `start`.

    Returns:
        float32 (n, ...), dequantized; for several outputs a list. Integers without a scale
        (class indices, say) come as they are.
    """
    engine = start(flatbuffer, threads, xnnpack)
    outputs = _invoke(engine, [quantize(a, d) for a, d in _pairs(engine, x)])
    results = [dequantize(a, d) for a, d in zip(outputs, engine.get_output_details(), strict=True)]
    return results[0] if len(results) == 1 else results


def run_integers(flatbuffer: fb.Flatbuffer, x: Arrays, threads: int = 1, xnnpack: bool = True):
    """Returns what `run` returns, but the raw output codes of the file, not dequantized."""
    engine = start(flatbuffer, threads, xnnpack)
    outputs = _invoke(engine, [quantize(a, d) for a, d in _pairs(engine, x)])
    return outputs[0] if len(outputs) == 1 else outputs


def noise(engine: Interpreter, n: int, seed: int = 0) -> list[np.ndarray]:
    """Returns n random samples for each input, within the range that its codes can express.

    Float inputs and those of 16 bits are standard normal; integers without a scale (indices) are 0
    or 1.
    """
    random = np.random.default_rng(seed)
    return [_random(random, (n, *map(int, d["shape"][1:])), d) for d in engine.get_input_details()]


def _random(random: np.random.Generator, shape: tuple[int, ...], detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale:
        limits = np.iinfo(detail["dtype"])
        low, high = (limits.min - zero_point) * scale, (limits.max - zero_point) * scale
        if limits.bits > 8:  # the ends of so many codes may lie far beyond what a model knows
            return np.clip(random.standard_normal(shape), low, high).astype(np.float32)
        return random.uniform(low, high, shape).astype(np.float32)
    if np.issubdtype(detail["dtype"], np.floating):
        return random.standard_normal(shape).astype(detail["dtype"])
    return random.integers(0, 2, shape).astype(detail["dtype"])


def _pairs(engine: Interpreter, x: Arrays) -> list[tuple[np.ndarray, dict]]:
    details = engine.get_input_details()
    arrays = [np.asarray(x)] if len(details) == 1 and not _is_list(x) else list(map(np.asarray, x))
    require(
        len(arrays) == len(details),
        "Inputs of the flatbuffer",
        f"must be {len(details)} arrays",
        arrays=len(arrays),
    )
    for array, detail in zip(arrays, details, strict=True):
        expected = tuple(map(int, detail["shape"][1:]))
        if array.shape[1:] != expected or array.ndim < 1:
            raise InputError(
                f"Samples for input '{detail['name']}' must have the shape (n, "
                f"{', '.join(map(str, expected))}). Received: shape={array.shape}"
            )
    return list(zip(arrays, details, strict=True))


def _is_list(x: Arrays) -> bool:
    return isinstance(x, list | tuple)


def _invoke(engine: Interpreter, inputs: list[np.ndarray]) -> list[np.ndarray]:
    outputs = engine.get_output_details()
    collected: list[list[np.ndarray]] = [[] for _ in outputs]
    for sample in zip(*inputs, strict=True):
        for value, detail in zip(sample, engine.get_input_details(), strict=True):
            engine.set_tensor(detail["index"], value[np.newaxis])
        try:
            engine.invoke()
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise InputError(f"Flatbuffer does not run on these inputs: {line}") from None
        for results, detail in zip(collected, outputs, strict=True):
            results.append(engine.get_tensor(detail["index"]))
    return [np.concatenate(r) if r and r[0].ndim else np.asarray(r) for r in collected]


def quantize(array: np.ndarray, detail: dict) -> np.ndarray:
    """Returns the codes of real numbers in the type that the input takes, rounded and clipped."""
    scale, zero_point = detail["quantization"]
    dtype = detail["dtype"]
    if not scale or np.issubdtype(dtype, np.floating):
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    codes = np.round(array.astype(np.float32) / np.float32(scale)) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def dequantize(array: np.ndarray, detail: dict) -> np.ndarray:
    """Returns the real numbers of a tensor's codes; floats and indices as they are."""
    scale, zero_point = detail["quantization"]
    if not scale or np.issubdtype(array.dtype, np.floating):
        return array
    return (array.astype(np.float32) - zero_point) * np.float32(scale)
