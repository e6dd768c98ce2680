"""How compile time and peak memory grow with the size of the network.

    python examples/compile_speed.py [--target cortex-m4] [--optimize balanced]

Draws quantized networks of 10 thousand to 10 million weights and of 5 to 500 layers, compiles each
in a process of its own, and prints processor seconds a stage and the peak of memory as a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

STAGES = ("import", "lower", "select", "plan", "generate")


def dense_network(weights: int) -> list[tuple[int, ...]]:
    """Shapes [O, I] of four dense layers with about that many weights."""
    width = int((weights / 4) ** 0.5)
    return [(width, width)] * 4


def conv_network(layers: int) -> list[tuple[int, ...]]:
    """Shapes OIHW of alternating 3x3 and 1x1 convolutions with 16 channels."""
    return [(16, 16, 3, 3) if k % 2 == 0 else (16, 16, 1, 1) for k in range(layers)]


NETWORKS = {
    **{f"dense, {n:,} weights": dense_network(n) for n in (10_000, 100_000, 1_000_000, 10_000_000)},
    **{f"convolutions, {n} layers": conv_network(n) for n in (5, 20, 50, 100, 200, 500)},
}


def write_model(path: Path, shapes: list[tuple[int, ...]]) -> None:
    """A QDQ model with drawn int8 weights and int32 biases; every layer ends in Relu."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    conv = len(shapes[0]) == 4
    size = [1, shapes[0][1], 8, 8] if conv else [1, shapes[0][1]]
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    scale, zero = constant("s", np.float32(0.05)), constant("z", np.int8(-128))
    nodes.append(helper.make_node("QuantizeLinear", ["x", scale, zero], ["q"]))
    nodes.append(helper.make_node("DequantizeLinear", ["q", scale, zero], ["d"]))
    here = "d"
    for k, shape in enumerate(shapes):
        fan_in = int(np.prod(shape[1:]))
        weights = rng.integers(-127, 128, shape).astype(np.int8)
        w_scale = (rng.uniform(0.5, 1, shape[0]) / (60 * fan_in**0.5)).astype(np.float32)
        ws, wz = constant(f"ws{k}", w_scale), constant(f"wz{k}", np.zeros(shape[0], np.int8))
        bs = constant(f"bs{k}", (w_scale * np.float32(0.05)).astype(np.float32))
        bz = constant(f"bz{k}", np.zeros(shape[0], np.int32))
        w = constant(f"w{k}", weights)
        b = constant(f"b{k}", rng.integers(-2000, 2000, shape[0]).astype(np.int32))
        nodes.append(helper.make_node("DequantizeLinear", [w, ws, wz], [f"wd{k}"], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", [b, bs, bz], [f"bd{k}"], axis=0))
        inputs = [here, f"wd{k}", f"bd{k}"]
        if conv:
            pads = [shape[2] // 2] * 4
            nodes.append(helper.make_node("Conv", inputs, [f"y{k}"], pads=pads, name=f"layer{k}"))
        else:
            nodes.append(helper.make_node("Gemm", inputs, [f"y{k}"], transB=1, name=f"layer{k}"))
        nodes.append(helper.make_node("Relu", [f"y{k}"], [f"r{k}"]))
        nodes.append(helper.make_node("QuantizeLinear", [f"r{k}", scale, zero], [f"q{k}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{k}", scale, zero], [f"d{k}"]))
        here = f"d{k}"
    size_out = [1, shapes[-1][0], 8, 8] if conv else [1, shapes[-1][0]]
    graph = helper.make_graph(
        nodes, "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(here, TensorProto.FLOAT, size_out)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def peak_kilobytes() -> int:
    """Most memory that this process ever held (Linux; getrusage would count the parent's too)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def measure(path: Path, target: str, optimize: str) -> dict[str, float]:
    """Processor seconds a stage, and the peak of memory in MB, less that of the first imports."""
    from tinyq.codegen import GenerateOptions, generate
    from tinyq.frontends.onnx import import_model, load_model, opset
    from tinyq.frontends.ort import IslandEvaluator
    from tinyq.passes.pipeline import to_integer
    from tinyq.plan import plan
    from tinyq.select import Goal, select
    from tinyq.target import load_core

    found: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        found[stage] = time.process_time() - start

    core = load_core(target)
    before = peak_kilobytes()
    with timed("import"):
        proto = load_model(path)
        graph = import_model(proto, {}, str(path))
    with timed("lower"):
        lowered = to_integer(graph, IslandEvaluator(opset(proto)))
    with timed("select"):
        schedule = select(lowered.graph, core, Goal(optimize))
    with timed("plan"):
        memory = plan(schedule)
    with timed("generate"):
        program = generate(schedule, memory, "drawn", GenerateOptions())
    found["C (MB)"] = sum(map(len, program.files.values())) / 1e6
    found["memory (MB)"] = (peak_kilobytes() - before) / 1e3
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="cortex-m4")
    parser.add_argument("--optimize", default="balanced")
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.target, arguments.optimize)))
        return
    columns = (*STAGES, "total", "C (MB)", "memory (MB)")
    print("| network | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, shapes in NETWORKS.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "drawn.onnx"
            write_model(path, shapes)
            command = [sys.executable, __file__, "--measure", str(path)]
            command += ["--target", arguments.target, "--optimize", arguments.optimize]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout)
        found["total"] = sum(found[stage] for stage in STAGES)
        cells = (f"{found[c]:.0f}" if "memory" in c else f"{found[c]:.2f}" for c in columns)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
