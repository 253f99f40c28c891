"""Where XNNPACK would compute channel by channel (NCHW), as its sparse kernels need it.

A port of `xnn_subgraph_rewrite_for_nchw` (XNNPACK, src/subgraph.c) to operators of a `.tflite`
file. Operators that know the layout hang together in parts; a part switches to it as a whole.
"""

import collections
import dataclasses
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.delegation import delegated

# The role of an operator: it brings images into the layout, keeps it, or leads out of it.
START, INSIDE, END = "start", "inside", "end"
_SAME = schema.Padding.SAME
_UNARY = {
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG",
    "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
}  # fmt: skip
_UNPACKING = {"DENSIFY", "DEQUANTIZE"}
_CONVOLUTIONS = {"CONV_2D", "DEPTHWISE_CONV_2D"}
_AS_FLOAT = "export it with the scheme 'sparse'"
_PADDED = "put ZeroPadding2D({}) before it and set its padding to 'valid'"
_INSTEAD = {
    "AVERAGE_POOL_2D": "end in GlobalAveragePooling2D, or stride in a depthwise convolution",
    "MAX_POOL_2D": "stride in a depthwise convolution",
    "PRELU": "use ReLU or LeakyReLU",
    "PAD": "pad height and width alone, and only for the convolution that follows, with 'valid'",
    "CONCATENATION": "use Add",
    "SUB": "use Add",
}


@dataclasses.dataclass
class Node:
    """An operator as XNNPACK sees it: a PAD belongs to the convolution that it pads.

    number, name: of the operator, as in the file; pad: number of its PAD, or None.
    inputs: tensors computed at run time; output: the first tensor it computes.
    role: START, INSIDE, END, or "" where it misses a condition: `missed`, and what `change` helps.
    weights, zeros: of a 1x1 convolution's kernel, else 0.
    """

    number: int
    name: str
    inputs: list[int]
    output: int
    pad: int | None = None
    role: str = ""
    missed: str = ""
    change: str = ""
    weights: int = 0
    zeros: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Operators that switch together.

    complete: all conditions but the share of zeros hold. leaks: operators whose results would
    leave the layout without an END: XNNPACK does not notice; the file fails or computes garbage.
    """

    numbers: frozenset[int]
    weights: int
    zeros: int
    complete: bool
    leaks: tuple[int, ...]

    @property
    def sparse_enough(self) -> bool:
        return self.zeros * 3 > self.weights * 2


def stored_sparse(model: schema.ModelT) -> bool:
    """Returns whether a kernel is stored sparse: without one XNNPACK is not asked to look."""
    return any(
        fb.operator_name(model, operator) == "DENSIFY"
        for operator in model.subgraphs[0].operators or []
    )


def nodes(flatbuffer: fb.Flatbuffer) -> list[Node]:
    """Returns the operators of the main graph in order, each with its role."""
    model = fb.parse(flatbuffer)
    reader = _Reader(model, delegated(flatbuffer))
    return [reader.node(n) for n in range(len(reader.operators)) if not reader.is_hidden(n)]


def readers(flatbuffer: fb.Flatbuffer, found: list[Node]) -> dict[int, list[int | None]]:
    """Returns, by tensor, the numbers of the nodes that read it; an output of the model is None."""
    by_tensor: dict[int, list[int | None]] = collections.defaultdict(list)
    for node in found:
        for tensor in set(node.inputs):
            by_tensor[tensor].append(node.number)
    for tensor in fb.parse(flatbuffer).subgraphs[0].outputs:
        by_tensor[int(tensor)].append(None)
    return by_tensor


def parts(flatbuffer: fb.Flatbuffer, found: list[Node]) -> list[Part]:
    """Returns the parts that lead to an END, or leak."""
    makers = {node.output: node for node in found}
    read_by = readers(flatbuffer, found)
    leader = {node.number: node.number for node in found}

    def root(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for node in found:
        if node.role in (INSIDE, END):
            for tensor in node.inputs:
                if tensor in makers and makers[tensor].role:
                    leader[root(makers[tensor].number)] = root(node.number)
    members = collections.defaultdict(list)
    for node in found:
        if node.role:
            members[root(node.number)].append(node)
    return [
        _part(part, makers, read_by)
        for part in members.values()
        if any(node.role == END for node in part)
    ]


def _part(part: list[Node], makers: dict[int, Node], read_by: dict) -> Part:
    numbers = {node.number for node in part}
    # A START reads from outside; nobody else may.
    within = {node.number for node in part if node.role != START}
    closed = all(
        tensor in makers and makers[tensor].number in numbers
        for node in part
        if node.role != START
        for tensor in node.inputs
    )
    inner = [node for node in part if set(read_by[node.output]) & within]
    shared = any(set(read_by[node.output]) - within for node in inner)
    leaks = [n.number for n in part if n.role != END and not set(read_by[n.output]) & within]
    return Part(
        numbers=frozenset(numbers),
        weights=sum(node.weights for node in part),
        zeros=sum(node.zeros for node in part),
        complete=closed and not shared and any(node.role == START for node in part),
        leaks=tuple(leaks),
    )


class _Reader:
    """Reads one graph: what is constant, what is padded by what, which role each operator has."""

    def __init__(self, model: schema.ModelT, taken: list[bool]):
        self.model = model
        self.graph = model.subgraphs[0]
        self.operators = self.graph.operators or []
        self.names = [fb.operator_name(model, operator) for operator in self.operators]
        self.taken = taken
        self.makers = {int(t): n for n, o in enumerate(self.operators) for t in o.outputs}
        self.uses = collections.Counter(int(t) for o in self.operators for t in o.inputs)
        self.uses.update(int(t) for t in self.graph.outputs)
        self.pads = {
            int(operator.inputs[0]): pad
            for number, operator in enumerate(self.operators)
            if (pad := self._pad_of(number)) is not None
        }

    def is_hidden(self, number: int) -> bool:
        """Returns whether the operator is none at run time: it unpacks weights, or pads."""
        unpacks = self.names[number] in _UNPACKING and self._is_constant(
            self.operators[number].inputs[0]
        )
        return unpacks or number in self.pads.values()

    def node(self, number: int) -> Node:
        operator = self.operators[number]
        pad = self.pads.get(int(operator.inputs[0])) if len(operator.inputs) else None
        inputs = [int(t) for t in operator.inputs if t >= 0 and not self._is_constant(t)]
        if pad is not None:
            inputs[0] = int(self.operators[pad].inputs[0])
        node = Node(number, self.names[number], inputs, int(operator.outputs[0]), pad)
        node.role, node.missed, node.change = self._judge(node)
        if node.role == INSIDE and node.name == "CONV_2D":
            node.weights = math.prod(self._shape(operator.inputs[1]))
            node.zeros = node.weights - self._nonzeros(int(operator.inputs[1]))
        return node

    def _judge(self, node: Node) -> tuple[str, str, str]:
        """Returns role, condition missed and what to change."""
        operator = self.operators[node.number]
        tensors = [self.graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
        types = {fb.type_name(t) for t in tensors} - {"INT32", "INT64"}  # axes and paddings
        if types - {"FLOAT32", "FLOAT16"}:
            return "", f"computes in float (it has {', '.join(sorted(types))})", _AS_FLOAT
        if not self.taken[node.number]:
            return "", "is taken by XNNPACK", "use a layer that XNNPACK has, see measure_latency"
        if node.name == "CONV_2D":
            return self._judge_convolution(node)
        if node.name == "DEPTHWISE_CONV_2D":
            return self._judge_depthwise(node)
        spatial = len(self._shape(operator.inputs[0])) == 4
        if node.name == "DEPTH_TO_SPACE" or (node.name == "MEAN" and self._is_global(operator)):
            return END, "", ""
        if node.name == "RESIZE_BILINEAR" and min(self._shape(operator.inputs[0])[1:3]) > 1:
            return INSIDE, "", ""
        if node.name in _UNARY and spatial:
            return INSIDE, "", ""
        if node.name in ("ADD", "MUL"):
            if all(len(self._shape(t)) == 4 and not self._is_constant(t) for t in operator.inputs):
                return INSIDE, "", ""
            condition = "has two computed inputs of 4 dimensions"
            return "", condition, "fold the constant into a convolution, or drop it"
        known = "is an operator that XNNPACK computes channel by channel"
        return "", known, _INSTEAD.get(node.name, "leave it out, or move it behind the pooling")

    def _judge_convolution(self, node: Node) -> tuple[str, str, str]:
        operator = self.operators[node.number]
        options, kernel = operator.builtinOptions, self._shape(operator.inputs[1])
        channels = self._shape(operator.inputs[0])[3]
        size, strides, padding = self._window(node, kernel)
        pointwise = "is 1x1 with stride 1, or the stem"
        split = "split it into a depthwise and a 1x1 convolution"
        if kernel[3] != channels:
            return "", "has groups=1", split
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "", "has no dilation", "set dilation_rate=1"
        if size == (1, 1):
            if strides != (1, 1):
                change = "set strides=1 and stride in a depthwise convolution"
                return "", "1x1 convolutions have stride 1", change
            if padding != (0, 0, 0, 0):
                return "", "1x1 convolutions have no padding", "take the padding out"
            return INSIDE, "", ""
        if channels != 3:
            return "", pointwise, split
        if size != (3, 3) or strides != (2, 2):
            return "", "the stem is 3x3 with stride 2 on 3 channels", "make it so"
        if padding != (1, 1, 1, 1):
            return "", "the stem is padded by 1 on each side", _PADDED.format(1)
        return START, "", ""

    def _judge_depthwise(self, node: Node) -> tuple[str, str, str]:
        operator = self.operators[node.number]
        options, kernel = operator.builtinOptions, self._shape(operator.inputs[1])
        size, strides, padding = self._window(node, kernel)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "", "has no dilation", "set dilation_rate=1"
        if kernel[3] != self._shape(operator.inputs[0])[3]:
            return "", "has depth_multiplier=1", "set it so"
        if size not in ((3, 3), (5, 5)) or strides not in ((1, 1), (2, 2)):
            return "", "is 3x3 or 5x5 with stride 1 or 2", "make it so"
        each = size[0] // 2
        if padding != (each,) * 4:
            return "", f"is padded by {each} on each side", _PADDED.format(each)
        return INSIDE, "", ""

    def _window(
        self, node: Node, kernel: tuple[int, ...]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, ...] | None]:
        """Returns size, strides and padding (top, bottom, left, right; None: left to run time)."""
        options = self.operators[node.number].builtinOptions
        size, strides = (kernel[1], kernel[2]), (options.strideH, options.strideW)
        if node.pad is not None:
            before, after = self._paddings(node.pad)[1:3].T
            return size, strides, (before[0], after[0], before[1], after[1])
        if options.padding != _SAME:
            return size, strides, (0, 0, 0, 0)
        if strides != (1, 1):
            return size, strides, None
        top, left = (kernel[1] - 1) // 2, (kernel[2] - 1) // 2
        return size, strides, (top, kernel[1] - 1 - top, left, kernel[2] - 1 - left)

    def _pad_of(self, number: int) -> int | None:
        """Returns the number of the PAD that XNNPACK merges into this convolution."""
        operator = self.operators[number]
        if self.names[number] not in _CONVOLUTIONS or operator.builtinOptions.padding == _SAME:
            return None
        pad = self.makers.get(int(operator.inputs[0]))
        if pad is None or self.names[pad] != "PAD" or not self.taken[pad]:
            return None
        paddings = self._paddings(pad)
        alone = self.uses[int(operator.inputs[0])] == 1
        if not alone or paddings is None or len(paddings) != 4 or paddings[[0, 3]].any():
            return None
        return pad

    def _paddings(self, pad: int):
        return fb.data(self.model, self.graph.tensors[self.operators[pad].inputs[1]])

    def _is_global(self, operator: schema.OperatorT) -> bool:
        axes = fb.data(self.model, self.graph.tensors[operator.inputs[1]])
        spatial = len(self._shape(operator.inputs[0])) == 4
        return axes is not None and spatial and sorted(axes.reshape(-1) % 4) == [1, 2]

    def _shape(self, tensor: int) -> tuple[int, ...]:
        return fb.shape(self.graph.tensors[tensor])

    def _is_constant(self, tensor: int) -> bool:
        return fb.data(self.model, self.graph.tensors[self._stored(int(tensor))]) is not None

    def _stored(self, tensor: int) -> int:
        """Returns the tensor that holds the values, behind what unpacks them."""
        maker = self.makers.get(tensor)
        if maker is None or self.names[maker] not in _UNPACKING:
            return tensor
        return self._stored(int(self.operators[maker].inputs[0]))

    def _nonzeros(self, kernel: int) -> int:
        values = fb.data(self.model, self.graph.tensors[self._stored(kernel)])
        return 0 if values is None else int(np.count_nonzero(values))
