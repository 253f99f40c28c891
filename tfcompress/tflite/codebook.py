"""Kernels of few values, kept as a table and indices inside a `.tflite` file that still runs."""

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.latency import measure_ratios
from tfcompress.tflite.macs import KERNEL_INPUT
from tfcompress.tflite.slim import same_outputs

_MOST_VALUES = 256
_PAIRED = 16  # up to so many values, one byte is a pair of indices
_ITEMS = {"INT8": np.int8, "FLOAT32": np.float32}
_OVERHEAD = 600  # bytes that tensors and operators of one lookup take in the file, about
_NEVER = {"GATHER", "EMBEDDING_LOOKUP", "BATCH_MATMUL"}  # they look rows up, or compute as they go
_OWNER = "codebook_flatbuffer"


@dataclasses.dataclass(frozen=True)
class CodebookFlatbuffer:
    """A file whose kernels are looked up at run time, and what that costs.

    content: the file. bytes_before, bytes_after: of the files.
    kernels: name and stored bits per weight of each kernel that was rewritten.
    latency_ratio: time of a run, one thread, XNNPACK on / that of the original.
    """

    content: bytes
    bytes_before: int
    bytes_after: int
    kernels: dict[str, float]
    latency_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields but the content, as JSON takes them."""
        fields = dataclasses.asdict(self)
        del fields["content"]
        return fields

    def __str__(self) -> str:
        lines = [
            f"{self.bytes_before:,} bytes in {self.bytes_after:,}; a run takes "
            f"{self.latency_ratio:.2f}x the time",
            *(f"  {name:<32}{bits:>7.2f} bits per weight" for name, bits in self.kernels.items()),
        ]
        return "\n".join(lines)


def codebook_flatbuffer(flatbuffer: fb.Flatbuffer) -> CodebookFlatbuffer:
    """Rewrites kernels of at most 256 values as a codebook and indices; the outputs stay equal.

    A kernel of at most 16 values is stored as one byte for two weights (8 bits / 2), which at run
    time goes through CAST -> GATHER (of a table of pairs) -> RESHAPE into the operator; a float32
    kernel of up to 256 values, or one too small for such a table, as one byte for each weight. Only
    kernels that get smaller are rewritten. The result is run beside the original, on reference
    kernels, before it is returned.

    The price is time: such an operator has no constant kernel, so XNNPACK leaves it, and the
    kernel is looked up anew in every run. To save bytes on disk only, use `tfc.pack`.

    Args:
        flatbuffer: the file's content or its path.

    Raises:
        InputError: the file cannot be read, or no kernel gets smaller.

        result = tfc.codebook_flatbuffer("model.tflite")
        print(result)
        open("small.tflite", "wb").write(result.content)
    """
    content = fb.read_bytes(flatbuffer)
    model = fb.parse(flatbuffer)
    rewritten = _Rewriting(model)
    kernels = rewritten.run()
    result = fb.pack(model) if kernels else content
    if not kernels or len(result) >= len(content):
        reasons = "; ".join(f"{name}: {why}" for name, why in rewritten.left.items())
        raise InputError(f"{_OWNER} makes no kernel smaller ({reasons or 'no constant kernel'}).")
    if not same_outputs(content, result, xnnpack=False):
        raise RuntimeError(f"The rewritten file computes something else: a defect of {_OWNER}().")
    ratio = measure_ratios([content, result])[1]
    return CodebookFlatbuffer(result, len(content), len(result), kernels, ratio)


class _Rewriting:
    """Rewrites the main graph in place; `left` says why a kernel stays as it is."""

    def __init__(self, model: schema.ModelT):
        self.model = model
        self.graph = model.subgraphs[0]
        self.left: dict[str, str] = {}

    def run(self) -> dict[str, float]:
        """Returns the stored bits per weight of each kernel that was rewritten."""
        bits, operators, looked_up = {}, [], {}
        for number, operator in enumerate(self.graph.operators or []):
            word = fb.operator_name(self.model, operator)
            place = KERNEL_INPUT.get(word)
            if place is not None and word not in _NEVER:
                index = int(operator.inputs[place])
                name = f"{number} {word}"
                if index not in looked_up and (table := self._table(index, name)) is not None:
                    looked_up[index], added = self._look_up(index, *table)
                    operators += added
                    indices = table[1]
                    weights = int(np.prod(fb.shape(self.graph.tensors[index])))
                    bits[name] = 8 * (indices.nbytes + table[0].nbytes) / weights
                if index in looked_up:
                    operator.inputs = np.array(operator.inputs)
                    operator.inputs[place] = looked_up[index]
            operators.append(operator)
        self.graph.operators = operators
        self._forget(set(looked_up))
        return bits

    def _table(self, index: int, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns codebook (k, 1) or table of pairs (k * k, 2), and uint8 indices; else None."""
        tensor = self.graph.tensors[index]
        values, kind = fb.data(self.model, tensor), fb.type_name(tensor)
        if values is None or tensor.sparsity is not None or kind not in _ITEMS:
            self.left[name] = f"its kernel is no dense constant of int8 or float32, but {kind}"
            return None
        # By their bits: -0.0 is not 0.0.
        codes = np.ascontiguousarray(values).reshape(-1).view(f"i{values.itemsize}")
        distinct, places = np.unique(codes, return_inverse=True)
        count = len(distinct)
        if count > _MOST_VALUES:
            self.left[name] = f"its kernel has {count} values"
            return None
        table, indices = distinct.view(values.dtype)[:, None], places.astype(np.uint8)
        if count <= _PAIRED and codes.size % 2 == 0:
            grid = np.stack(np.meshgrid(distinct, distinct, indexing="ij"), -1).reshape(-1, 2)
            if grid.nbytes + len(indices) // 2 < table.nbytes + len(indices):
                pairs = places.reshape(-1, 2) @ np.array([count, 1])
                table, indices = grid.view(values.dtype), pairs.astype(np.uint8)
        if table.nbytes + indices.nbytes + _OVERHEAD >= values.nbytes:
            self.left[name] = f"{count} values of {values.size} weights take no fewer bytes"
            return None
        return table, indices

    def _look_up(self, index: int, table: np.ndarray, indices: np.ndarray):
        """Adds the constants, and returns the tensor that replaces `index`, and its operators."""
        kernel = self.graph.tensors[index]
        codes = self._tensor(schema.TensorType.UINT8, indices.shape, indices)
        numbers = self._tensor(schema.TensorType.INT32, indices.shape)
        items = self._tensor(kernel.type, table.shape, table)
        flat = self._tensor(kernel.type, (len(indices), table.shape[1]))
        whole = np.array(fb.shape(kernel), np.int32)
        shape = self._tensor(schema.TensorType.INT32, whole.shape, whole)
        result = self._tensor(kernel.type, whole, None, kernel.quantization)
        added = [
            self._operator("CAST", [codes], numbers),
            self._operator("GATHER", [items, numbers], flat),
            self._operator("RESHAPE", [flat, shape], result),
        ]
        return result, added

    def _tensor(self, kind: int, shape, values=None, quantization=None) -> int:
        tensor = schema.TensorT(shape=np.array(shape, np.int32), type=kind, buffer=0)
        tensor.quantization = quantization
        if values is not None:
            tensor.buffer = len(self.model.buffers)
            data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
            self.model.buffers.append(schema.BufferT(data=data))
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _operator(self, word: str, inputs: list[int], output: int) -> schema.OperatorT:
        options = {"CAST": schema.CastOptionsT, "GATHER": schema.GatherOptionsT}.get(word)
        operator = schema.OperatorT(
            opcodeIndex=fb.operator_code(self.model, word),
            inputs=np.array(inputs, np.int32),
            outputs=np.array([output], np.int32),
        )
        if options is not None:
            operator.builtinOptions = options()
            operator.builtinOptionsType = getattr(
                schema.BuiltinOptions, options.__name__.removesuffix("T")
            )
        if word == "CAST":
            operator.builtinOptions.inDataType = schema.TensorType.UINT8
            operator.builtinOptions.outDataType = schema.TensorType.INT32
        return operator

    def _forget(self, replaced: set[int]) -> None:
        """Empties the constants that nothing reads any more."""
        read = {int(t) for o in self.graph.operators for t in o.inputs} | {
            int(t) for t in self.graph.outputs
        }
        for index in replaced - read:
            self.graph.tensors[index].buffer = 0
        used = {t.buffer for g in self.model.subgraphs for t in g.tensors or []}
        used |= {metadata.buffer for metadata in self.model.metadata or []}
        for number in range(len(self.model.buffers)):
            if number not in used:
                self.model.buffers[number] = schema.BufferT()
