"""Runs artifacts: on this machine, and on emulated boards."""

from tinyq.emulate.choice import EMULATORS, Choice, Tool, choose, tools
from tinyq.emulate.host import HostRunner
from tinyq.emulate.network import NetworkRun, RunOptions, run_everywhere, run_network
from tinyq.emulate.qemu import QemuRunner
from tinyq.emulate.renode import RenodeRunner
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Emulator, Samples
from tinyq.emulate.trace import RunTrace
from tinyq.emulate.unicorn import UnicornRunner

__all__ = [
    "DEFAULT_TIMEOUT",
    "EMULATORS",
    "Choice",
    "Emulator",
    "HostRunner",
    "NetworkRun",
    "QemuRunner",
    "RenodeRunner",
    "RunOptions",
    "RunTrace",
    "Samples",
    "Tool",
    "UnicornRunner",
    "choose",
    "run_everywhere",
    "run_network",
    "tools",
]
