"""Would XNNPACK's sparse kernels run? A report that says what each layer misses."""

import dataclasses
import re
from typing import Any

import keras

from tfcompress import graph
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import nchw
from tfcompress.tflite.convert import convert

WHOLE = "whole model"


@dataclasses.dataclass(frozen=True)
class SparseLayer:
    """One layer, or the whole model, against the conditions.

    layer: its name in the Keras model, or what the file says, or "" where names were dropped.
    operator: `number OPERATOR` in the file.
    role: start, inside or end of the part that the sparse kernels would compute; outside of it; or
        hinders: it would belong there and misses a condition.
    missed: the condition that it misses, "" if none. change: what would meet it.
    zeros: share of zeros in a 1x1 convolution's kernel, in [0, 1]; None for other layers.
    """

    layer: str
    operator: str
    role: str
    missed: str = ""
    change: str = ""
    zeros: float | None = None


@dataclasses.dataclass(frozen=True)
class SparseInference:
    """What `sparse_inference_report` found.

    eligible: whether the sparse kernels would run, on ARM and other CPUs without AVX.
    rows: one `SparseLayer` for each operator, after those about the whole model.
    weights, zeros: over the 1x1 convolutions that matter.
    """

    eligible: bool
    rows: tuple[SparseLayer, ...]
    weights: int
    zeros: int

    @property
    def missed(self) -> tuple[SparseLayer, ...]:
        """The rows that miss a condition."""
        return tuple(row for row in self.rows if row.missed)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON takes them."""
        return dataclasses.asdict(self) | {"rows": [dataclasses.asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        verdict = "would run" if self.eligible else "would not run"
        share = self.zeros / max(self.weights, 1)
        wide = max(len(row.layer) for row in self.rows) + 2
        lines = [
            f"XNNPACK's sparse kernels {verdict} on ARM: {share:.1%} zeros in {self.weights:,} "
            f"weights of 1x1 convolutions, {len(self.missed)} condition(s) missed",
            "",
            f"{'layer':<{wide}}{'operator':<24}{'role':<9}{'zeros':>7}  condition missed -> change",
        ]
        for row in self.rows:
            zeros = "" if row.zeros is None else f"{row.zeros:.1%}"
            missed = f"{row.missed} -> {row.change}" if row.missed else ""
            line = f"{row.layer:<{wide}}{row.operator:<24}{row.role:<9}{zeros:>7}  {missed}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def sparse_inference_report(model_or_flatbuffer: keras.Model | fb.Flatbuffer) -> SparseInference:
    """Says whether XNNPACK would compute the model with its sparse kernels, and what hinders it.

    The model stays as it is. Zeros in the weights save time only there: on ARM (and WebAssembly);
    on x86 XNNPACK leaves them off where the CPU has AVX, and no other kernel skips zeros.

    The conditions, of XNNPACK (`xnn_check_nchw_compatibility` and `xnn_subgraph_rewrite_for_nchw`
    in src/subgraph.c) and of its delegate (section "Sparse Inference" of
    tensorflow/lite/delegates/xnnpack/README.md); see Elsen 2020, "Fast Sparse ConvNets":

    * float, and at least one kernel stored sparse (scheme "sparse": DENSIFY operators);
    * it starts with a 3x3 convolution, stride 2, on 3 channels, padded by 1 on each side: Keras'
      `same` pads by 0 and 1, so `ZeroPadding2D(1)` and `valid`;
    * inside are only 1x1 convolutions with stride 1 and without groups; depthwise 3x3 or 5x5 with
      stride 1 or 2, padded by 1 or 2 on each side, multiplier 1, no dilation; Add and Multiply of
      two feature maps; elementwise activations (not PReLU); bilinear resizing; all of which
      XNNPACK must take from LiteRT;
    * it ends in GlobalAveragePooling2D (MEAN) or depth-to-space, and nothing leaves it before: a
      feature map that is also read outside hinders it, and a last layer inside whose result is
      read only outside makes a file that fails or computes garbage (`convert` refuses those);
    * more than 2/3 of the weights of its 1x1 convolutions, taken together, are zero.

    `GlobalAveragePooling2D(keepdims=True)` followed by Flatten and Dense also suits old runtimes,
    whose MEAN must keep its dimensions; they also know fewer activations.

    Args:
        model_or_flatbuffer: a built Keras model, judged as the file that `convert(model,
            scheme="sparse")` would be; or content or path of a `.tflite` file, judged as it is.

    Raises:
        InputError: a model that cannot be converted, a file that cannot be read or does not run.

        print(tfc.sparse_inference_report(model))
    """
    if isinstance(model_or_flatbuffer, keras.Model):
        content = convert(model_or_flatbuffer, scheme="float32", keep_names=True)
        return _report(content, True, graph.functional(model_or_flatbuffer).layers)
    content = fb.read_bytes(model_or_flatbuffer)
    return _report(content, nchw.stored_sparse(fb.parse(content)), [])


def _report(content: bytes, stored: bool, layers: list[keras.layers.Layer]) -> SparseInference:
    nodes = nchw.nodes(content)
    parts = nchw.parts(content, nodes)
    running = [p for p in parts if p.complete and not p.leaks and p.sparse_enough]
    region = _region(nodes, parts)
    counted = [node for node in nodes if node.number in region]
    weights, zeros = sum(n.weights for n in counted), sum(n.zeros for n in counted)
    misses = {node.number: (node.missed, node.change) for node in counted if not node.role}
    misses |= _neighbours(content, nodes, region)
    for part in running:
        misses = {number: miss for number, miss in misses.items() if number not in part.numbers}
    tensors = fb.parse(content).subgraphs[0].tensors
    rows = [
        SparseLayer(
            _layer(fb.tensor_name(tensors[node.output]), node.name, layers),
            f"{node.number} {node.name}",
            _role(node, region, misses),
            *misses.get(node.number, ("", "")),
            zeros=node.zeros / node.weights if node.weights else None,
        )
        for node in nodes
    ]
    whole = _whole(nodes, running, stored, weights, zeros)
    return SparseInference(bool(running) and stored, (*whole, *rows), weights, zeros)


def _role(node: nchw.Node, region: frozenset[int], misses: dict) -> str:
    if node.number in misses:
        return "hinders"
    return node.role if node.number in region else "outside"


def _whole(
    nodes: list[nchw.Node], running: list[nchw.Part], stored: bool, weights: int, zeros: int
) -> list[SparseLayer]:
    """Returns the rows about the whole model."""
    missed = {}
    if not any(node.role == nchw.START for node in nodes):
        change = "begin with ZeroPadding2D(1) and Conv2D(..., 3, strides=2, padding='valid')"
        missed["starts with a 3x3 convolution, stride 2, on 3 channels, padded by 1"] = change
    if not any(node.role == nchw.END for node in nodes):
        change = "use GlobalAveragePooling2D before the classifier"
        missed["ends in global average pooling or depth-to-space"] = change
    if not running and zeros * 3 <= weights * 2:
        condition = f"more than 2/3 zeros over the 1x1 convolutions (now {zeros:,} of {weights:,})"
        missed[condition] = "prune them, to 0.75 or more"
    elif not stored:
        missed["stores a kernel sparse"] = "export it with the scheme 'sparse'"
    return [SparseLayer(WHOLE, "", "", *pair) for pair in missed.items()]


def _region(nodes: list[nchw.Node], parts: list[nchw.Part]) -> frozenset[int]:
    """Returns the operators that would have to meet the conditions.

    They are those that the ENDs depend on, up to the STARTs and without what prepares the images
    before any convolution, and all that hang together with them. Without an END it is everything
    up to the last convolution.
    """
    makers = {node.output: node for node in nodes}
    after_convolution: set[int] = set()
    for node in nodes:
        before = [makers[t].number for t in node.inputs if t in makers]
        if "CONV" in node.name or after_convolution.intersection(before):
            after_convolution.add(node.number)
    ends = [node for node in nodes if node.role == nchw.END]
    pending = ends or [node for node in nodes if "CONV" in node.name]
    region: set[int] = set().union(*(part.numbers for part in parts))
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if node.number in seen:
            continue
        seen.add(node.number)
        if node.role != nchw.START:
            pending += [makers[t] for t in node.inputs if t in makers]
    return frozenset(region | (seen & after_convolution))


def _neighbours(
    content: bytes, nodes: list[nchw.Node], region: frozenset[int]
) -> dict[int, tuple[str, str]]:
    """Returns what hinders operators that are of the right kind: what they read or who reads."""
    read_by = nchw.readers(content, nodes)
    makers = {node.output: node.number for node in nodes}
    found = {}
    for node in nodes:
        if node.number not in region or not node.role:
            continue
        if node.role != nchw.START and any(makers.get(t) not in region for t in node.inputs):
            found[node.number] = "comes after the stem", "begin with the stem"
        if node.role != nchw.END and set(read_by[node.output]) - region:
            found[node.number] = (
                "is read inside the sparse part alone",
                "branch off behind the pooling",
            )
    return found


def _layer(tensor: str, operator: str, layers: list[keras.layers.Layer]) -> str:
    """Returns the layer that a tensor's name speaks of: `model_1/stem_1/convolution` -> stem.

    Names of fused operators are joined by semicolons; a convolution's own layer has a kernel.
    """
    scopes = [part.split("/") for part in reversed(tensor.split(";"))]
    segments = [segment for scope in scopes for segment in reversed(scope)]
    names = {layer.name for layer in layers}
    with_kernel = {layer.name for layer in layers if hasattr(layer, "kernel")}
    for known in (with_kernel, names) if "CONV" in operator else (names,):
        for segment in segments:
            for candidate in (re.sub(r"_\d+$", "", segment), segment):
                if candidate in known:
                    return candidate
    return scopes[0][-2] if len(scopes[0]) > 1 else ""
