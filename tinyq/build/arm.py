"""The compilers for Arm: GCC, clang with GCC's linker and libraries, and zig from a wheel."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tinyq.build.disassembly import Functions, disassemble, disassemble_with_capstone
from tinyq.build.elf import ElfInfo, read_stack_sizes
from tinyq.build.harness import boot_dir
from tinyq.build.process import run
from tinyq.build.stack import CallGraph, graph_of_code, read_callgraph
from tinyq.build.toolchain import Toolchain, probe
from tinyq.errors import error
from tinyq.target import Core

TOOLCHAINS = ("gcc", "clang", "zig")
GCC_VARIABLE = "TINYQ_ARM_GCC"
CLANG_VARIABLE = "TINYQ_ARM_CLANG"
INSTALL_EXTRA = "pip install 'tinyq[emulator]'"
_PREFIX = "arm-none-eabi-"
# Neither sanitizers nor frame pointers, which zig adds by itself, and no C library's headers.
_ZIG_FLAGS = (
    "-g0", "-fno-sanitize=all", "-fomit-frame-pointer", "-fno-stack-protector",
    "-fno-unwind-tables", "-fno-asynchronous-unwind-tables",
)  # fmt: skip


@dataclass(frozen=True)
class ArmToolchain:
    """A compiler, the linker that goes with it, and what reads the code that they make.

    ``name`` is one of ``TOOLCHAINS``, ``objdump`` a program, or empty where capstone disassembles.
    """

    name: str
    compiler: Toolchain
    linker: Toolchain
    objdump: str

    @property
    def version(self) -> str:
        """Name and version, as the compiler says."""
        return self.compiler.version

    def machine(self, core: Core, *, allow_float: bool = False) -> list[str]:
        """Options of the compiler for ``core``."""
        if self.name == "zig":
            hard = "hf" if core.mve else ""
            soft = "" if core.mve else "+soft_float"
            target = ("-target", f"thumb-freestanding-eabi{hard}", f"-mcpu={core.zig}{soft}")
            return [*target, *_ZIG_FLAGS, f"-isystem{_headers()}"]
        return [*_gcc_flags(core, allow_float)]

    @property
    def frame_option(self) -> str:
        """The option that records the stack of every function."""
        return "-fcallgraph-info=su" if self.name == "gcc" else "-fstack-size-section"

    def compile(self, source: Path, output: Path, flags: Iterable[str]) -> None:
        """Compile one C file; raises TQ402 and TQ703."""
        self.compiler.compile(source, output, flags)

    def link(
        self,
        core: Core,
        objects: Sequence[Path],
        output: Path,
        script: Path,
        flags: Iterable[str],
        *,
        allow_float: bool = False,
    ) -> None:
        """Link with the linker script ``script``; raises TQ402, TQ405 and TQ703."""
        options = ["-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none", "-T", str(script)]
        if self.name == "zig":
            machine = self.machine(core, allow_float=allow_float)
        else:
            machine = [*_gcc_flags(core, allow_float), "-Wl,--no-warn-rwx-segments"]
        self.linker.link(objects, output, [*machine, *options, *flags])

    def functions(self, elf: Path, core: Core) -> Functions:
        """Instructions of every function; raises TQ401 when nothing here can read the core's."""
        objdump = self.objdump
        if not objdump and core.architecture == "armv8.1-m.main":
            objdump = shutil.which(f"{_PREFIX}objdump") or ""
            if not objdump:
                raise error(
                    "TQ401",
                    f"only {_PREFIX}objdump reads the code of a {core.title}, and it is not on the "
                    "PATH",
                    "Install it: apt install binutils-arm-none-eabi.",
                )
        if objdump:
            return disassemble(elf, objdump, core.architecture if core.mve else "")
        return disassemble_with_capstone(elf, v8=core.architecture.startswith("armv8"))

    def callgraph(
        self, elf: Path, info: ElfInfo, objects: Iterable[Path], functions: Functions
    ) -> CallGraph:
        """Frames and calls of all functions of ``elf``, which was linked from ``objects``."""
        addresses: Mapping[str, int] = {symbol.name: symbol.address for symbol in info.symbols}
        if self.name == "gcc":
            files = (path.with_suffix(".ci") for path in objects)
            return read_callgraph((f for f in files if f.is_file()), functions, addresses)
        return graph_of_code(read_stack_sizes(elf), functions, addresses)


def arm_toolchain(name: str = "") -> ArmToolchain:
    """The Arm compiler ``name``, by default :func:`default_toolchain`'s.

    Raises TQ303 for an unknown name and TQ401 when it is not installed.
    """
    makers = {"gcc": _gcc, "clang": _clang, "zig": _zig}
    chosen = name or default_toolchain()
    if chosen not in makers:
        raise error("TQ303", f"--toolchain {name}", f"Accepted: {', '.join(TOOLCHAINS)}.")
    return makers[chosen]()


def default_toolchain() -> str:
    """``gcc`` where it is installed or named by ``TINYQ_ARM_GCC``, else ``zig``; raises TQ401."""
    if os.environ.get(GCC_VARIABLE) or find_gcc() is not None:
        return "gcc"
    if find_zig() is not None:
        return "zig"
    raise error("TQ401", f"neither {_PREFIX}gcc nor the package ziglang is installed")


def find_gcc() -> Toolchain | None:
    """GCC for Arm: ``TINYQ_ARM_GCC``, else ``arm-none-eabi-gcc``."""
    return probe(os.environ.get(GCC_VARIABLE) or f"{_PREFIX}gcc", _PREFIX)


@cache
def find_zig() -> Toolchain | None:
    """The compiler of the package ziglang, where that is installed."""
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        return None
    for program in (Path(package.origin).with_name(name) for name in ("zig", "zig.exe")):
        if program.is_file():
            done = run([program, "version"], Path.cwd(), 30.0)
            if done.status == 0:
                version = f"zig {done.output.strip()}"
                return Toolchain(str(program), "clang", version, arguments=("cc",))
    return None


def _gcc() -> ArmToolchain:
    found = find_gcc()
    if found is None:
        name = os.environ.get(GCC_VARIABLE) or f"{_PREFIX}gcc"
        raise error("TQ401", f"'{name}' is not on the PATH or does not run")
    return ArmToolchain("gcc", found, found, found.tool("objdump"))


def _clang() -> ArmToolchain:
    name = os.environ.get(CLANG_VARIABLE) or "clang"
    found = probe(name)
    if found is None:
        raise error(
            "TQ401",
            f"'{name}' is not on the PATH or does not run",
            f"Install it: apt install clang (or set {CLANG_VARIABLE}).",
        )
    linker = _gcc()
    compiler = dataclasses.replace(
        found, arguments=("--target=arm-none-eabi", f"-isystem{_headers()}")
    )
    return ArmToolchain("clang", compiler, linker.linker, linker.objdump)


def _zig() -> ArmToolchain:
    found = find_zig()
    if found is None:
        raise error("TQ401", "the package ziglang is not installed", f"{INSTALL_EXTRA}.")
    if importlib.util.find_spec("capstone") is None:
        raise error("TQ401", "the package capstone is not installed", f"{INSTALL_EXTRA}.")
    return ArmToolchain("zig", found, found, "")


def _gcc_flags(core: Core, allow_float: bool) -> tuple[str, ...]:
    return core.float_flags if allow_float and core.float_flags else core.flags


def _headers() -> Path:
    """Declarations of the functions that every freestanding C compiler's own library has."""
    return boot_dir() / "freestanding"
