"""Builds a network, its harness and start-up code into firmware for a board."""

from __future__ import annotations

from pathlib import Path

from tinyq.build.arm import ArmToolchain, arm_toolchain
from tinyq.build.artifact import Artifact, Footprint, UartPort
from tinyq.build.elf import read_elf, require_integer_only
from tinyq.build.harness import boot_dir, write_config
from tinyq.build.libraries import library_build
from tinyq.build.network import Network
from tinyq.build.toolchain import WARNINGS
from tinyq.build.uart import uart_dir, uart_source
from tinyq.codegen.environment import render
from tinyq.errors import error
from tinyq.target import Board, Core, Peripheral, load_board

_SOURCES = ("harness.c", "startup.c")
_COMMON = ("-std=c99", *WARNINGS, "-Werror", "-ffunction-sections", "-fdata-sections")
_ENTRY = "-Wl,-e,Reset_Handler"
STACK_BYTES = 64 * 1024
HARNESS_STACK = 512  # main, its callees and an exception frame, rounded up


def build_firmware(
    network: Network,
    core: Core,
    board: Board,
    folder: Path,
    *,
    profile: bool = False,
    allow_float: bool = False,
    stack_bytes: int = 0,
    toolchain: str = "",
    timer: Peripheral | None = None,
    uart: UartPort | None = None,
) -> Artifact:
    """Compile ``network`` for ``core`` and link it for ``board`` into ``folder`` (made if missing).

    ``stack_bytes`` is the room for the stack (0: what :func:`stack_room` gives the board).
    ``toolchain`` names a compiler (:func:`arm_toolchain`). ``timer`` counts where QEMU's machine
    has none. With ``uart`` the firmware does without semihosting's files. ``profile`` calls the
    harness around every layer. ``allow_float`` builds with the core's FPU (or soft float) and drops
    the check that no floating-point code is in the ELF. Raises TQ401 without a compiler, TQ402 when
    the code does not compile, TQ405 when it does not fit and TQ406 for floating-point code in an
    integer build.
    """
    tools = arm_toolchain(toolchain)
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*tools.machine(core, allow_float=allow_float), *_COMMON, *network.cflags]
    if profile:
        flags.append("-DTINYQ_PROFILE")
    objects = _compile_network(tools, network, folder, flags)
    stack_bytes = stack_bytes or stack_room(board)
    script = _write_linker_script(board, folder, stack_bytes)
    footprint = None
    if not profile:
        footprint = _measure(tools, network, core, objects, script, allow_float=allow_float)
        _require_stack(footprint, stack_bytes)
    write_config(network, folder)
    around = [*flags, *_port_flags(board, timer, uart), f"-I{network.folder}", f"-I{folder}"]
    for source in [*(boot_dir() / name for name in _SOURCES), *_port_sources(board, uart, folder)]:
        objects.append(folder / f"{source.stem}.o")
        tools.compile(source, objects[-1], around)
    executable = folder / "firmware.elf"
    tools.link(core, objects, executable, script, [_ENTRY], allow_float=allow_float)
    return Artifact(
        network,
        executable.resolve(),
        profile,
        core,
        board,
        footprint,
        tools.name,
        tools.version,
        timer,
        uart,
    )


def measure_network(network: Network, core: Core, folder: Path, toolchain: str = "") -> Footprint:
    """What ``network`` takes on ``core``, built in ``folder``; raises as :func:`build_firmware`.

    It is linked for the emulated board that stands for the core, which has memory enough.
    """
    tools = arm_toolchain(toolchain)
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*tools.machine(core), *_COMMON, *network.cflags]
    objects = _compile_network(tools, network, folder, flags)
    script = _write_linker_script(load_board(core.board), folder, STACK_BYTES)
    return _measure(tools, network, core, objects, script, allow_float=False)


def stack_room(board: Board) -> int:
    """Bytes for the stack: plenty, but no more than an eighth of a small board's RAM."""
    return min(STACK_BYTES, board.ram.size // 8 & ~31)


def _require_stack(footprint: Footprint, stack_bytes: int) -> None:
    needed = footprint.stack_bound_bytes + HARNESS_STACK
    if needed > stack_bytes:
        raise error(
            "TQ405",
            f"the network may need {footprint.stack_bound_bytes} bytes of stack, {needed} with its "
            f"caller; the firmware has {stack_bytes}",
        )


def _compile_network(
    tools: ArmToolchain, network: Network, folder: Path, flags: list[str]
) -> list[Path]:
    objects = []
    needed = library_build(network)
    for source in network.sources:
        objects.append(folder / f"net_{source.stem}.o")
        tools.compile(source, objects[-1], [*flags, *needed.flags, tools.frame_option])
    quiet = [flag for flag in flags if flag not in (*WARNINGS, "-Werror", "-std=c99")]
    for source in needed.sources:
        objects.append(folder / f"lib_{source.stem}.o")
        options = [*quiet, *needed.optimize, *needed.flags, "-w", tools.frame_option]
        tools.compile(source, objects[-1], options)
    return [*objects, *needed.binaries]


def _write_linker_script(board: Board, folder: Path, stack_bytes: int) -> Path:
    script = folder / "link.ld"
    text = render(
        "boot/link.ld.j2",
        title=board.title,
        flash=board.flash,
        ram=board.ram,
        stack_bytes=stack_bytes,
        guard_bytes=stack_bytes // 4,
        fill=False,
        second_stage=0,
    )
    script.write_text(text, encoding="utf-8")
    return script


def _port_sources(board: Board, uart: UartPort | None, folder: Path) -> list[Path]:
    """C files of the harness's port; that of a UART is written to ``folder``."""
    if uart is None:
        return [boot_dir() / "port_semihosting.c"]
    driver = folder / "uart.c"
    driver.write_text(uart_source(board.title, uart.console), encoding="utf-8")
    return [boot_dir() / "port_memory.c", driver]


def _port_flags(board: Board, other: Peripheral | None, uart: UartPort | None) -> list[str]:
    """Definitions that tell the harness which timer the board has, or the ``other`` that counts."""
    flags = ["-DTINYQ_FIRMWARE"]
    if uart is not None:
        samples = f"-DTINYQ_SAMPLES={uart.samples:#x}u"
        return [*flags, "-DTINYQ_TIMER=TIMER_MARK", samples, f"-I{boot_dir()}", f"-I{uart_dir()}"]
    timer = (board.qemu.timer if board.qemu is not None else None) or other
    if timer is None:
        return [*flags, "-DTINYQ_TIMER=TIMER_NONE"]
    driver = timer.driver.upper().replace("-", "_")
    return [*flags, f"-DTINYQ_TIMER=TIMER_{driver}", f"-DTINYQ_TIMER_BASE={timer.base:#x}u"]


def _measure(
    tools: ArmToolchain,
    network: Network,
    core: Core,
    objects: list[Path],
    script: Path,
    *,
    allow_float: bool,
) -> Footprint:
    """Link the network alone, with the library routines it calls, and read what it takes."""
    alone = script.with_name("network.elf")
    names = [f"{network.name}_{call}" for call in ("init", "input", "invoke", "output")]
    keep = [f"-Wl,-u,{name}" for name in names]
    tools.link(core, objects, alone, script, [f"-Wl,-e,{names[2]}", *keep], allow_float=allow_float)
    info = read_elf(alone)
    functions = tools.functions(alone, core)
    if not allow_float:
        require_integer_only(alone, info, functions, mve=core.mve)
    graph = tools.callgraph(alone, info, objects, functions)
    return Footprint(
        code_bytes=info.code_bytes,
        constant_bytes=info.constant_bytes + info.data_bytes,
        data_bytes=info.data_bytes + info.bss_bytes,
        stack_bound_bytes=graph.worst_case(names[2]),
    )
