"""DepthToSpace and SpaceToDepth of ONNX: reshapes around one transpose, no kernel of their own."""

from __future__ import annotations

from tinyq.errors import error
from tinyq.ir import Node, Value
from tinyq.ops.layout import reshape, transpose
from tinyq.ops.lowering import Emitter

_DEPTH_FIRST = (0, 3, 4, 1, 5, 2)  # mode DCR: channels are [block, block, depth]
_COLUMN_FIRST = (0, 1, 4, 2, 5, 3)  # mode CRD: channels are [depth, block, block]
_TO_DEPTH = (0, 3, 5, 1, 2, 4)


def lower_depth_to_space(
    emitter: Emitter, node: Node, inputs: tuple[Value, ...]
) -> tuple[Value, ...]:
    """Blocks of channels to blocks of pixels, in either mode; [N, C, H, W]."""
    n, c, h, w = inputs[0].type.shape
    block = int(node.attrs.get("blocksize", 1))
    mode = node.attrs.get("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise error("TQ203", f"mode '{mode}'", "Accepted: DCR and CRD.",
                    node=node.name, operator=node.op)  # fmt: skip
    depth = c // block**2
    split = (block, block, depth) if mode == "DCR" else (depth, block, block)
    perm = _DEPTH_FIRST if mode == "DCR" else _COLUMN_FIRST
    return _moved(emitter, node, inputs[0], (n, *split, h, w), perm)


def lower_space_to_depth(
    emitter: Emitter, node: Node, inputs: tuple[Value, ...]
) -> tuple[Value, ...]:
    """Blocks of pixels to blocks of channels; [N, C, H, W]."""
    n, c, h, w = inputs[0].type.shape
    block = int(node.attrs.get("blocksize", 1))
    shape = (n, c, h // block, block, w // block, block)
    return _moved(emitter, node, inputs[0], shape, _TO_DEPTH)


def _moved(
    emitter: Emitter, node: Node, x: Value, shape: tuple[int, ...], perm: tuple[int, ...]
) -> tuple[Value, ...]:
    split = reshape(emitter, f"{node.name}:split", x, shape)
    moved = transpose(emitter, node.name, split, perm)
    return (reshape(emitter, f"{node.name}:merged", moved, node.output.type.shape),)
