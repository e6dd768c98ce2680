"""Running artifacts on the host and in QEMU: outputs, layers, exact counts, stack, failures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_network import MASK, SOURCE, asm_loop, write_fake
from numpy.typing import NDArray

from tinyq.build import Artifact, build_firmware, build_host
from tinyq.emulate import HostRunner, QemuRunner, RunOptions, RunTrace, run_network
from tinyq.emulate.qemu import instructions_from_ticks
from tinyq.errors import TinyqError
from tinyq.target import core_names, load_board, load_core

pytestmark = pytest.mark.qemu

Pair = list[NDArray[np.generic]]


def draw(count: int) -> Pair:
    rng = np.random.default_rng(20)
    return [rng.integers(-128, 128, (count, size), dtype=np.int8) for size in (8, 4)]


def sums(samples: Pair) -> NDArray[np.int8]:
    """Result of the first layer, by numpy."""
    first, second = (array.astype(np.int16) for array in samples)
    return (first + np.tile(second, 2)).astype(np.int8)


def expected(samples: Pair) -> NDArray[np.int8]:
    """Result of the network, by numpy."""
    return sums(samples) ^ np.array(MASK, np.uint8).view(np.int8)


def firmware(
    folder: Path, target: str, body: str = "", source: str = SOURCE, *, profile: bool = False
) -> Artifact:
    core = load_core(target)
    network = write_fake(folder / "net", body, source=source)
    board = load_board(core.board)
    return build_firmware(network, core, board, folder / "out", profile=profile)


def qemu(folder: Path, target: str, body: str = "", samples: Pair | None = None) -> RunTrace:
    return QemuRunner().run(firmware(folder, target, body), samples or draw(2))


def test_host_with_every_compiler_and_sanitizer(tmp_path: Path) -> None:
    samples = draw(50)
    network = write_fake(tmp_path / "net")
    for number, options in enumerate(
        ({"compiler": "gcc"}, {"compiler": "clang"}, {"sanitize": True})
    ):
        artifact = build_host(network, tmp_path / str(number), **options)  # type: ignore[arg-type]
        trace = HostRunner().run(artifact, samples)
        assert np.array_equal(trace.outputs[0], expected(samples))
        assert trace.instructions_per_inference is None
        assert trace.stack_bytes is None
        assert trace.layers is None


def test_host_layers(tmp_path: Path) -> None:
    samples = draw(7)
    artifact = build_host(write_fake(tmp_path / "net"), tmp_path / "out", profile=True)
    trace = HostRunner().run(artifact, samples)
    assert trace.layers is not None
    assert list(trace.layers) == ["add", "xor"]
    assert np.array_equal(trace.layers["add"], sums(samples))
    assert np.array_equal(trace.layers["xor"], expected(samples))


@pytest.mark.parametrize("target", core_names())
def test_every_core(tmp_path: Path, target: str) -> None:
    samples = draw(30)
    artifact = firmware(tmp_path / "plain", target)
    trace = QemuRunner().run(artifact, samples)
    assert np.array_equal(trace.outputs[0], expected(samples))
    assert trace.instructions_per_inference is not None
    assert len(set(trace.instructions_per_inference)) == 1  # no branch depends on the data
    assert trace.stack_bytes is not None
    assert artifact.footprint is not None
    assert 0 < trace.stack_bytes <= artifact.footprint.stack_bound_bytes

    profiled = QemuRunner().run(firmware(tmp_path / "layers", target, profile=True), samples)
    assert profiled.instructions_per_inference is None
    assert profiled.layers is not None
    assert np.array_equal(profiled.layers["add"], sums(samples))
    assert np.array_equal(profiled.layers["xor"], expected(samples))


# rounds and NOPs of a loop of 1 + rounds * (NOPs + 2) instructions
LOOPS = [(1, 1), (250, 100)]


@pytest.mark.parametrize("target", core_names())
def test_counts_follow_the_closed_form(tmp_path: Path, target: str) -> None:
    counts, layers = [], []
    for number, loop in enumerate(LOOPS):
        body = asm_loop(*loop)
        trace = qemu(tmp_path / str(number), target, body)
        assert trace.instructions_per_inference is not None
        counts.append(trace.instructions_per_inference[0])
        artifact = firmware(tmp_path / f"{number}p", target, body, profile=True)
        layers.append(QemuRunner().run(artifact, draw(1)).layer_instructions["xor"][0])
    closed = [1 + rounds * (nops + 2) for rounds, nops in LOOPS]
    assert np.diff(counts).tolist() == np.diff(closed).tolist()
    assert np.diff(layers).tolist() == np.diff(closed).tolist()


ASM_ONLY = (
    SOURCE[: SOURCE.index("int fake_invoke")]
    + """
__attribute__((naked)) int fake_invoke(fake_t *net)
{
    (void)net;
    __asm volatile(".syntax unified\\n\\t.rept REPEAT\\n\\tnop\\n\\t.endr\\n\\t"
                   "movs r0, #0\\n\\tbx lr");
}
"""
)


@pytest.mark.parametrize("target", core_names())
@pytest.mark.parametrize("nops", [0, 10_001])
def test_absolute_count_of_a_known_invoke(tmp_path: Path, target: str, nops: int) -> None:
    artifact = firmware(tmp_path, target, source=ASM_ONLY.replace("REPEAT", str(nops)))
    trace = QemuRunner().run(artifact, draw(3))
    assert trace.instructions_per_inference == (nops + 2,) * 3
    assert trace.stack_bytes == 0


def test_long_inference_does_not_wrap(tmp_path: Path) -> None:
    rounds, nops = 255, 100
    loop = asm_loop(rounds, nops)
    body, one = (
        f"for (volatile int again = 0; again < {again}; ++again) {{ {loop} }}"
        for again in (4001, 4000)
    )
    counts = [
        qemu(tmp_path / str(i), "cortex-m3", text, draw(1)).instructions_per_inference
        for i, text in enumerate((body, one))
    ]
    assert counts[0] is not None
    assert counts[1] is not None
    # A round of the outer loop adds the volatile counter's load, add, store, load, compare, branch.
    assert counts[0][0] - counts[1][0] == 1 + rounds * (nops + 2) + 6


@pytest.mark.parametrize("frame", [64, 1000, 20000])
def test_painted_stack_is_the_frame(tmp_path: Path, frame: int) -> None:
    body = (
        f"volatile uint8_t deep[{frame}]; for (int i = 0; i < {frame}; ++i) {{ deep[i] = 7; }}"
        " values[0] = (int8_t)(values[0] ^ (deep[values[1] & 31] - 7));"
    )
    artifact = firmware(tmp_path, "cortex-m4", body)
    trace = QemuRunner().run(artifact, draw(3))
    assert artifact.footprint is not None
    assert trace.stack_bytes is not None
    assert frame <= trace.stack_bytes <= artifact.footprint.stack_bound_bytes <= frame + 32


def test_a_thousand_samples_in_one_run(tmp_path: Path) -> None:
    samples = draw(1000)
    trace = qemu(tmp_path, "cortex-m4", samples=samples)
    assert trace.samples == 1000
    assert trace.outputs[0].shape == (1000, 8)
    assert trace.outputs[0].dtype == np.int8
    assert np.array_equal(trace.outputs[0], expected(samples))


def test_no_samples(tmp_path: Path) -> None:
    trace = qemu(tmp_path, "cortex-m4", samples=draw(0))
    assert trace.samples == 0


DEEP = """volatile uint8_t deep[70000];
for (int i = 0; i < 70000; ++i) { deep[i] = 7; }
values[0] = (int8_t)(values[0] ^ deep[values[1] & 31]);"""

# core, C that fails at run time, what the message says
FAILURES = [
    ("cortex-m0", "return -3;", "invoke returned an error"),
    ("cortex-m0", '__asm volatile("udf #0");', "fault at 0x"),
    ("cortex-m0", "values[0] = (int8_t)*(volatile uint32_t *)(net->arena + 1);", "fault at 0x"),
    ("cortex-m4", "*(volatile uint32_t *)0xF0000000u = 1;", "fault at 0x"),
    ("cortex-m33", "*(volatile uint32_t *)0xF0000000u = 1;", "fault at 0x"),
    ("cortex-m55", "*(volatile uint32_t *)0xF0000000u = 1;", "fault at 0x"),
]


@pytest.mark.parametrize(("target", "body", "found"), FAILURES)
def test_failing_firmware(tmp_path: Path, target: str, body: str, found: str) -> None:
    with pytest.raises(TinyqError, match="TQ404") as caught:
        qemu(tmp_path, target, body)
    assert found in str(caught.value)


def test_stack_that_cannot_suffice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match=r"TQ405.*70\d\d\d bytes of stack"):
        firmware(tmp_path, "cortex-m4", DEEP)


def test_stack_overflow_is_seen(tmp_path: Path) -> None:
    # A profiled build is not measured, so that this stack gets as far as the emulator.
    artifact = firmware(tmp_path, "cortex-m4", DEEP, profile=True)
    with pytest.raises(TinyqError, match=r"(?s)TQ404.*stack overflow"):
        QemuRunner().run(artifact, draw(1))


def test_firmware_without_an_end(tmp_path: Path) -> None:
    artifact = firmware(tmp_path, "cortex-m4", "for (;;) { values[0] ^= 1; }")
    with pytest.raises(TinyqError, match=r"TQ404.*not finished after 0.5 s"):
        QemuRunner().run(artifact, draw(1), timeout=0.5)


# core, instruction that it has not
FOREIGN = [
    ("cortex-m0", "umull r2, r3, r2, r3"),
    ("cortex-m0plus", "sdiv r2, r2, r3"),
    ("cortex-m3", "smlad r2, r2, r2, r2"),
    ("cortex-m4+scalar", "smmla r2, r2, r2, r2"),
    ("cortex-m33+scalar", "smlad r2, r2, r2, r2"),
    ("cortex-m7", "vaddva.s8 r2, q0"),
    ("cortex-m55+dsp", "vaddva.s8 r2, q0"),
]


@pytest.mark.parametrize(("target", "instruction"), FOREIGN)
def test_instructions_of_another_core_do_not_assemble(
    tmp_path: Path, target: str, instruction: str
) -> None:
    with pytest.raises(TinyqError, match="TQ402"):
        firmware(tmp_path, target, f'__asm volatile("{instruction}" ::: "r2", "r3");')


def test_sanitizer_finding_is_reported(tmp_path: Path) -> None:
    body = "int shift = values[0] | 63; values[1] = (int8_t)((1 << shift) & 1);"
    network = write_fake(tmp_path / "net", body)
    artifact = build_host(network, tmp_path / "out", sanitize=True)
    with pytest.raises(TinyqError, match=r"(?s)TQ404.*shift"):
        HostRunner().run(artifact, draw(1))


def test_missing_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYQ_QEMU", "no-such-qemu")
    with pytest.raises(TinyqError, match=r"TQ403.*no-such-qemu"):
        qemu(tmp_path, "cortex-m4")


@pytest.mark.parametrize("options", [RunOptions(), RunOptions(emulator="host", sanitize=True)])
def test_network_in_one_call(tmp_path: Path, options: RunOptions) -> None:
    samples = draw(4)
    network = write_fake(tmp_path)
    plain = run_network(network, samples, options)
    assert plain.trace.layers is None
    run = run_network(network, samples, dataclasses.replace(options, layers=True))
    assert np.array_equal(run.trace.outputs[0], expected(samples))
    assert run.trace.layers is not None
    assert np.array_equal(run.trace.layers["add"], sums(samples))
    assert run.trace.instructions_per_inference == plain.trace.instructions_per_inference
    assert (run.trace.instructions_per_inference is None) == (options.emulator == "host")


@pytest.mark.parametrize("name", ["net", "network", "arena", "port", "timer", "harness", "NET"])
def test_names_that_the_harness_could_have(tmp_path: Path, name: str) -> None:
    samples = draw(2)
    network = write_fake(tmp_path, name=name)
    for emulator in ("host", "qemu"):
        run = run_network(network, samples, RunOptions(emulator))
        assert np.array_equal(run.trace.outputs[0], expected(samples))


def test_unknown_emulator(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match=r"TQ303.*bochs"):
        run_network(write_fake(tmp_path), draw(1), RunOptions(emulator="bochs"))


# arrays that do not fit the inputs, what the message says
MISFITS = [
    ([np.zeros((2, 8), np.int8)], "1 arrays for 2 inputs"),
    ([np.zeros((2, 8), np.int8), np.zeros((3, 4), np.int8)], "different numbers"),
    ([np.zeros((2, 8), np.uint8), np.zeros((2, 4), np.int8)], "uint8, not int8"),
    ([np.zeros((2, 3, 3), np.int8), np.zeros((2, 4), np.int8)], "3x3, not 8 bytes"),
]


@pytest.mark.parametrize(("samples", "found"), MISFITS)
def test_samples_that_do_not_fit(tmp_path: Path, samples: Pair, found: str) -> None:
    artifact = build_host(write_fake(tmp_path / "net"), tmp_path / "out")
    with pytest.raises(TinyqError, match="TQ502") as caught:
        HostRunner().run(artifact, samples)
    assert found in str(caught.value)


@pytest.mark.parametrize("clock_hz", [16_000_000, 20_000_000, 25_000_000, 32_000_000])
def test_ticks_give_instructions_for_every_phase(clock_hz: int) -> None:
    convert = instructions_from_ticks(clock_hz)
    for count in (1, 2, 3, 10, 999, 123_457, 499_999_999):
        for phase in range(0, 10**9 // clock_hz + 63, 3):  # nanoseconds into a tick
            start = phase * clock_hz // 10**9
            stop = (phase + 256 * count) * clock_hz // 10**9
            assert convert(np.array([stop - start]))[0] == count


def test_slow_timer_cannot_count() -> None:
    with pytest.raises(ValueError, match="too slow"):
        instructions_from_ticks(7_000_000)


def test_sanitizers_are_for_the_host_alone(tmp_path: Path) -> None:
    with pytest.raises(TinyqError) as problem:
        run_network(write_fake(tmp_path), draw(1), RunOptions(emulator="qemu", sanitize=True))
    assert [d.code for d in problem.value.diagnostics] == ["TQ303"]
    assert "--emulator host" in problem.value.diagnostics[0].remedy
