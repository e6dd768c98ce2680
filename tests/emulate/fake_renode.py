"""Stands in for Renode, which the tests cannot install: what its documents say, over unicorn.

It reads the script and the platform as Renode's monitor does, runs the ELF with the memories and
the UART that the platform names, and prints what a hook prints. It exits with 0 whatever happens.
What Renode does wrong or differently is asked for by the variable FAKE_RENODE.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import unicorn
from elftools.elf.elffile import ELFFile
from unicorn import arm_const as arm

from tinyq.emulate.unicorn import MODELS, _counter

# The data register of each model, and the status that says that there is always room.
UARTS = {
    "UART.CMSDK_APB_UART": (0x00, {}),
    "UART.PL011": (0x00, {}),
    "UART.STM32_UART": (0x04, {0x00: 0xC0}),
    "UART.STM32F7_USART": (0x28, {0x1C: 0xC0}),
}
# What Renode's own platforms hold of the boards that the tests run on them, as its files say.
SHIPPED = {
    "platforms/boards/nucleo_f767zi.repl": (
        "cortex-m7",
        [(0x08000000, 0x200000), (0x20000000, 0x10000000)],
        {"usart3": ("UART.STM32F7_USART", 0x40004800)},
    ),
    "platforms/boards/stm32f4_discovery.repl": (
        "cortex-m4",
        [(0x08000000, 0x200000), (0x20000000, 0x40000)],
        {"usart2": ("UART.STM32_UART", 0x40004400)},
    ),
    "platforms/cpus/stm32h743.repl": (
        "cortex-m7",
        [(0x08000000, 0x200000), (0x24000000, 0x80000)],
        {"usart3": ("UART.STM32F7_USART", 0x40004800)},
    ),
    "platforms/cpus/nrf52840.repl": (
        "cortex-m4",
        [(0x00000000, 0x100000), (0x20000000, 0x40000)],
        {},
    ),
}
CORES = {"cortex-m0+": "cortex-m0plus", "cortex-m4f": "cortex-m4"}
PAGE = 0x1000


def stop(text: str) -> None:
    """Renode says what is wrong, and waits for commands."""
    print(f"There was an error executing command '{text}': ", flush=True)
    print("Could not do that", flush=True)
    sys.stdin.read()
    raise SystemExit(0)


class Machine:
    """One machine of Renode's."""

    def __init__(self) -> None:
        self.memories: list[tuple[int, int]] = []
        self.uarts: dict[str, tuple[str, int]] = {}
        self.tags: dict[int, int] = {}
        self.core = ""
        self.loaded: list[tuple[int, bytes]] = []
        self.symbols: dict[str, int] = {}
        self.vectors = 0
        self.mode = os.environ.get("FAKE_RENODE", "")

    def platform(self, path: Path) -> None:
        text = re.sub(r"//.*", "", path.read_text())
        for name in re.findall(r'^using "(.*)"$', text, re.M):
            cpu, memories, uarts = SHIPPED[name]
            self.core, self.memories = cpu, self.memories + memories
            self.uarts |= uarts
        entries = re.findall(r"^(\w+): ([\w.]+) @ sysbus (0x\w+)((?:\n    .*)*)", text, re.M)
        for name, kind, base, body in entries:
            size = re.search(r"size: (0x\w+)", body)
            if kind == "Memory.MappedMemory" and size is not None:
                if int(size[1], 16) % 0x400:
                    stop("machine LoadPlatformDescription")
                self.memories.append((int(base, 16), int(size[1], 16)))
            elif kind in UARTS:
                self.uarts[name] = (kind, int(base, 16))
        taken = sorted(self.memories)
        for (low, size), (next_low, _) in itertools.pairwise(taken):
            if low + size > next_low:  # Renode registers nothing over something else
                stop("machine LoadPlatformDescription")
        cpu = re.search(r'cpuType: "(.*)"', text)
        self.core = cpu[1] if cpu is not None else self.core
        for first, value in re.findall(r'Tag <(0x\w+), 0x\w+> ".*" (0x\w+)', text):
            self.tags[int(first, 16)] = int(value, 16)

    def elf(self, path: Path) -> None:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            for segment in elf.iter_segments(type="PT_LOAD"):
                self.loaded.append((segment["p_paddr"], segment.data()))
            self.symbols = {
                s.name: s["st_value"] & ~1
                for s in elf.get_section_by_name(".symtab").iter_symbols()
            }

    def start(self, name: str, file: Path, end: str, mark: int) -> None:
        """Run until a line with ``end``."""
        model, base = self.uarts[name]
        data, status = UARTS[model]
        engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        core = MODELS[CORES.get(self.core, self.core)]
        engine.ctl_set_cpu_model(getattr(arm, core))
        if file.exists():
            file.rename(f"{file}.1")
        sent = file.open("wb")
        count, printed = [0], [0]
        current = bytearray()

        def write(_: Any, offset: int, size: int, value: int, user: object) -> None:
            if offset - base % PAGE != data:
                return
            byte = bytes([value & 0xFF])
            if self.mode != "truncate" or sent.tell() < 60:
                sent.write(b"=0" if self.mode == "flip" and byte == b"=" else byte)
            sent.flush()
            if byte != b"\n":
                current.extend(byte)
                return
            if end.encode() in current:
                engine.emu_stop()
            current.clear()

        def read(_: Any, offset: int, size: int, user: object) -> int:
            return status.get(offset - base % PAGE, 0)

        def block(_: Any, address: int, size: int, user: object) -> None:
            if address == mark:
                # Exact at a symbol: the block that begins here is not in the count yet.
                printed[0] += 1
                if not (self.mode == "lose a mark" and printed[0] == 3):
                    print(f"tinyq-mark {count[0]}", end="\r\n", flush=True)

        engine.mmio_map(base & -PAGE, PAGE, read, None, write, None)
        for low, size in self.memories:
            engine.mem_map(low, -(-size // PAGE) * PAGE)
        for address, contents in self.loaded:
            engine.mem_write(address, contents)
        pages = {page for page in self.tags if page & -PAGE != base & -PAGE}
        for page in {page & -PAGE for page in pages}:
            engine.mmio_map(page, PAGE, self._tag(page), None, lambda *_: None, None)
        engine.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._unmapped)
        engine.hook_add(unicorn.UC_HOOK_BLOCK, block)
        engine.hook_add(unicorn.UC_HOOK_BLOCK, _counter(count))
        stack, reset = (
            int.from_bytes(engine.mem_read(self.vectors + offset, 4), "little") for offset in (0, 4)
        )
        engine.reg_write(arm.UC_ARM_REG_SP, stack)
        try:
            engine.emu_start(reset | 1, 0xFFFFFFFF)
        except unicorn.UcError as problem:
            print(f"[ERROR] cpu: CPU abort [PC=0x{engine.reg_read(arm.UC_ARM_REG_PC):X}]: "
                  f"{problem}.", flush=True)  # fmt: skip
            sys.stdin.read()
            time.sleep(600)

    def _tag(self, page: int) -> Any:
        return lambda _, offset, size, user: self.tags.get(page + offset, 0)

    def _unmapped(
        self, engine: Any, kind: int, address: int, size: int, value: int, user: object
    ) -> bool:
        """Renode warns of an access to nothing, and goes on; not of one that runs off a memory."""
        if not 0x40000000 <= address < 0x60000000:
            return False
        engine.mem_map(address & -PAGE, PAGE)
        return True


def main() -> None:
    script = Path(sys.argv[-1])
    assert sys.argv[1:] == ["--plain", "--disable-xwt", "--console", script.name]
    machine, file, end, uart, mark = Machine(), Path(), "", "", -1
    if machine.mode == "silent":
        return
    for line in script.read_text().splitlines():
        if machine.mode and line.startswith(machine.mode):
            stop(line)
        words = line.split()
        match words:
            case ["mach", "create", _] | ["cpu", "PerformanceInMips", _]:
                pass
            case ["emulation", "SetGlobalAdvanceImmediately", "true"]:
                pass
            case ["machine", "LoadPlatformDescription", path]:
                machine.platform(Path(path[1:]))
            case ["sysbus", "LoadELF", path]:
                machine.elf(Path(path[1:]))
            case ["sysbus", "LoadBinary", path, address]:
                contents = Path(path[1:]).read_bytes()
                if machine.mode == "short samples":
                    contents = contents[:-1]
                machine.loaded.append((int(address, 16), contents))
            case ["cpu", "VectorTableOffset", address]:
                machine.vectors = int(address, 16)
            case [name, "CreateFileBackend", path, "true"]:
                uart, file = name, Path(path[1:])
            case [name, "AddLineHook", text, "\"monitor.Parse('quit')\""]:
                assert name == uart
                end = text.strip('"')
            case ["cpu", "AddHook", *_]:
                found = re.fullmatch(
                    r'cpu AddHook `sysbus GetSymbolAddress "(\w+)"` '
                    r'"print \'tinyq-mark\', self.ExecutedInstructions"', line,
                )  # fmt: skip
                assert found is not None
                mark = machine.symbols[found[1]]
            case ["start"]:
                machine.start(uart, file, end, mark)
            case _:
                stop(line)
    if machine.mode == "no quit":
        time.sleep(600)


if __name__ == "__main__":
    main()
