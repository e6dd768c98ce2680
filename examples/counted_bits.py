"""What counting bits costs: one convolution with weights of two or three values, inputs of few.

    python examples/counted_bits.py [--targets cortex-m0plus cortex-m3 cortex-m4]

compiles a 3x3 convolution of 64 channels over 16x16 for speed, with the kernels that multiply and
with those that count, and prints instructions a multiply-accumulate, counted in QEMU; what both
compute is compared with onnxruntime. Inputs are the levels of 1 bit, 2 bits, and APoT of 2 bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tinyq
from tinyq.api import CompileOptions, lower_model
from tinyq.codegen import GenerateOptions, generate, write_program
from tinyq.plan import plan
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.profile import profile
from tinyq.verification.verify import VerifyOptions

CHANNELS, SIZE = 64, 16
WEIGHTS = {"binary": (-1, 1), "ternary": (-1, 0, 1)}
INPUTS = {"1 bit": (0, 255), "2 bits": (0, 85, 170, 255), "APoT of 2 bits": (0, 63, 126, 252)}


def network(weights: tuple[int, ...], levels: tuple[int, ...]) -> onnx.ModelProto:
    """A table that gives the levels, then the convolution."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.array(weights, np.int8), (CHANNELS, CHANNELS, 3, 3))
    constants = {
        "grid": np.float32(0.05), "zero": np.uint8(0), "level": np.float32(0.004),
        "table": np.array(levels, np.uint8)[np.arange(256) * len(levels) // 256],
        "weights": drawn.astype(np.int8), "step": np.float32(0.02), "none": np.int8(0),
        "out": np.float32(0.25), "middle": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "grid", "zero"], ["q"]),
        helper.make_node("Cast", ["q"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "level", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weights", "step", "none"], ["w"]),
        helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("QuantizeLinear", ["y", "out", "middle"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "out", "middle"], ["result"]),
    ]
    shape = [1, CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measured(path: Path, folder: Path, target: str, kernel: str) -> float:
    """Instructions a multiply-accumulate of the convolution with ``kernel``."""
    graph, _, kept = lower_model(path, CompileOptions(target))
    (conv,) = [node.name for node in graph.nodes if node.op == "conv2d"]
    chosen = select(graph, load_core(target), Goal.SPEED, {conv: kernel})
    program = generate(chosen, plan(chosen), "counted", GenerateOptions(model=kept))
    write_program(program, folder)
    if not tinyq.verify(folder, VerifyOptions(random=2)).equal:
        raise SystemExit(f"{kernel} on {target} differs from onnxruntime")
    (layer,) = [layer for layer in profile(folder).layers if layer.macs]
    return layer.instructions / layer.macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=["cortex-m0plus", "cortex-m3", "cortex-m4"])
    args = parser.parse_args()
    heads = [f"{target}: multiplied | counted" for target in args.targets]
    print("| input | weights | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|---|" * len(args.targets))
    fastest = {"cortex-m4": "conv2d_s8_dsp"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        for name, levels in INPUTS.items():
            for kind, weights in WEIGHTS.items():
                onnx.save(network(weights, levels), path)
                cells = [
                    f"{measured(path, Path(folder) / 'c', target, kernel):.2f}"
                    for target in args.targets
                    for kernel in (fastest.get(target, "conv2d_s8_columns"), "conv2d_s8_counts")
                ]
                print(f"| {name} | {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
