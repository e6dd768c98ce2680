"""Cores, microcontrollers and boards, read from ``targets/*.toml``."""

from tinyq.target.loader import (
    board_names,
    core_names,
    load_board,
    load_core,
    load_mcu,
    mcu_names,
    read_board,
    read_core,
    read_mcu,
)
from tinyq.target.types import (
    ISAS,
    Board,
    Console,
    Core,
    CycleTable,
    Flasher,
    Mcu,
    Memory,
    Peripheral,
    QemuMachine,
    RegisterStep,
)

__all__ = [
    "ISAS",
    "Board",
    "Console",
    "Core",
    "CycleTable",
    "Flasher",
    "Mcu",
    "Memory",
    "Peripheral",
    "QemuMachine",
    "RegisterStep",
    "board_names",
    "core_names",
    "load_board",
    "load_core",
    "load_mcu",
    "mcu_names",
    "read_board",
    "read_core",
    "read_mcu",
]
