"""A Program from a Schedule and a MemoryPlan."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tinyq.codegen.constants import ConstantPool, constant_outputs
from tinyq.codegen.environment import render
from tinyq.codegen.functions import render_functions
from tinyq.codegen.headers import library_headers
from tinyq.codegen.libraries import external_headers, library_layers, makefile_fragments
from tinyq.codegen.manifest import build_manifest
from tinyq.codegen.names import check_name, comment_text, string_literal
from tinyq.codegen.program import MANIFEST, GenerateOptions, Program
from tinyq.ir import Value
from tinyq.ops.base import c_type
from tinyq.plan import ALIGNMENT, MemoryPlan
from tinyq.select import Layer, Schedule


@dataclass(frozen=True)
class PortText:
    """An input or output as the templates see it; ``place`` is a C expression of its address."""

    index: int
    name: str
    literal: str
    c_type: str
    elements: int
    bytes: int
    shape: str
    rank: int
    place: str
    quantized: bool
    scale: str
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class LayerText:
    """A layer as the template of the source file sees it; ``call`` is a statement or empty."""

    index: int
    comment: tuple[str, ...]
    call: str
    result: str
    result_bytes: int


def generate(
    schedule: Schedule,
    memory_plan: MemoryPlan,
    name: str,
    options: GenerateOptions | None = None,
) -> Program:
    """The library ``name`` as files in memory: the same arguments give the same bytes.

    Raises TQ702 when ``name`` is no C identifier.
    """
    options = options or GenerateOptions()
    check_name(name)
    pool = ConstantPool(name)
    arguments = [pool.add_layer(layer) for layer in schedule.layers]
    fixed = constant_outputs(schedule, pool)
    functions, called = render_functions(schedule.layers)
    inputs = [_port(k, v, memory_plan, fixed) for k, v in enumerate(schedule.graph.inputs)]
    outputs = [_port(k, v, memory_plan, fixed) for k, v in enumerate(schedule.graph.outputs)]
    layers = [
        _layer(layer, function, constants, memory_plan)
        for layer, function, constants in zip(schedule.layers, called, arguments, strict=True)
    ]
    kernel_headers = sorted({h for layer in schedule.layers for h in layer.call.headers})
    manifest = build_manifest(schedule, memory_plan, name, options, called, pool.bytes)
    libraries = options.libraries if library_layers(schedule) else ()
    common = {
        "name": name,
        "prefix": name.upper(),
        "inputs": inputs,
        "outputs": outputs,
        "arrays": pool.arrays,
        "arena_bytes": memory_plan.arena_bytes,
        "alignment": ALIGNMENT,
        "target": schedule.core.target,
        "float_io": options.io == "float",
        "libraries": libraries,
    }
    headers = library_headers(["tinyq_common.h", "tinyq_math.h", *kernel_headers])
    texts = {
        f"{name}.h": render("net/model.h.j2", layer_count=len(layers), **common),
        f"{name}.c": render(
            "net/model.c.j2",
            layers=layers,
            functions=functions,
            kernel_headers=[
                *(h for h in kernel_headers if h != "tinyq_math.h"),
                *external_headers(schedule),
            ],
            **common,
        ),
        f"{name}_data.h": render("net/data.h.j2", **common),
        f"{name}_data.c": render("net/data.c.j2", **common),
        "CMakeLists.txt": render("net/CMakeLists.txt.j2", **common),
        MANIFEST: json.dumps(manifest, indent=1) + "\n",
        **headers,
        **makefile_fragments(libraries),
    }
    contents = {path: text.encode("utf-8") for path, text in texts.items()}
    if options.model:
        contents[options.model_file(name)] = options.model
    files = dict(sorted(contents.items()))
    return Program(name, files, manifest)


def _port(number: int, value: Value, plan: MemoryPlan, fixed: dict[Value, str]) -> PortText:
    kind = c_type(value)
    place = fixed[value] if value.is_constant else f"net->arena + {plan.offsets[value]}"
    quant = value.type.quant
    one = quant is not None and quant.is_per_tensor
    low, high = value.type.dtype.limits
    return PortText(
        index=number,
        name=comment_text(value.name),
        literal=string_literal(value.name),
        c_type=kind,
        elements=value.type.elements,
        bytes=value.type.bytes,
        shape=", ".join(map(str, value.type.shape or (1,))),
        rank=max(1, len(value.type.shape)),
        place=place,
        quantized=one,
        scale=f"{quant.scale:.9e}f" if quant is not None and one else "",
        zero_point=quant.zero_point if quant is not None and one else 0,
        low=low,
        high=high,
    )


def _layer(
    layer: Layer, function: str | None, constants: tuple[str, ...], plan: MemoryPlan
) -> LayerText:
    result = layer.outputs[0]
    arguments = [
        *(f"(const {c_type(v)} *)(const void *)(arena + {plan.offsets[v]})" for v in layer.inputs),
        *(f"({c_type(v)} *)(void *)(arena + {plan.offsets[v]})" for v in layer.outputs),
        *constants,
    ]
    offset = plan.scratch[layer.index]
    if layer.call.scratch_bytes:
        arguments.append(f"(void *)(arena + {offset})")
    joined = ",\n        ".join(arguments)
    return LayerText(
        index=layer.index,
        comment=_describe(layer, plan),
        call="" if function is None else _statement(function, joined, layer),
        result=f"arena + {plan.offsets[result]}",
        result_bytes=result.type.bytes,
    )


def _statement(function: str, arguments: str, layer: Layer) -> str:
    """The call; a function of a library reports a status, which ends the inference if it is bad."""
    call = f"{function}(\n        {arguments})"
    if layer.call.library is None:
        return f"{call};"
    return f"if ({call} != TINYQ_OK) {{\n        return TINYQ_ERROR_FAILURE;\n    }}"


def _describe(layer: Layer, plan: MemoryPlan) -> tuple[str, ...]:
    """Lines of the comment above a layer's call."""
    lines = [f"{layer.index}: {layer.node.op} '{layer.node.name}'"]
    lines += [f"in  {v.name}: {v.type}" for v in layer.inputs]
    lines += [f"out {v.name}: {v.type}" for v in layer.outputs]
    overlaid = plan.overlays[layer.index]
    if layer.call.alias:
        lines.append(layer.call.reason)
    else:
        where = f", in place of {overlaid.name}" if overlaid is not None else ""
        lines.append(f"kernel {layer.call.kernel}{where}")
    return tuple(comment_text(line) for line in lines)
