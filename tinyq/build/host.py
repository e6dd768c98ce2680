"""Builds a network and its harness for this machine."""

from __future__ import annotations

from pathlib import Path

from tinyq.build.artifact import Artifact
from tinyq.build.harness import boot_dir, write_config
from tinyq.build.libraries import library_build
from tinyq.build.network import Network
from tinyq.build.toolchain import WARNINGS, host_toolchain

_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
_SOURCES = ("harness.c", "port_host.c")
_EXECUTABLE = "network"


def build_host(
    network: Network,
    folder: Path,
    *,
    profile: bool = False,
    sanitize: bool = False,
    compiler: str = "",
) -> Artifact:
    """Compile ``network`` with the host's compiler into ``folder`` (made if missing).

    ``profile`` records every layer's output; ``sanitize`` adds address and undefined-behaviour
    checks that end the run at the first finding. Raises TQ401 without a compiler, TQ402 when the
    code does not compile; warnings are errors.
    """
    toolchain = host_toolchain(compiler)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(network, folder)
    flags = ["-std=c99", *WARNINGS, "-Werror", *_portable(network.cflags)]
    if profile:
        flags.append("-DTINYQ_PROFILE")
    if sanitize:
        flags.extend(_SANITIZERS)
    objects = []
    needed = library_build(network)
    for source in network.sources:
        objects.append(folder / f"net_{source.stem}.o")
        toolchain.compile(source, objects[-1], [*flags, *needed.flags])
    # CMSIS-NN shifts negative integers left, which every compiler computes and C leaves undefined.
    checks = ("-fsanitize=address", "-g") if sanitize else ()
    for source in needed.sources:
        objects.append(folder / f"lib_{source.stem}.o")
        toolchain.compile(source, objects[-1], [*needed.optimize, *needed.flags, "-w", *checks])
    objects.extend(needed.binaries)
    around = [*flags, "-DTINYQ_TIMER=TIMER_NONE", f"-I{network.folder}", f"-I{folder}"]
    for name in _SOURCES:
        objects.append(folder / f"{name[:-2]}.o")
        toolchain.compile(boot_dir() / name, objects[-1], around)
    executable = folder / _EXECUTABLE
    toolchain.link(objects, executable, [*(_SANITIZERS if sanitize else ()), "-lm"])
    return Artifact(network, executable.resolve(), profile, compiler=toolchain.version)


def _portable(cflags: tuple[str, ...]) -> list[str]:
    """The flags that any compiler knows: optimisation and definitions, not machine options."""
    return [flag for flag in cflags if flag.startswith(("-O", "-D", "-U"))]
