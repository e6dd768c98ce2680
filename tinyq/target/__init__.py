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
    Core,
    CycleTable,
    Flasher,
    Mcu,
    Memory,
    Peripheral,
    QemuMachine,
)

__all__ = [
    "ISAS",
    "Board",
    "Core",
    "CycleTable",
    "Flasher",
    "Mcu",
    "Memory",
    "Peripheral",
    "QemuMachine",
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
