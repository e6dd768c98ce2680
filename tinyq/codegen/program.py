"""A generated library, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "manifest.json"
GENERATOR = "tinyq"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Library:
    """A library of the user's that the generated code calls.

    sources: the files to compile, relative to its root, sorted; none when it is installed as a
    binary. includes: its folders of headers, relative too. defines: macros of its build. variable
    and core_variable: what the build files call its folder and that of the core's headers.
    """

    name: str
    version: str
    sources: tuple[str, ...]
    includes: tuple[str, ...]
    defines: tuple[str, ...]
    binary: str = ""
    variable: str = "CMSIS_NN_DIR"
    core_variable: str = "CMSIS_CORE_DIR"


@dataclass(frozen=True)
class GenerateOptions:
    """What the user chose about the C code.

    io: ``int8`` (integers at the edges) or ``float`` (the header also has functions that quantize
    inputs and dequantize outputs). cflags: optimisation flags that the code is meant for. oracle:
    whose arithmetic the integers follow, for the manifest. model: the ONNX or TensorFlow Lite file,
    kept in the folder so that it can be verified by itself; shapes: how its inputs were fixed.
    libraries: those whose kernels were chosen. notes: what the passes have to say, for the report.
    """

    io: str = "int8"
    cflags: tuple[str, ...] = ("-O2",)
    oracle: str = "ort"
    model: bytes = b""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    libraries: tuple[Library, ...] = ()

    def model_file(self, name: str) -> str:
        """The kept model's file name, empty without a model."""
        if not self.model:
            return ""
        return f"{name}.tflite" if self.model[4:8] == b"TFL3" else f"{name}.onnx"


@dataclass(frozen=True, eq=False)
class Program:
    """A folder's files by relative path, sorted, and the manifest that is one of them."""

    name: str
    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]

    @property
    def constant_bytes(self) -> int:
        """Flash taken by the network's constants."""
        return int(self.manifest["constant_bytes"])
