"""Takes out of a `.tflite` file what no interpreter reads."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter


def slim(flatbuffer: fb.Flatbuffer, keep_names: bool = False) -> bytes:
    """Returns a smaller file that computes bit for bit the same.

    Identical vectors (scales, zero-points, shapes) and identical quantization records are
    written once, constants with equal bytes share a buffer, tensors without data share the empty
    one, and inner tensors lose their names. Names of inputs and outputs, signatures and metadata
    stay. The result is run beside the original on random inputs before it is returned.

    Args:
        flatbuffer: the file's content or its path.
        keep_names: leave the inner tensors' names in place.
    """
    content = fb.read_bytes(flatbuffer)
    model = fb.parse(content)
    _share_buffers(model)
    _share_quantization(model)
    if not keep_names:
        _drop_names(model)
    slimmed = fb.pack(model)
    if not same_outputs(content, slimmed):
        raise RuntimeError("The slimmed flatbuffer computes something else: a defect of slim().")
    return slimmed


def same_outputs(one: bytes, other: bytes, samples: int = 4, xnnpack: bool = True) -> bool:
    """Whether two files give bit-identical outputs on `samples` random inputs."""
    x = interpreter.noise(interpreter.start(one), samples)
    results = [interpreter.run_integers(content, x, xnnpack=xnnpack) for content in (one, other)]
    pairs = [r if isinstance(r, list) else [r] for r in results]
    return all(
        a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8))
        for a, b in zip(*pairs, strict=True)
    )


def _share_buffers(model: schema.ModelT) -> None:
    kept = [schema.BufferT()]  # the first buffer is the empty one, by convention
    places: dict[bytes, int] = {b"": 0}

    def place(index: int) -> int:
        data = model.buffers[index].data
        content = b"" if data is None else data.tobytes()
        if content not in places:
            places[content] = len(kept)
            kept.append(model.buffers[index])
        return places[content]

    for graph in model.subgraphs:
        for tensor in graph.tensors or []:
            tensor.buffer = place(tensor.buffer)
    for metadata in model.metadata or []:
        metadata.buffer = place(metadata.buffer)
    model.metadataBuffer = None
    model.buffers = kept


def _share_quantization(model: schema.ModelT) -> None:
    """Equal records become one; one without a scale, which says nothing, is left out."""
    records: dict[tuple, _Once] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors or []:
            q = tensor.quantization
            if q is None or q.details is not None:
                continue
            vectors = (q.min, q.max, q.scale, q.zeroPoint)
            if all(v is None or len(v) == 0 for v in vectors):
                tensor.quantization = None
                continue
            parts = tuple(None if v is None else np.asarray(v).tobytes() for v in vectors)
            key = (*parts, q.quantizedDimension)
            tensor.quantization = records.setdefault(key, _Once(q))


def _drop_names(model: schema.ModelT) -> None:
    for graph in model.subgraphs:
        public = {*map(int, graph.inputs), *map(int, graph.outputs)}
        for index, tensor in enumerate(graph.tensors or []):
            if index not in public:
                tensor.name = None


class _Once:
    """A table that is packed once and then referred to."""

    def __init__(self, table):
        self._table = table
        self._offset: int | None = None

    def Pack(self, builder):  # noqa: N802 (the name that the schema's objects call)
        if self._offset is None:
            self._offset = self._table.Pack(builder)
        return self._offset
