"""The manifest: what a machine can know of a generated folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tinyq.codegen.libraries import differing_layers, library_layers
from tinyq.codegen.program import GENERATOR, MANIFEST_FORMAT, GenerateOptions
from tinyq.ir import Value
from tinyq.ops.exactness import exactness_of, exactness_with_library
from tinyq.plan import ALIGNMENT, MemoryPlan
from tinyq.plan.lifetimes import lifetimes, live_bytes
from tinyq.select import Layer, Schedule


def build_manifest(
    schedule: Schedule,
    plan: MemoryPlan,
    name: str,
    options: GenerateOptions,
    functions: Sequence[str | None],
    constant_bytes: int,
) -> dict[str, Any]:
    """JSON-ready description; sizes in bytes, instructions estimated, layers in hook order."""
    buffers = lifetimes(schedule, plan)
    return {
        "generator": GENERATOR,
        "format": MANIFEST_FORMAT,
        "name": name,
        "target": schedule.core.target,
        "optimize": schedule.goal.value,
        "oracle": options.oracle,
        "io": options.io,
        "cflags": list(options.cflags),
        "model": options.model_file(name),
        "shapes": {key: list(shape) for key, shape in sorted(options.shapes.items())},
        "inputs": [_tensor(value) for value in schedule.graph.inputs],
        "outputs": [_tensor(value) for value in schedule.graph.outputs],
        "arena_bytes": plan.arena_bytes,
        "arena_align": ALIGNMENT,
        "arena_lower_bound": plan.live_bytes,
        "arena_method": plan.method,
        "buffers": [asdict(buffer) for buffer in buffers],
        "packed": _packed(schedule),
        "constant_bytes": constant_bytes,
        "macs": sum(layer.macs for layer in schedule.layers),
        "instructions": schedule.instructions,
        "notes": list(options.notes),
        "libraries": [
            {**asdict(library), "layers_differing": differing_layers(schedule)}
            for library in (options.libraries if library_layers(schedule) else ())
        ],
        "layers": [
            _layer(layer, function, plan, live_bytes(buffers, layer.index))
            | {"rows": _rows(schedule, layer)}
            for layer, function in zip(schedule.layers, functions, strict=True)
        ],
    }


def _tensor(value: Value) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": value.name,
        "shape": list(value.type.shape),
        "dtype": value.type.dtype.value,
        "bytes": value.type.bytes,
    }
    quant = value.type.quant
    if quant is not None and quant.is_per_tensor:
        entry |= {"scale": quant.scale, "zero_point": quant.zero_point}
    return entry


def _rows(schedule: Schedule, layer: Layer) -> dict[str, Any] | None:
    """Which rows of which tensor the output of a layer of a stripe is."""
    rows = schedule.rows.get(layer.outputs[0])
    if rows is None:
        return None
    height = rows.of.type.shape[1]
    of: dict[str, Any] = {"of": rows.of.name, "layer": rows.layer}
    of |= {"shape": list(rows.of.type.shape)}
    part = {**of, "start": rows.start, "stop": rows.stop, "height": height}
    return {**part, "packed": rows.packed is not None}


def _packed(schedule: Schedule) -> list[dict[str, Any]]:
    """The tensors that the arena holds packed: bits and levels of their codes, and their bytes."""
    whole = {
        rows.of: (rows.packed, value.type.bytes)
        for value, rows in schedule.rows.items()
        if rows.packed is not None and rows.stop - rows.start == rows.of.type.shape[1]
    }
    return [
        {
            "tensor": of.name,
            "bits": attrs.storage.bits,
            "levels": list(attrs.storage.levels),
            "bytes": size,
            "bytes_unpacked": of.type.bytes,
        }
        for of, (attrs, size) in whole.items()
    ]


def _exactness(layer: Layer) -> dict[str, Any]:
    use = layer.call.library
    found = exactness_of(layer.node)
    if use is not None:
        found = exactness_with_library(layer.node, use)
    return {**asdict(found), "differing": found.differing, "exact": found.exact}


def _layer(layer: Layer, function: str | None, plan: MemoryPlan, live: int) -> dict[str, Any]:
    result = _tensor(layer.outputs[0])
    overlaid = plan.overlays[layer.index]
    return {
        "index": layer.index,
        "name": layer.node.name,
        "op": layer.node.op,
        "kernel": layer.call.kernel,
        "reason": layer.call.reason,
        "function": function or "",
        "output": result.pop("name"),
        **result,
        "offset": plan.offsets[layer.outputs[0]],
        "overlays": overlaid.name if overlaid is not None else "",
        "macs": layer.macs,
        "instructions": layer.call.instructions,
        "constant_bytes": layer.call.constant_bytes,
        "code_bytes_estimate": layer.call.code_bytes,
        "scratch_bytes": layer.call.scratch_bytes,
        "live_bytes": live,
        "exactness": _exactness(layer),
        "library": asdict(layer.call.library) if layer.call.library is not None else None,
        "alternatives": [
            {
                "kernel": c.kernel,
                "instructions": c.call.instructions,
                "flash_bytes": c.call.flash_bytes,
            }
            for c in layer.candidates
            if c.call is not None and c.kernel != layer.call.kernel
        ],
        "refusals": [
            {"kernel": c.kernel, "reason": c.refusal} for c in layer.candidates if c.call is None
        ],
    }
