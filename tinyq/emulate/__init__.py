"""Runs artifacts: on this machine, and on emulated boards."""

from tinyq.emulate.host import HostRunner
from tinyq.emulate.network import EMULATORS, NetworkRun, RunOptions, run_network
from tinyq.emulate.qemu import QemuRunner
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Emulator, Samples
from tinyq.emulate.trace import RunTrace

__all__ = [
    "DEFAULT_TIMEOUT",
    "EMULATORS",
    "Emulator",
    "HostRunner",
    "NetworkRun",
    "QemuRunner",
    "RunOptions",
    "RunTrace",
    "Samples",
    "run_network",
]
