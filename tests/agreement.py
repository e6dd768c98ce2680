"""Runs one model three ways: onnxruntime, the integer reference, and its C on this machine.

C of many models is compiled by one command into one library, undefined behaviour trapped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
from codegen.host import UNDEFINED, WARNINGS, Instance, program_of, write
from qdq import Qdq

from tinyq.codegen import Program
from tinyq.errors import TinyqError
from tinyq.frontends.onnx import import_model, opset
from tinyq.frontends.oracle import OrtOracle
from tinyq.frontends.ort import IslandEvaluator
from tinyq.ir import AnyArray, Graph
from tinyq.passes.pipeline import Lowered, to_integer
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.reference import outputs

Inputs = Mapping[str, AnyArray]
Outputs = tuple[AnyArray, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """A model and what its compilation gives."""

    name: str
    proto: onnx.ModelProto
    arithmetic: str = "ort"

    @cached_property
    def lowered(self) -> Lowered:
        """The integer graph and notes."""
        graph = import_model(self.proto)
        return to_integer(graph, IslandEvaluator(opset(self.proto)), self.arithmetic)

    @property
    def graph(self) -> Graph:
        """The integer graph."""
        return self.lowered.graph

    def oracle(self, inputs: Inputs) -> Outputs:
        """What onnxruntime computes."""
        return self._ort.run(inputs)

    def plain_oracle(self, inputs: Inputs) -> Outputs:
        """What onnxruntime computes in float32, node by node as the model is written."""
        return self._plain.run(inputs)

    def real(self, inputs: Inputs, name: str) -> AnyArray:
        """A float tensor inside the model, as onnxruntime computes it node by node."""
        oracle = OrtOracle(
            self.proto, self.graph, integer_kernels=False, optimise=False, expose=(name,)
        )
        return oracle.run_exposed(inputs)[name]

    def reference(self, inputs: Inputs) -> Outputs:
        """What the integer reference computes."""
        return outputs(self.graph, inputs)

    @cached_property
    def _ort(self) -> OrtOracle:
        return OrtOracle(self.proto, self.graph)

    @cached_property
    def _plain(self) -> OrtOracle:
        return OrtOracle(self.proto, self.graph, integer_kernels=False, optimise=False)


def draw_inputs(graph: Graph, count: int, seed: int = 0) -> list[dict[str, AnyArray]]:
    """Integers of the whole range, the first two draws the lowest and the highest."""
    rng = np.random.default_rng(seed)
    drawn = []
    for k in range(count):
        inputs: dict[str, AnyArray] = {}
        for value in graph.inputs:
            low, high = value.type.dtype.limits
            if k < 2:
                array = np.full(value.type.shape, (low, high)[k])
            else:
                array = rng.integers(low, high + 1, value.type.shape)
            inputs[value.name] = array.astype(value.type.dtype.numpy)
        drawn.append(inputs)
    return drawn


def differences(model: Model, inputs: Sequence[Inputs], *, plain: bool = False) -> int:
    """Elements at which the reference differs from onnxruntime."""
    oracle = model.plain_oracle if plain else model.oracle
    return sum(count_different(model.reference(x), oracle(x)) for x in inputs)


def count_different(got: Outputs, wanted: Outputs) -> int:
    """Elements that differ; shapes and types must agree."""
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in wanted]
    return sum(int(np.sum(a != b)) for a, b in zip(got, wanted, strict=True))


def compile_all(
    models: Mapping[str, Graph], folder: Path, target: str = "cortex-m4",
    kernels: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Instance]:  # fmt: skip
    """Instances of C libraries by name; kernels for a DSP extension run on their portable twins.

    ``kernels``: of each model, the kernels that its nodes must use.
    """
    core = load_core(target)
    programs: dict[str, Program] = {}
    units = []
    for name, graph in models.items():
        forced = kernels[name] if kernels else None
        program = program_of(select(graph, core, Goal("balanced"), forced), name)
        write(program, folder / name)
        unit = folder / name / "unit.c"
        unit.write_text(f'#include "{name}.c"\n#include "{name}_data.c"\n')
        units.append(str(unit))
        programs[name] = program
    library = folder / "libmodels.so"
    command = ["gcc", *WARNINGS, *UNDEFINED, "-O0", "-pipe", "-fPIC", "-shared", *units]
    done = subprocess.run(
        [*command, "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: Instance(library, program) for name, program in programs.items()}


def run_c(instance: Instance, graph: Graph, inputs: Inputs) -> Outputs:
    """Outputs of the compiled C."""
    return instance.run(*(inputs[value.name] for value in graph.inputs))


def models_of(cases: Mapping[str, Callable[[], Qdq]]) -> dict[str, Model]:
    """The models of a table of cases, built when first used."""
    return {name: Model(name, build().model()) for name, build in cases.items()}


def assert_reference(model: Model, count: int = 6, *, plain: bool = True) -> None:
    """The reference equals onnxruntime's integer kernels and, if ``plain``, its float operators."""
    inputs = draw_inputs(model.graph, count)
    assert differences(model, inputs) == 0
    if plain:
        assert differences(model, inputs, plain=True) == 0


def assert_differs_on_halves_alone(model: Model, count: int) -> None:
    """Where the reference differs from onnxruntime, by one, the float result lies on a half."""
    (value,) = model.graph.outputs
    quantizer = model.proto.graph.node[-1]
    if quantizer.op_type != "QuantizeLinear":
        quantizer = None
    quant = value.type.quant
    assert quant is not None
    for x in draw_inputs(model.graph, count):
        wrong = model.reference(x)[0].astype(int) - model.oracle(x)[0]
        assert np.abs(wrong).max() <= 1
        if not wrong.any():
            continue
        assert quantizer is not None, "a kernel that onnxruntime computes in integers differs"
        real = np.asarray(model.real(x, quantizer.input[0]), np.float64) / quant.scale
        from_half = np.abs(real - np.floor(real) - 0.5)
        assert np.all(from_half[wrong != 0] < 1e-4)


def assert_c(models: Mapping[str, Model], folder: Path, target: str, count: int = 4) -> None:
    """The C of every model equals its reference."""
    graphs = {f"m{k}": model.graph for k, model in enumerate(models.values())}
    instances = compile_all(graphs, folder, target)
    wrong = []
    for name, model in zip(graphs, models.values(), strict=True):
        for x in draw_inputs(model.graph, count):
            if count_different(run_c(instances[name], model.graph, x), model.reference(x)):
                wrong.append(model.name)
    assert not wrong


def assert_refused(proto: onnx.ModelProto, code: str) -> None:
    """Compiling is refused with ``code``, and every finding names its node."""
    with pytest.raises(TinyqError) as caught:
        _ = Model("refused", proto).graph
    assert code in {d.code for d in caught.value.diagnostics}, str(caught.value)
    assert all(d.node for d in caught.value.diagnostics), str(caught.value)
