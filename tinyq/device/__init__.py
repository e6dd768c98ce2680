"""Boards on a serial port: the protocol of docs/device.md, runs over it, and flashing."""

from tinyq.device.run import DeviceOptions, DeviceRun, run_on_device

__all__ = ["DeviceOptions", "DeviceRun", "run_on_device"]
