"""`tinyq verify --device`: the board's own firmware in QEMU, over a socket or a pseudo-terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from emulated_board import SHIFT, Boards, Proxy, emulated, noisy
from typer.testing import CliRunner

import tinyq
from tinyq.build import load_network
from tinyq.cli import app
from tinyq.device import DeviceOptions, DeviceRun, run_on_device
from tinyq.device.frames import HELLO, INVOKE, MOST_PAYLOAD, REPLY, SYNC, WRITE, Decoder, Frame
from tinyq.emulate.network import RunOptions, run_network
from tinyq.errors import TinyqError
from tinyq.target import load_board
from tinyq.verification.samples import random_samples
from tinyq.verification.verify import VerifyOptions

pytestmark = pytest.mark.qemu
FAST = 1_000_000  # QEMU's UARTs take bytes at any rate: waits are short


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    return Boards(tmp_path_factory.mktemp("device"))


def run(boards: Boards, proxy: Proxy, count: int = 3, **options: float) -> DeviceRun:
    """Run samples on the mps2-an386 behind ``proxy`` and compare with the host's C."""
    net = load_network(boards.folder("cortex-m4"))
    samples = random_samples(net.inputs, count, 3).inputs
    options.setdefault("answer", 20)  # this machine may be busy
    made = run_on_device(net, samples, DeviceOptions(proxy.url, FAST, **options))
    wanted = run_network(net, samples, RunOptions(emulator="host")).trace.outputs
    assert len(made.trace.outputs) == len(wanted) == 1
    assert np.array_equal(made.trace.outputs[0], wanted[0])
    assert made.golden_passed
    return made


# board, what counts cycles
UARTS = [
    ("qemu-mps2-an385", "SysTick"),
    ("qemu-mps2-an500", "SysTick"),
    ("qemu-mps2-an505", "SysTick"),
    ("qemu-mps3-an547", "SysTick"),
    ("microbit-v1", "a timer at the core's clock"),
    ("netduinoplus2", "SysTick"),
    ("stm32vldiscovery", "SysTick"),
]


@pytest.mark.parametrize(("board", "counter"), UARTS)
def test_verified_over_the_uart(boards: Boards, board: str, counter: str) -> None:
    folder = boards.folder(load_board(board).mcu.core)
    with emulated(boards, board) as proxy:
        options = VerifyOptions(random=2, board=board, device=DeviceOptions(proxy.url, answer=20))
        report = tinyq.verify(folder, options)
    device = report.device
    assert report.equal
    assert report.emulator == "device"
    assert device is not None
    assert device.cycles is not None
    assert 0 < device.cycles < 2**31
    assert device.core_hz > 0
    assert device.milliseconds == pytest.approx(1e3 * device.cycles / device.core_hz)
    # QEMU has no DWT: the firmware falls back to what moves.
    assert device.counter == counter
    # The golden samples have the same CRC on the board as on any other machine.
    manifest = json.loads((boards.firmware(board).parents[1] / "manifest.json").read_text())
    assert device.golden_crc == manifest["crc"]
    assert device.golden_samples == manifest["samples"]


def test_cycles_are_those_of_one_inference(boards: Boards) -> None:
    """An instruction is 64 ns of 25 MHz, so that cycles are 1.6 times what QEMU counts exactly."""
    folder = boards.folder("cortex-m4")
    counted = tinyq.verify(folder, VerifyOptions(random=2)).instructions_per_inference
    assert counted is not None
    with emulated(boards, "qemu-mps2-an386") as proxy:
        cycles = run(boards, proxy, count=2).cycles
    per_instruction = 25e6 * 2**SHIFT / 1e9
    # The firmware calls invoke between two reads of the counter, some 20 instructions apart.
    for one in cycles:
        assert 0 <= one / per_instruction - counted < 60


def test_over_a_pseudo_terminal(boards: Boards) -> None:
    boards.firmware("qemu-mps2-an386")
    with boards.qemu("qemu-mps2-an386", "pty") as process:
        try:
            assert process.stdout is not None
            found = re.search(r"/dev/pts/\d+", process.stdout.readline())
            assert found
            command = ["verify", str(boards.folder("cortex-m4")), "--device", found[0], "--random",
                       "2", "--baud", "115200"]  # fmt: skip
            done = CliRunner().invoke(app, [*command, "--json"])
            shown = CliRunner(env={"NO_COLOR": "1"}).invoke(app, command)
        finally:
            process.kill()
    report = json.loads(done.stdout)
    assert done.exit_code == shown.exit_code == 0
    assert report["equal"]
    assert report["device"]["port"] == found[0]
    assert "ms at 25 MHz" in shown.stdout
    assert f"the C on {found[0]} agree" in shown.stdout


NOISE = [
    ("dropped", {"dropped": 0.002}),
    ("flipped", {"flipped": 0.002}),
    ("delayed", {"delay": 0.15}),
    ("all", {"dropped": 0.001, "flipped": 0.001, "delay": 0.02}),
]


@pytest.mark.parametrize("kinds", [kinds for _, kinds in NOISE], ids=[name for name, _ in NOISE])
def test_bytes_are_lost_changed_and_late(boards: Boards, kinds: dict[str, float]) -> None:
    with emulated(boards, "qemu-mps2-an386") as proxy:
        proxy.to_board = noisy(1, **kinds)
        proxy.to_host = noisy(2, **kinds)
        assert run(boards, proxy).retries > 0


def test_garbage_before_and_between(boards: Boards) -> None:
    rng = random.Random(5)
    with emulated(boards, "qemu-mps2-an386") as proxy:
        # Syncs and heads that announce more than will come, among random bytes.
        traps = SYNC + b"\x01\x02\x00\x00\xff\x00" + SYNC[:1]
        proxy.send_to_board(rng.randbytes(900) + traps)
        proxy.to_board = lambda data: data + traps
        decoder = Decoder()
        proxy.to_host = lambda data: b"".join(traps + f.encode() for f in decoder.feed(data))
        run(boards, proxy)


def test_unplugged_for_a_moment_goes_on_where_it_was(boards: Boards) -> None:
    decoder, runs = Decoder(), []

    def watch(data: bytes) -> bytes:
        for frame in decoder.feed(data):
            if frame.kind == INVOKE:
                runs.append(frame.payload[0])
                if runs.count(3) == 1 and runs[-1] == 3:
                    proxy.unplug()
        return data

    with emulated(boards, "qemu-mps2-an386") as proxy:
        proxy.to_board = watch
        made = run(boards, proxy, count=6)
    assert made.reconnects == 1
    # The sample that was not finished is run again, those before it are not.
    assert runs == sorted(runs)
    assert set(runs) == set(range(6))
    assert runs.count(3) >= 2


def test_unplugged_for_good(boards: Boards) -> None:
    decoder = Decoder()

    def count(data: bytes) -> bytes:
        if WRITE in {frame.kind for frame in decoder.feed(data)}:
            proxy.host_side.close()
            proxy.unplug()
        return data

    with emulated(boards, "qemu-mps2-an386") as proxy:
        proxy.to_board = count
        with pytest.raises(TinyqError, match=r"TQ906.*after 0 of 3 samples") as caught:
            run(boards, proxy, reconnect=0.3)
        assert caught.value.exit_status == 11


def test_inputs_that_were_lost_on_the_board_are_sent_again(boards: Boards) -> None:
    """A reset of the board loses its inputs: as a stray write, which only the CRC tells."""
    strays = 0
    decoder = Decoder()

    def stray(data: bytes) -> bytes:
        nonlocal strays
        if strays == 0 and any(f.kind == WRITE for f in decoder.feed(data)):
            strays += 1
            return data + Frame(WRITE, 0, bytes(4) + bytes(range(16))).encode()
        return data

    with emulated(boards, "qemu-mps2-an386") as proxy:
        proxy.to_board = stray
        run(boards, proxy)
        assert strays == 1


def test_an_inference_is_not_run_twice(boards: Boards) -> None:
    """Its inputs are gone by then: the first reply to every invoke is lost on the way."""
    swallowed: set[int] = set()

    decoder = Decoder()

    def swallow(data: bytes) -> bytes:
        passed = b""
        for frame in decoder.feed(data):
            if frame.kind == INVOKE | REPLY and frame.sequence not in swallowed:
                swallowed.add(frame.sequence)
            else:
                passed += frame.encode()
        return passed

    with emulated(boards, "qemu-mps2-an386") as proxy:
        proxy.to_host = swallow
        made = run(boards, proxy, count=3)
        assert len(swallowed) == 3
        assert made.retries >= 3


def test_firmware_of_another_model(boards: Boards) -> None:
    with (
        emulated(boards, "qemu-mps2-an386", outputs=4) as proxy,
        pytest.raises(TinyqError, match="TQ905"),
    ):
        run(boards, proxy)
    with emulated(boards, "qemu-mps2-an386") as proxy:
        net = load_network(boards.folder("cortex-m4"))
        other = dataclasses.replace(net, folder=boards.folder("cortex-m3"))
        with pytest.raises(TinyqError, match="tinyq flash"):
            run_on_device(other, random_samples(net.inputs, 1, 0).inputs, DeviceOptions(proxy.url))


# what the other end sends when it is asked, what the message says
ANSWERS = [
    (b"", "TQ903 .*nothing arrived"),
    (bytes(range(0x80, 0xA0)), "TQ903 .*32 bytes arrived, but no answer"),
    (Frame(HELLO | REPLY, 1, bytes(40)).encode()[:30], "TQ903 .*30 bytes .*did not end"),
    (b"FAIL fault at 0x00001234\r\n", "TQ903 .*FAIL fault at 0x00001234"),
    (Frame(HELLO | REPLY, 1, bytes(40), version=9).encode(), "TQ904 .*version 9, this is 1"),
    (Frame(0xFF, 1, b"\1\0\0\0").encode(), "TQ904 .*another version"),
    (Frame(HELLO | REPLY, 1, bytes(8)).encode(), "TQ904 .*8 bytes"),
]


@pytest.mark.parametrize(("answer", "message"), ANSWERS)
def test_wrong_answers(boards: Boards, answer: bytes, message: str) -> None:
    net = load_network(boards.folder("cortex-m4"))
    proxy = Proxy()

    def serve() -> None:
        proxy.host, _ = proxy.host_side.accept()
        proxy.host.recv(4096)
        proxy.host.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    samples = random_samples(net.inputs, 1, 0).inputs
    try:
        with pytest.raises(TinyqError, match=message) as caught:
            run_on_device(net, samples, DeviceOptions(proxy.url, FAST, answer=0.5))
    finally:
        proxy.close()
    assert caught.value.exit_status == 11


def test_closed_while_opening(boards: Boards) -> None:
    net = load_network(boards.folder("cortex-m4"))
    proxy = Proxy()

    def hang_up() -> None:
        proxy.host_side.accept()[0].close()

    threading.Thread(target=hang_up, daemon=True).start()
    with pytest.raises(TinyqError, match="TQ906"):
        run_on_device(net, random_samples(net.inputs, 1, 0).inputs, DeviceOptions(proxy.url))
    proxy.close()


PORTS = ["/dev/nothing-here", "socket://127.0.0.1:1", "nonsense://"]


@pytest.mark.parametrize("port", PORTS)
def test_no_such_port(boards: Boards, port: str) -> None:
    command = ["verify", str(boards.folder("cortex-m4")), "--device", port, "--random", "1"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 11
    assert json.loads(done.stdout)["errors"][0]["code"] == "TQ902"


REFUSED = [
    ["--emulator", "host"], ["--layers"], ["--target", "cortex-m3"], ["--sanitize"],
    ["--baud", "0"],
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED)
def test_options_that_a_board_cannot_have(boards: Boards, options: list[str]) -> None:
    command = ["verify", str(boards.folder("cortex-m4")), "--device", os.devnull, "--random", "1"]
    done = CliRunner().invoke(app, [*command, *options, "--json"])
    assert done.exit_code == 5
    assert json.loads(done.stdout)["errors"][0]["code"] == "TQ303"


def test_without_pyserial(boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    command = ["verify", str(boards.folder("cortex-m4")), "--device", "x", "--random", "1"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["errors"][0]["code"] == "TQ901"


def test_frames_are_found_in_anything() -> None:
    rng = random.Random(0)
    for _ in range(300):
        wanted, stream = [], b""
        for _ in range(rng.randrange(1, 5)):
            size = rng.choice([0, 1, 8, 255, MOST_PAYLOAD])
            wanted.append(Frame(rng.randrange(256), rng.randrange(65536), rng.randbytes(size)))
            noise = rng.choice([b"", SYNC, SYNC[:1], rng.randbytes(9), SYNC + b"\1\2\0\0\xff\xff"])
            stream += noise + wanted[-1].encode()
        decoder, found = Decoder(), []
        while stream:
            cut = rng.randrange(1, 40)
            found += decoder.feed(stream[:cut])
            stream = stream[cut:]
        # A false head may hold the last frame back; zeros, which a host sends, end it.
        found += decoder.feed(bytes(300))
        assert found == wanted
    with pytest.raises(ValueError, match="257"):
        Frame(1, 1, bytes(257)).encode()


def test_the_firmware_has_no_floating_point(boards: Boards, tmp_path: Path) -> None:
    elf = boards.firmware("qemu-mps2-an386")
    done = subprocess.run(
        ["arm-none-eabi-nm", str(elf)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "net_invoke" in names
    assert not [name for name in names if re.match(r"__aeabi_[fd]|__(add|mul|div)[sd]f3", name)]
