"""Integers of 4 and 2 bits and QONNX's nodes: the converted file computes what the given one says.

Oracles: onnxruntime on the file as it was given (narrow types), and QONNX's definition in numpy.
"""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from agreement import Model, assert_reference, draw_inputs
from onnx import helper, numpy_helper
from qdq import Array, Qdq

import tinyq
from tinyq.errors import TinyqError
from tinyq.frontends.onnx import load_model, standardise
from tinyq.frontends.oracle import OrtOracle
from tinyq.ops.packed import encoding_of
from tinyq.verification.verify import VerifyOptions

NARROW = {"int4": (-8, 7, 21), "uint4": (0, 15, 21), "int2": (-2, 1, 25), "uint2": (0, 3, 25)}


def narrow_net(name: str, op: str, *, channels: bool, activation: bool) -> onnx.ModelProto:
    """One layer with weights of a narrow type, and if asked an activation of it behind."""
    low, high, opset = NARROW[name]
    kind = np.dtype(getattr(ml_dtypes, name))
    rng = np.random.default_rng(len(op) + high)
    b = Qdq(opset=opset)
    shape = (8, 4, 3, 3) if op == "Conv" else (8, 12)
    weights = rng.integers(low, high + 1, shape).astype(kind)
    # Irrational steps: no float result lies on a half.
    scale = rng.uniform(0.05, 0.1, 8 if channels else ()).astype(np.float32)
    zero = np.full(scale.shape, 0 if low < 0 else high // 2, kind)
    attributes = {"axis": 0} if channels else {}
    w = b.op("DequantizeLinear", b.const(weights), b.const(scale), b.const(zero), **attributes)
    x = b.x((1, 4, 6, 6) if op == "Conv" else (1, 12), 0.0513, 3)
    y = b.op("Conv", x, w, pads=[1] * 4) if op == "Conv" else b.op("Gemm", x, w, transB=1)
    if activation:
        step = [b.const(np.float32(0.217)), b.const(np.asarray(1 if low == 0 else -1, kind))]
        y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, *step), *step)
    return b.end(y, 0.0731, -2).model()


def standard(given: onnx.ModelProto) -> onnx.ModelProto:
    converted = onnx.ModelProto()
    converted.CopyFrom(given)
    standardise(converted)
    return converted


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_types_equal_onnxruntime(
    name: str, op: str, channels: bool, activation: bool
) -> None:
    given = narrow_net(name, op, channels=channels, activation=activation)
    model = Model(name, standard(given))
    stored = [t for t in model.proto.graph.initializer if t.data_type in _narrow_types()]
    assert not stored
    assert_reference(model, 4)
    as_given = OrtOracle(given, model.graph, integer_kernels=False, optimise=False)
    for x in draw_inputs(model.graph, 4):
        assert np.array_equal(as_given.run(x)[0], model.reference(x)[0])
    layer = next(n for n in model.graph.nodes if n.op in ("conv2d", "dense"))
    encoding = encoding_of(layer.input(1))
    assert encoding is not None
    # uint2 with a zero point of 1 has -1..2: no signed integers of two bits.
    assert encoding.bits == (2 if "2" in name else 4)


def _narrow_types() -> set[int]:
    proto = onnx.TensorProto
    return {proto.INT4, proto.UINT4, proto.INT2, proto.UINT2}


def test_narrow_output_and_type_by_attribute() -> None:
    b = Qdq(opset=23)
    y = b.op("Relu", b.x((1, 6), 0.05))
    b.output(b.op("QuantizeLinear", y, b.const(0.31), output_dtype=onnx.TensorProto.UINT4))
    model = Model("attribute", standard(b.model()))
    wide = b.op("Cast", b.outputs.pop().name, to=onnx.TensorProto.UINT8)
    b.output(wide)  # numpy has no type of 4 bits
    given = OrtOracle(b.model(), model.graph, optimise=False)
    for x in draw_inputs(model.graph, 4):
        assert np.array_equal(given.run(x)[0], model.reference(x)[0])
        assert np.array_equal(model.oracle(x)[0], model.reference(x)[0])


def test_narrow_inputs_are_refused() -> None:
    b = Qdq(opset=21)
    x = b.input((1, 6))
    b.inputs[0].type.tensor_type.elem_type = onnx.TensorProto.INT4
    zero = b.const(np.zeros((), ml_dtypes.int4))
    b.end(b.op("Relu", b.op("DequantizeLinear", x, b.const(0.1), zero)))
    with pytest.raises(TinyqError, match=r"TQ204.*4 or 2 bits"):
        standardise(b.model())


@pytest.mark.parametrize("op", ["DequantizeLinear", "MatMulNBits"])
def test_blocked_quantization_is_refused(op: str) -> None:
    b = Qdq(opset=21)
    x = b.x((1, 32), 0.05)
    if op == "MatMulNBits":
        packed, scales = np.zeros((8, 2, 8), np.uint8), np.ones(16, np.float32)
        y = b.op(
            op, x, b.const(packed), b.const(scales), domain="com.microsoft", K=32, N=8, bits=4,
            block_size=16,
        )  # fmt: skip
    else:
        weights = np.ones((32, 8), ml_dtypes.int4)
        scales = b.const(np.ones((2, 8), np.float32))
        y = b.op("MatMul", x, b.op(op, b.const(weights), scales, axis=0, block_size=16))
    model = standard(b.end(y).model())
    with pytest.raises(TinyqError, match=r"blocked quantization: one scale for every 16"):
        _ = Model("blocked", model).graph


# --- QONNX ----------------------------------------------------------------------------------------


def quant_by_definition(
    x: Array, scale: Array, zero: float, bits: int, signed: int, narrow: int, mode: str
) -> Array:
    """QONNX's IntQuant as its document states it, element by element in float32."""
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    y = np.clip((x / scale + np.float32(zero)).astype(np.float32), low, high)
    whole, away = np.floor(y), np.sign(y) * np.ceil(np.abs(y))
    toward = np.sign(y) * np.floor(np.abs(y))
    half = np.abs(y) - np.abs(toward) == 0.5
    nearest = np.where(np.abs(y - toward) < 0.5, toward, away)
    rounded = {
        "ROUND": np.where(half, 2 * np.round(y / 2), nearest),
        "CEIL": -np.floor(-y),
        "FLOOR": whole,
        "UP": away,
        "DOWN": toward,
        "HALF_UP": np.where(half, away, nearest),
        "HALF_DOWN": np.where(half, toward, nearest),
    }[mode]
    return ((rounded - zero) * scale).astype(np.float32)


def quant(b: Qdq, x: str, scale: Array, zero: float, bits: int, **attributes: object) -> str:
    constants = [b.const(np.asarray(v, np.float32)) for v in (scale, zero, bits)]
    return b.op("Quant", x, *constants, domain="qonnx.custom_op.general", **attributes)


def with_domain(b: Qdq) -> onnx.ModelProto:
    model = b.model()
    model.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    return model


def constant_of(model: onnx.ModelProto, name: str) -> Array:
    """The reals of a converted constant: what its DequantizeLinear gives."""
    node = next(n for n in model.graph.node if name in n.output)
    assert node.op_type == "DequantizeLinear"
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    integers, scale, zero = (arrays[name] for name in node.input)
    if scale.ndim:
        axis = next(a.i for a in node.attribute if a.name == "axis")
        shape = [-1 if k == axis else 1 for k in range(integers.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return ((integers.astype(np.int32) - zero.astype(np.int32)).astype(np.float32)) * scale


@pytest.mark.parametrize("mode", ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("bits", "narrow"), [(8, 0), (4, 1), (3, 0), (2, 1), (17, 0)])
def test_constants_follow_the_definition(mode: str, signed: int, bits: int, narrow: int) -> None:
    rng = np.random.default_rng(bits)
    weights = rng.normal(0, 3, (6, 5)).astype(np.float32)
    weights[0] = (-2.5, -1.5, 0.5, 1.5, 40.0)
    scale = np.array([1, 0.5, 0.25, 0.3, 0.7, 1.1], np.float32).reshape(6, 1)
    b = Qdq()
    y = quant(b, b.const(weights), scale, 0, bits, signed=signed, narrow=narrow, rounding_mode=mode)
    b.output(b.op("MatMul", b.x((1, 6)), y))
    got = constant_of(standard(with_domain(b)), y)
    assert np.array_equal(got, quant_by_definition(weights, scale, 0, bits, signed, narrow, mode))


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "zero"),
    [
        (8, 1, 0, 0), (8, 1, 1, 0), (8, 0, 0, 128), (4, 0, 0, 0), (4, 1, 1, 2), (2, 0, 0, 0),
        (1, 0, 0, 0),
    ],
)  # fmt: skip
def test_activations_follow_the_definition(bits: int, signed: int, narrow: int, zero: int) -> None:
    b = Qdq()
    scale = np.float32(0.17)
    y = quant(b, b.x((1, 1024), 0.031), scale, zero, bits, signed=signed, narrow=narrow)
    b.output(b.q(y, 0.085))
    model = Model("activation", standard(with_domain(b)))
    assert_reference(model, 3)
    for x in draw_inputs(model.graph, 4):
        real = (x[model.graph.inputs[0].name].astype(np.float32)) * np.float32(0.031)
        wanted = quant_by_definition(real, scale, zero, bits, signed, narrow, "ROUND")
        wanted = np.clip(np.rint(wanted / np.float32(0.085)), -128, 127)
        assert np.array_equal(model.reference(x)[0], wanted)


def qonnx_net(seed: int = 3) -> Qdq:
    """Input of 8 bits, a ternary convolution, 4-bit activations, a binary dense layer."""
    rng = np.random.default_rng(seed)
    b = Qdq()
    b.inputs.append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, 6, 6)))
    x = quant(b, "x", np.float32(0.04), 0, 8, signed=1, narrow=0)
    steps = rng.uniform(0.05, 0.2, (8, 1, 1, 1)).astype(np.float32)
    w = b.const(rng.normal(0, 0.15, (8, 3, 3, 3)).astype(np.float32))
    w = quant(b, w, steps, 0, 2, signed=1, narrow=1)
    y = b.op("Relu", b.op("Conv", x, w, b.const(rng.normal(0, 0.1, 8).astype(np.float32))))
    y = quant(b, y, np.float32(0.07), 0, 4, signed=0, narrow=0)
    y = b.op("Flatten", b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    w2 = b.const(rng.normal(0, 1, (32, 5)).astype(np.float32))
    w2 = b.op("BipolarQuant", w2, b.const(0.09), domain="qonnx.custom_op.general")
    y = quant(b, b.op("MatMul", y, w2), np.float32(0.06), 0, 8, signed=1, narrow=0)
    b.output(y)
    return b


def test_qonnx_network(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(with_domain(qonnx_net()), str(path))
    compiled = tinyq.compile(path, output=tmp_path / "out", target="cortex-m4", optimize="size")
    layers = [n for n in compiled.graph.nodes if n.op in ("conv2d", "dense")]
    names = [encoding_of(n.input(1)) for n in layers]
    assert [e.name for e in names if e] == ["ternary", "binary"]
    assert tinyq.verify(tmp_path / "out", VerifyOptions(random=5)).equal
    assert not [o for o in load_model(path).opset_import if "qonnx" in o.domain]


def test_bipolar_activation() -> None:
    b = Qdq()
    y = b.op("BipolarQuant", b.x((1, 256), 0.031), b.const(0.5), domain="onnx.brevitas")
    b.output(b.q(y, 0.25))
    model = Model("sign", standard(with_domain(b)))
    assert_reference(model, 3)
    (x,) = model.graph.inputs
    every = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
    assert np.array_equal(model.reference({x.name: every})[0], np.where(every >= 0, 2, -2))


def refused_quant(**changes: object) -> TinyqError:
    given = {"scale": np.float32(0.1), "zero": 0.0, "bits": 4, "signed": 1, "narrow": 0, **changes}
    b = Qdq()
    y = quant(b, b.x((1, 6)), given.pop("scale"), given.pop("zero"), given.pop("bits"), **given)
    b.end(y)
    with pytest.raises(TinyqError) as caught:
        standardise(with_domain(b))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 12}, "an activation of 12 bits"),
        ({"bits": 2.5}, "a width of"),
        ({"bits": 40}, "a width of"),
        ({"bits": 32, "signed": 0}, "unsigned integers of 32 bits"),
        ({"zero": 0.5}, "no integer"),
        ({"zero": 200}, "outside of int8"),
        ({"rounding_mode": "FLOOR"}, "FLOOR of an activation"),
        ({"rounding_mode": "STOCHASTIC"}, "rounding_mode=STOCHASTIC"),
        ({"scale": np.ones((2, 3), np.float32)}, r"scales of shape \[2, 3\]"),
    ],
)
def test_refusals(changes: dict[str, object], words: str) -> None:
    caught = refused_quant(**changes)
    assert {d.code for d in caught.diagnostics} == {"TQ203"}
    assert re.search(words, str(caught)), str(caught)
