"""Builds a generated network into a program, and measures it."""

from tinyq.build.artifact import Artifact, Footprint
from tinyq.build.firmware import build_firmware
from tinyq.build.host import build_host
from tinyq.build.network import Network, Port, load_network

__all__ = [
    "Artifact",
    "Footprint",
    "Network",
    "Port",
    "build_firmware",
    "build_host",
    "load_network",
]
