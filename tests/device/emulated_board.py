"""Firmware for the serial protocol in QEMU, behind a proxy that can spoil what passes."""

from __future__ import annotations

import contextlib
import functools
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from qdq import Qdq

import tinyq
from tinyq.api import export
from tinyq.target import load_board

SHIFT = 6  # an instruction takes 2^6 ns of the emulated clock, however busy this machine is
Spoil = Callable[[bytes], bytes]


def network(outputs: int = 5) -> onnx.ModelProto:
    """Convolution, Relu, mean and a dense layer; input [1, 3, 12, 11], output [1, outputs]."""
    rng = np.random.default_rng(7)
    g = Qdq()
    x = g.dq(g.input((1, 3, 12, 11), name="image"), 0.05, 3)
    w = g.weights(rng.integers(-127, 128, (4, 3, 3, 3)), rng.uniform(0.001, 0.01, 4))
    y = g.qdq(g.op("Relu", g.op("Conv", x, w, pads=[1, 1, 1, 1])), 0.03, -128)
    y = g.op("Flatten", g.qdq(g.op("GlobalAveragePool", y), 0.02, -128))
    y = g.op("MatMul", y, g.weights(rng.integers(-127, 128, (4, outputs)), 0.01))
    return g.end(y, 0.05).model()


class Boards:
    """Compiled folders and device firmware, each made once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = functools.cache(self._folder)
        self.firmware = functools.cache(self._firmware)

    def _folder(self, target: str, outputs: int = 5) -> Path:
        model = self.place / f"net{outputs}.onnx"
        onnx.save(network(outputs), model)
        made = self.place / f"{target}-{outputs}"
        tinyq.compile(model, output=made, target=target, name="net")
        return made

    def _firmware(self, board: str, outputs: int = 5) -> Path:
        package = self.place / f"{board}-{outputs}"
        export(self.folder(load_board(board).mcu.core, outputs), "bare", package, board=board)
        make = ["make", "-s", "FIRMWARE=device", "CFLAGS=-O2 -Werror"]
        subprocess.run(make, cwd=package, check=True, stdout=subprocess.DEVNULL)
        return package / "build-device" / "firmware.elf"

    def qemu(self, board: str, serial: str, outputs: int = 5) -> subprocess.Popen[str]:
        machine = load_board(board).qemu
        assert machine is not None
        return subprocess.Popen(
            ["qemu-system-arm", "-M", machine.machine, *machine.args, "-display", "none",
             "-monitor", "none", "-nic", "none", "-nodefaults", "-icount", f"shift={SHIFT}",
             "-serial", serial, "-kernel", str(self.firmware(board, outputs))],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


class Proxy:
    """Between a host, which may come and go, and a board; the hooks change what passes."""

    def __init__(self) -> None:
        self.to_board: Spoil = lambda data: data
        self.to_host: Spoil = lambda data: data
        self.board_side = self._listen()
        self.host_side = self._listen()
        self.board: socket.socket | None = None
        self.host: socket.socket | None = None
        self.threads: list[threading.Thread] = []
        self.closed = False

    @staticmethod
    def _listen() -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(20)
        return listener

    @property
    def url(self) -> str:
        return f"socket://127.0.0.1:{self.host_side.getsockname()[1]}"

    @property
    def serial(self) -> str:
        """QEMU's option."""
        return f"tcp:127.0.0.1:{self.board_side.getsockname()[1]}"

    def start(self) -> None:
        self.board, _ = self.board_side.accept()
        for work in (self._hosts, self._replies):
            self.threads.append(threading.Thread(target=work, daemon=True))
            self.threads[-1].start()

    def _hosts(self) -> None:
        with contextlib.suppress(OSError):
            while not self.closed:
                self.host, _ = self.host_side.accept()
                with contextlib.suppress(OSError):
                    while data := self.host.recv(4096):
                        self.send_to_board(self.to_board(data))

    def _replies(self) -> None:
        assert self.board is not None
        with contextlib.suppress(OSError):
            while data := self.board.recv(4096):
                spoilt = self.to_host(data)
                if self.host is not None:
                    with contextlib.suppress(OSError):
                        self.host.sendall(spoilt)

    def send_to_board(self, data: bytes) -> None:
        assert self.board is not None
        self.board.sendall(data)

    def unplug(self) -> None:
        if self.host is not None:
            with contextlib.suppress(OSError):
                self.host.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed = True
        for one in (self.host_side, self.board_side, self.host, self.board):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


@contextlib.contextmanager
def emulated(boards: Boards, board: str, outputs: int = 5) -> Iterator[Proxy]:
    """A running board and the proxy before it."""
    boards.firmware(board, outputs)
    proxy = Proxy()
    with boards.qemu(board, proxy.serial, outputs) as process:
        try:
            proxy.start()
            yield proxy
        finally:
            process.kill()
            proxy.close()


def noisy(seed: int, *, dropped: float = 0.0, flipped: float = 0.0, delay: float = 0.0) -> Spoil:
    """Drops and flips that share of the bytes, and holds what arrives back up to ``delay`` s."""
    rng = random.Random(seed)

    def spoil(data: bytes) -> bytes:
        if delay:
            time.sleep(rng.uniform(0, delay))
        kept = bytearray()
        for byte in data:
            if rng.random() >= dropped:
                kept.append(byte ^ (1 << rng.randrange(8)) if rng.random() < flipped else byte)
        return bytes(kept)

    return spoil
