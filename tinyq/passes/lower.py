"""Lowers a QDQ graph to the integer stage: one node for each island of float operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import DType, Graph, Node, Origin, QuantParams, Stage, TensorType, Value, check
from tinyq.ir.graph import without_dead_nodes
from tinyq.ops.add import lower_add
from tinyq.ops.arg_max import lower_arg_max, lower_index_cast
from tinyq.ops.average_pool2d import lower_mean
from tinyq.ops.concat import lower_concat
from tinyq.ops.conv2d import lower_conv
from tinyq.ops.conv_transpose import lower_conv_transpose
from tinyq.ops.dense import lower_dense
from tinyq.ops.depth_to_space import lower_depth_to_space, lower_space_to_depth
from tinyq.ops.extremum import lower_extremum
from tinyq.ops.lowering import Emitter, Evaluate, Island, LowerRule, QuantizedConstant, Source
from tinyq.ops.lut import UNARY, lower_table, lower_unary
from tinyq.ops.matmul import lower_matmul
from tinyq.ops.max_pool2d import lower_max_pool, lower_whole_max
from tinyq.ops.mul import lower_mul
from tinyq.ops.pad import lower_pad
from tinyq.ops.resize_nearest import lower_resize
from tinyq.ops.slice import lower_gather, lower_slice, lower_split
from tinyq.ops.softmax import lower_softmax
from tinyq.ops.transpose import TransposeAttrs
from tinyq.passes.lower_dynamic import OPERATORS, DynamicLowering

MoveRule = Callable[[Emitter, Node, tuple[Value, ...]], tuple[Value, ...]]

CORES: dict[str, LowerRule] = {
    "Conv": lower_conv,
    "ConvTranspose": lower_conv_transpose,
    "Gemm": lower_dense,
    "MatMul": lower_dense,
    "AveragePool": lower_mean,
    "GlobalAveragePool": lower_mean,
    "ReduceMean": lower_mean,
    "Softmax": lower_softmax,
}
"""Operators that compute more than one element at a time: at most one an island."""

BINARIES: dict[str, LowerRule] = {
    "Add": lower_add,
    "Sub": lower_add,
    "Mul": lower_mul,
    "Max": lower_extremum,
    "Min": lower_extremum,
}
"""Elementwise operators of two activations; with one activation they become a table."""


def _lower_transpose(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    rank = len(inputs[0].type.shape)
    perm = node.attrs.get("perm") or tuple(reversed(range(rank)))
    out = inputs[0].type.with_shape(node.output.type.shape)
    return (emitter.emit("transpose", node.name, inputs, out, TransposeAttrs(tuple(perm))),)


def _lower_reshape(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    shape = node.output.type.shape
    if inputs[0].type.shape == shape:
        return inputs
    return (emitter.emit("reshape", node.name, inputs, inputs[0].type.with_shape(shape)),)


MOVES: dict[str, MoveRule] = {
    "Transpose": _lower_transpose,
    "Reshape": _lower_reshape,
    "Flatten": _lower_reshape,
    "Squeeze": _lower_reshape,
    "Unsqueeze": _lower_reshape,
    "Slice": lower_slice,
    "Split": lower_split,
    "Gather": lower_gather,
    "Concat": lower_concat,
    "Pad": lower_pad,
    "MaxPool": lower_max_pool,
    "GlobalMaxPool": lower_whole_max,
    "ReduceMax": lower_whole_max,
    "Resize": lower_resize,
    "DepthToSpace": lower_depth_to_space,
    "SpaceToDepth": lower_space_to_depth,
    "ArgMax": lower_arg_max,
    "Cast": lower_index_cast,
}
"""Operators on integers that move data."""

_BYTES = (DType.INT8, DType.UINT8)
_ACTIVATIONS = (*_BYTES, DType.INT16)
_REMEDY = "Quantize activations to int8, uint8 or int16, each tensor with one scale."
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def lower(graph: Graph, evaluate: Evaluate, oracle: str = "ort") -> tuple[Graph, tuple[str, ...]]:
    """The integer graph of a commuted QDQ graph, and notes on choices that were made.

    ``evaluate`` runs islands by the oracle on chosen integers. Raises TinyqError with a diagnostic
    for every node that cannot be compiled.
    """
    lowering = _Lowering(graph, Emitter(evaluate, oracle))
    result = lowering.run()
    return check(without_dead_nodes(result)), tuple(lowering.emitter.notes)


def _array_quant(node: Node) -> QuantParams:
    """Parameters of a Q or DQ node as stored, checked to be usable."""
    scales = np.asarray(node.input(1).array, np.float32).reshape(-1)
    zero = node.optional_input(2)
    zeros = np.zeros(1, np.int64) if zero is None else zero.array.astype(np.int64).reshape(-1)
    zeros = np.broadcast_to(zeros, scales.shape) if zeros.size == 1 else zeros
    if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
        raise TinyqError(_bad(node, f"the scale {scales.min():g} is not a positive number"))
    axis = None
    if scales.size > 1:
        axis = int(node.attrs.get("axis", 1))
    return QuantParams(tuple(map(float, scales)), tuple(map(int, zeros)), axis)


def _bad(node: Node, found: str) -> Diagnostic:
    return Diagnostic("TQ204", found, _REMEDY, node.name, node.op)


def _unfit(value: Value, dtype: DType, quant: QuantParams | None) -> str:
    scales = "" if quant is None or quant.is_per_tensor else " with several scales"
    return f"the input '{value.name}' is {dtype.value}{scales}"


class _Lowering:
    def __init__(self, graph: Graph, emitter: Emitter) -> None:
        self.graph = graph
        self.emitter = emitter
        self.integers: dict[Value, Value] = {}
        self.refused: set[Value] = set()
        self.dynamic = DynamicLowering(graph, emitter, self.integers, self.refused)

    def run(self) -> Graph:
        inputs = tuple(self._input(value) for value in self.graph.inputs)
        for node in self.graph.nodes:
            self._node(node)
        outputs = [found for value in self.graph.outputs for found in self._outputs(value)]
        self._refuse_unknown()
        if self.emitter.refusals:
            raise TinyqError(_once(self.emitter.refusals))
        return Graph(
            self.graph.name,
            Stage.INTEGER,
            inputs,
            tuple(outputs),
            tuple(self.emitter.nodes),
            self._origins(),
        )

    def _origins(self) -> tuple[Origin, ...]:
        computed = {value for node in self.emitter.nodes for value in node.outputs}
        return tuple(
            Origin(
                of.name,
                value,
                value.type.shape,
                tuple(range(len(value.type.shape))),
                128 if of.type.dtype is DType.UINT8 else 0,
            )
            for of, value in self.integers.items()
            if value in computed and value.type.dtype in (DType.INT8, DType.INT16, DType.INT32)
        )

    # --- the edges --------------------------------------------------------------------------------

    def _input(self, value: Value) -> Value:
        self.emitter.unique(value.name)
        if value.type.dtype is DType.FLOAT32:
            return self._float_input(value)
        quant = self._reader_quant(value)
        if value.type.dtype not in _ACTIVATIONS or not (quant is None or quant.is_per_tensor):
            self._refuse_edge(value, _unfit(value, value.type.dtype, quant), "TQ204")
            self.refused.add(value)
            return Value(value.name, TensorType(value.type.shape, DType.INT8))
        stored = Value(value.name, TensorType(value.type.shape, value.type.dtype, quant))
        self.integers[value] = self._rebased(stored, value.name)
        return stored

    def _float_input(self, value: Value) -> Value:
        """A float input becomes the integers that its one QuantizeLinear gives."""
        users = self.graph.uses(value)
        quantizers = [node for node in users if node.op == "QuantizeLinear"]
        if self.dynamic.values and not quantizers:
            self.dynamic.refuse_input(value)
            return Value(value.name, TensorType(value.type.shape, DType.INT8))
        if len(quantizers) != 1 or len(users) != 1:
            self._refuse_edge(value, f"the float input '{value.name}' is not quantized once")
            return Value(value.name, TensorType(value.type.shape, DType.INT8))
        dtype = quantizers[0].output.type.dtype
        quant = _array_quant(quantizers[0])
        if dtype not in _ACTIVATIONS or not quant.is_per_tensor:
            self._refuse_edge(value, _unfit(value, dtype, quant), "TQ204")
            return Value(value.name, TensorType(value.type.shape, DType.INT8))
        stored = Value(value.name, TensorType(value.type.shape, dtype, quant))
        self.integers[quantizers[0].output] = self._rebased(stored, value.name)
        return stored

    def _refuse_edge(self, value: Value, found: str, code: str = "TQ202") -> None:
        self.emitter.refusals.append(
            Diagnostic(
                code, found, "Quantize it to int8, uint8 or int16 by one QuantizeLinear.",
                value.name, "input",
            )
        )  # fmt: skip

    def _rebased(self, stored: Value, name: str) -> Value:
        if stored.type.dtype is not DType.UINT8:
            return stored
        quant = _rebase(stored.type.quant, DType.UINT8)
        type_ = TensorType(stored.type.shape, DType.INT8, quant)
        return self.emitter.emit("rebase", f"{name}:int8", (stored,), type_)

    def _reader_quant(self, value: Value) -> QuantParams | None:
        """Quantization of an integer input, from the DequantizeLinear that reads it."""
        pending, seen = [value], set()
        while pending:
            current = pending.pop()
            for node in self.graph.uses(current):
                if node.op == "DequantizeLinear":
                    return _array_quant(node)
                if node.op in MOVES and node not in seen:
                    seen.add(node)
                    pending += node.outputs
        return None

    def _outputs(self, value: Value) -> tuple[Value, ...]:
        """The integers behind an output, and their scale where that is found at run time."""
        if value in self.dynamic.values and value.type.dtype is DType.FLOAT32:
            try:
                return () if value in self.refused else self.dynamic.output(value)
            except TinyqError as problem:
                self.emitter.refusals += problem.diagnostics
                return ()
        found = self._output(value)
        return () if found is None else (found,)

    def _output(self, value: Value) -> Value | None:
        """The integers behind an output; a float output is stripped of its DequantizeLinear."""
        source = self.graph.producers.get(value)
        wanted = value
        if source is not None and source.op == "DequantizeLinear":
            wanted = source.input(0)
        found = self.integers.get(wanted)
        if found is None:
            if wanted not in self.refused and value.type.dtype is DType.FLOAT32:
                operator = source.op if source is not None else "output"
                name = source.name if source is not None else value.name
                self.emitter.refusals.append(
                    Diagnostic(
                        "TQ202", f"the output '{value.name}' is computed in float",
                        "Quantize the output: QuantizeLinear (and DequantizeLinear) at its end.",
                        name, operator,
                    )
                )  # fmt: skip
            return None
        if wanted.type.dtype is DType.UINT8:
            quant = found.type.quant
            back = None
            if quant is not None:
                back = QuantParams.per_tensor(quant.scale, quant.zero_point + 128)
            type_ = TensorType(found.type.shape, DType.UINT8, back)
            found = self.emitter.emit("rebase", f"{value.name}:uint8", (found,), type_)
        return found

    # --- nodes ------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        if self.dynamic.covers(node):
            self.dynamic.lower(node)
        elif node.op == "QuantizeLinear":
            if node.output not in self.integers:
                self._quantize(node)
        elif _is_lookup(node):
            self._look_up(node)
        elif self._is_index(node):
            pass  # What looks up reads through it.
        elif node.op in MOVES and node.output.type.dtype.is_integer:
            self._move(node)

    def _look_up(self, node: Node) -> None:
        """Gather of a constant by a tensor that is computed."""
        codes = node.input(1)
        cast = self.graph.producers.get(codes)
        if cast is not None and cast.op == "Cast":
            codes = cast.input(0)
        index = self.integers.get(codes)
        result = None
        if index is not None and codes.type.dtype in _BYTES:
            quant = self._reader_quant(node.output)
            dtype = node.output.type.dtype
            result = lower_table(self.emitter, node, index, codes.type.dtype, _rebase(quant, dtype))
        elif codes not in self.refused:
            self.emitter.refuse("TQ203", node, f"the index '{codes.name}' is not 8-bit integers")
        if result is None:
            self.refused.add(node.output)
        else:
            self.integers[node.output] = result

    def _is_index(self, node: Node) -> bool:
        """Whether a Cast only makes the index of look-ups."""
        users = self.graph.uses(node.output)
        return (
            node.op == "Cast"
            and bool(users)
            and node.output not in self.graph.outputs
            and all(_is_lookup(user) and user.input(1) is node.output for user in users)
        )

    def _move(self, node: Node) -> None:
        data = node.present_inputs if node.op == "Concat" else node.present_inputs[:1]
        if any(value in self.refused for value in data):
            self.refused.update(node.outputs)
            return
        inputs = []
        for value in data:
            found = self.integers.get(self._stored(node, value))
            if found is None and value.is_constant:
                found = self._constant_activation(value)
            if found is None:
                self.emitter.refuse("TQ202", node, f"its input '{value.name}' is not quantized")
                self.refused.update(node.outputs)
                return
            inputs.append(found)
        try:
            results = MOVES[node.op](self.emitter, node, tuple(inputs))
        except TinyqError as problem:
            self.emitter.refusals += problem.diagnostics
            self.refused.update(node.outputs)
            return
        self.integers.update(zip(node.outputs, results, strict=True))

    def _stored(self, node: Node, value: Value) -> Value:
        """The integers behind the reals that ArgMax compares: their order is the same."""
        source = self.graph.producers.get(value)
        if node.op != "ArgMax" or source is None or source.op != "DequantizeLinear":
            return value
        return source.input(0) if source.input(1).type.elements == 1 else value

    def _constant_activation(self, value: Value) -> Value | None:
        array = value.array
        if array.dtype == np.uint8:
            array = (array.astype(np.int16) - 128).astype(np.int8)
        known = array.dtype in (np.int8, np.int16)
        return self.emitter.constant(value.name, array) if known else None

    def _quantize(self, node: Node) -> None:
        try:
            if node.input(0) in self.dynamic.values:
                result = self._quantize_dynamic(node)
            else:
                island = self._island(node)
                result = None if island is None else self._lower_island(island)
        except TinyqError as problem:
            self.emitter.refusals += problem.diagnostics
            result = None
        if result is None:
            self.refused.add(node.output)
        else:
            self.integers[node.output] = result

    def _quantize_dynamic(self, node: Node) -> Value | None:
        """int8 by constant parameters of what dynamic quantization computes."""
        if node.input(0) in self.refused:
            return None
        dtype = node.output.type.dtype
        quant = _rebase(_array_quant(node), dtype)
        limits = (node.attrs.get("qmin"), node.attrs.get("qmax"))
        if dtype not in _ACTIVATIONS or quant is None or not quant.is_per_tensor or any(limits):
            raise TinyqError(_bad(node, f"a {dtype.value} activation behind dynamic layers that is "
                                  "narrowed or has several scales"))  # fmt: skip
        return self.dynamic.quantize_static(node, quant)

    def _lower_island(self, island: Island) -> Value | None:
        cores = [node for node in island.nodes if node.op in CORES]
        if len(cores) > 1:
            second = cores[-1]
            self.emitter.refuse(
                "TQ202", second, f"it computes from {cores[0].op} '{cores[0].name}' in float",
                "Quantize the tensor between the two operators.",
            )  # fmt: skip
            return None
        if cores:
            rule = CORES[cores[0].op]
            if cores[0].op == "MatMul" and not island.is_constant(cores[0].input(1)):
                rule = lower_matmul
            return rule(self.emitter, island, cores[0])
        if len(island.sources) == 1:
            return self._lower_one_source(island)
        binary = next((n for n in island.nodes if n.op in BINARIES), None)
        if len(island.sources) == 2 and binary is not None:
            return BINARIES[binary.op](self.emitter, island, binary)
        division = next((n for n in island.nodes if n.op == "Div"), None)
        if len(island.sources) == 2 and division is not None:
            self.emitter.refuse(
                "TQ203", division, "it divides by a computed tensor",
                "Multiply by its Reciprocal, quantized in between: `tinyq quantize` does so.",
            )  # fmt: skip
            return None
        where = binary or (island.nodes[0] if island.nodes else island.quantize)
        self.emitter.refuse(
            "TQ202", where, f"{len(island.sources)} tensors meet without quantization between",
            "Quantize every tensor between operators.",
        )  # fmt: skip
        return None

    def _lower_one_source(self, island: Island) -> Value | None:
        """A table, or, with a quantized constant tensor, an operator of two tensors."""
        source = next(iter(island.sources.values()))
        node = island.nodes[-1] if island.nodes else island.quantize
        constants = [c for c in island.constants.values() if c.quant.is_per_tensor]
        binary = next((n for n in island.nodes if n.op in BINARIES), None)
        large = any(c.integers.size > 1 for c in constants)
        if large and binary is not None and (island.is_wide or not _channelwise(island)):
            return BINARIES[binary.op](self.emitter, island, binary)
        if source.value.type.shape != island.output_shape:
            self.emitter.refuse("TQ203", node, "a constant broadcasts the tensor to a larger one")
            return None
        return lower_unary(self.emitter, island, node)

    def _island(self, quantize: Node) -> Island | None:
        """The float operators behind ``quantize``; None after refusals."""
        dtype = quantize.output.type.dtype
        if dtype not in _ACTIVATIONS:
            raise TinyqError(_bad(quantize, f"activations of type {dtype.value}"))
        nodes: dict[Node, None] = {}
        sources: dict[Value, Source] = {}
        constants: dict[Value, QuantizedConstant] = {}
        if not self._collect(quantize.input(0), nodes, sources, constants):
            return None
        quant = _rebase(_array_quant(quantize), dtype)
        if quant is None or not quant.is_per_tensor:
            raise TinyqError(_bad(quantize, "an activation with one scale a channel"))
        shift = 128 if dtype is DType.UINT8 else 0
        low, high = dtype.limits
        qmin = max(int(quantize.attrs.get("qmin", low)), low) - shift
        qmax = min(int(quantize.attrs.get("qmax", high)), high) - shift
        ordered = tuple(n for n in self.graph.nodes if n in nodes)
        return Island(quantize, ordered, sources, constants, quant, qmin, qmax, dtype)

    def _collect(
        self, value: Value, nodes: dict[Node, None], sources: dict[Value, Source],
        constants: dict[Value, QuantizedConstant],
    ) -> bool:  # fmt: skip
        if value.is_constant or value in sources or value in constants:
            return True
        node = self.graph.producers.get(value)
        if node is None:
            self.emitter.refusals.append(
                Diagnostic("TQ202", "the float input is used without quantization",
                           "Put one QuantizeLinear directly after the input.", value.name, "input")
            )  # fmt: skip
            return False
        if node.op == "DequantizeLinear":
            return self._dequantized(node, sources, constants)
        if node.op in MOVES and node.op not in UNARY:
            self.emitter.refuse(
                "TQ202", node, "its result is used in float",
                "Quantize its result: QuantizeLinear and DequantizeLinear behind it.",
            )  # fmt: skip
            return False
        if node.op not in CORES and node.op not in UNARY:
            return False  # Refused with every other such node in _refuse_unknown.
        nodes[node] = None
        # Every operand is visited even after a refusal, so that all refusals are found.
        found = [self._collect(v, nodes, sources, constants) for v in node.present_inputs]
        return all(found)

    def _dequantized(
        self, node: Node, sources: dict[Value, Source],
        constants: dict[Value, QuantizedConstant],
    ) -> bool:  # fmt: skip
        stored, dtype = node.input(0), node.input(0).type.dtype
        quant = _array_quant(node)
        if stored.is_constant:
            integers = stored.array.astype(np.int64)
            axis = quant.axis
            if axis is not None:
                quant = QuantParams(quant.scales, quant.zero_points, axis % max(integers.ndim, 1))
            constants[node.output] = QuantizedConstant(integers, quant, dtype)
            return True
        if stored in self.refused:
            return False
        found = self.integers.get(stored)
        rebased = _rebase(quant, dtype)
        if found is None or rebased is None or not quant.is_per_tensor:
            self.emitter.refuse("TQ204", node, f"the activation '{stored.name}' ({dtype.value})")
            return False
        sources[node.output] = Source(found, rebased, dtype)
        return True

    def _refuse_unknown(self) -> None:
        """One diagnostic for every operator that no rule knows."""
        known = {*CORES, *BINARIES, *MOVES, *UNARY, *_QDQ, *OPERATORS}
        for node in self.graph.nodes:
            if node.op not in known:
                self.emitter.refusals.insert(
                    0, Diagnostic("TQ201", f"{node.op} has no integer form", "", node.name, node.op)
                )


def _is_lookup(node: Node) -> bool:
    """Whether the node reads a constant table at positions that are computed."""
    return (
        node.op == "Gather"
        and node.input(0).is_constant
        and not node.input(1).is_constant
        and node.output.type.dtype.is_integer
    )


def _channelwise(island: Island) -> bool:
    """Whether the island's constants vary along one axis of at most 64 indices."""
    rank = len(island.output_shape)
    axes: dict[int, int] = {}
    for constant in island.constants.values():
        shape = constant.integers.shape
        axes |= {rank - len(shape) + k: size for k, size in enumerate(shape) if size > 1}
    return len(axes) <= 1 and all(size <= 64 for size in axes.values())


def _rebase(quant: QuantParams | None, dtype: DType) -> QuantParams | None:
    if quant is None or dtype is not DType.UINT8:
        return quant
    return QuantParams(quant.scales, tuple(z - 128 for z in quant.zero_points), quant.axis)


def _once(diagnostics: list[Diagnostic]) -> Mapping[Diagnostic, None]:
    return dict.fromkeys(diagnostics)
