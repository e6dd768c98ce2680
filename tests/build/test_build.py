"""Toolchains, footprints, stack bounds, and the refusal of floating-point code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fake_network import SOURCE, write_fake

from tinyq.build import build_firmware, build_host, load_network
from tinyq.build.arm import arm_toolchain
from tinyq.build.disassembly import Instruction
from tinyq.build.elf import read_elf
from tinyq.build.stack import UnboundedStackError, read_callgraph
from tinyq.errors import TinyqError
from tinyq.target import core_names, load_board, load_core

pytestmark = pytest.mark.qemu

M4 = load_core("cortex-m4")


def build(folder: Path, target: str, body: str = "", source: str = SOURCE, **options: bool):  # type: ignore[no-untyped-def]
    core = load_core(target)
    network = write_fake(folder / "net", body, source=source)
    return build_firmware(network, core, load_board(core.board), folder / "out", **options)


@pytest.mark.parametrize("target", core_names())
def test_footprint_counts_the_network_and_its_library_routines(tmp_path: Path, target: str) -> None:
    artifact = build(tmp_path, target)
    footprint = artifact.footprint
    # The oracle is the binutils' `size` on the network's own objects; nothing of a library is used.
    size = arm_toolchain("gcc").compiler.tool("size")
    objects = [str(tmp_path / "out" / f"net_{name}.o") for name in ("fake", "fake_data")]
    lines = subprocess.run(
        [size, "-A", *objects], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sections = [line.split() for line in lines if line.startswith((".text", ".rodata"))]
    code = sum(int(parts[1]) for parts in sections if parts[0].startswith(".text"))
    constants = sum(int(parts[1]) for parts in sections if parts[0].startswith(".rodata"))
    assert constants == footprint.constant_bytes == 8
    assert code <= footprint.code_bytes <= code + 16  # alignment of functions
    assert footprint.data_bytes == 0
    firmware = read_elf(artifact.executable)
    assert firmware.code_bytes > footprint.code_bytes + 300  # start-up and harness are not in it


def test_library_routines_belong_to_the_network(tmp_path: Path) -> None:
    division = "values[0] = (int8_t)(values[1] / (values[2] | 1));"
    plain = build(tmp_path / "a", "cortex-m0").footprint
    divides = build(tmp_path / "b", "cortex-m0", division).footprint
    assert divides.code_bytes > plain.code_bytes + 200  # __aeabi_idiv


VARIABLES = SOURCE.replace(
    "int fake_init(", "static int8_t counts[40];\nstatic int8_t first = 3;\nint fake_init("
)


def test_variables_count_as_data_and_their_values_as_flash(tmp_path: Path) -> None:
    body = "counts[values[0] & 31] ++; first = (int8_t)(first ^ counts[3]); values[0] = first;"
    plain = build(tmp_path / "a", "cortex-m3").footprint
    footprint = build(tmp_path / "b", "cortex-m3", body, VARIABLES).footprint
    assert footprint.data_bytes == 44
    assert footprint.constant_bytes == plain.constant_bytes + 4


# core, C that computes in float
FLOAT = [
    ("cortex-m0", "values[0] = (int8_t)((float)values[1] * 1.5f);"),
    ("cortex-m3", "values[0] = (int8_t)((double)values[1] / 3.0);"),
    ("cortex-m4", "values[0] = (int8_t)((float)values[1] + 0.25f);"),
    ("cortex-m55", "values[0] = (int8_t)((float)values[1] * 1.5f);"),
    ("cortex-m55", '__asm volatile(".fpu fpv5-d16\\n\\tvadd.f32 s0, s0, s0" ::: "memory");'),
]


@pytest.mark.parametrize(("target", "body"), FLOAT)
def test_floating_point_in_an_integer_build_is_refused(
    tmp_path: Path, target: str, body: str
) -> None:
    with pytest.raises(TinyqError, match="TQ406"):
        build(tmp_path, target, body)


def test_floating_point_can_be_allowed(tmp_path: Path) -> None:
    artifact = build(tmp_path, "cortex-m4", FLOAT[2][1], allow_float=True)
    assert artifact.footprint is not None


def test_helium_is_not_floating_point(tmp_path: Path) -> None:
    body = '__asm volatile("vmov.i32 q0, #0\\n\\tvaddva.s8 r2, q0" ::: "r2", "memory");'
    assert build(tmp_path, "cortex-m55", body).footprint is not None


def test_too_large_for_the_memory(tmp_path: Path) -> None:
    source = SOURCE.replace(
        "int fake_init(", "static int8_t big[600000];\nint fake_init("
    )  # the microbit has 512 KiB
    with pytest.raises(TinyqError, match="TQ405") as caught:
        build(tmp_path, "cortex-m0", "values[0] = ++big[(uint8_t)values[1]];", source)
    assert "RAM" in str(caught.value)


def test_code_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match="TQ402") as caught:
        build_host(write_fake(tmp_path / "net", "nonsense;"), tmp_path / "out")
    assert "nonsense" in str(caught.value)


def test_warnings_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match="conversion"):
        build_host(write_fake(tmp_path / "net", "values[0] = net->arena[9];"), tmp_path / "out")


def test_sizes_of_header_and_manifest_must_agree(tmp_path: Path) -> None:
    network = write_fake(tmp_path / "net")
    header = network.folder / "fake.h"
    header.write_text(header.read_text().replace("OUTPUT_0_SIZE 8", "OUTPUT_0_SIZE 9"))
    with pytest.raises(TinyqError, match="tinyq_harness_output_0_matches"):
        build_host(network, tmp_path / "out")


def test_missing_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = write_fake(tmp_path / "net")
    monkeypatch.setenv("TINYQ_ARM_GCC", "no-such-gcc")
    with pytest.raises(TinyqError, match=r"TQ401.*no-such-gcc"):
        build_firmware(network, M4, load_board(M4.board), tmp_path / "out")
    monkeypatch.setenv("TINYQ_CC", "no-such-cc")
    with pytest.raises(TinyqError, match=r"TQ401.*no-such-cc"):
        build_host(network, tmp_path / "out")


# file to spoil, its new text (None removes it), what the message says
SPOILT = [
    ("manifest.json", None, "cannot be read"),
    ("manifest.json", "{", "cannot be read"),
    ("manifest.json", "{}", "'name'"),
    ("manifest.json", "[]", "lacks a field"),
    ("manifest.json", '{"format": 999}', "has format 999"),
    ("fake.h", None, "C code of 'fake'"),
]


@pytest.mark.parametrize(("file", "text", "found"), SPOILT)
def test_not_a_compiled_folder(tmp_path: Path, file: str, text: str | None, found: str) -> None:
    network = write_fake(tmp_path)
    (network.folder / file).unlink()
    if text is not None:
        (network.folder / file).write_text(text)
    with pytest.raises(TinyqError, match="TQ503") as caught:
        load_network(tmp_path)
    assert found in str(caught.value)


def _ci(*lines: str) -> str:
    return "\n".join(('graph: { title: "x.c"', *lines, "}"))


def _node(name: str, size: int, kind: str = "static") -> str:
    return f'node: {{ title: "{name}" label: "{name}\\nx.c:1:1\\n{size} bytes ({kind})" }}'


def _edge(caller: str, callee: str) -> str:
    return f'edge: {{ sourcename: "{caller}" targetname: "{callee}" label: "x.c:2:2" }}'


LIBRARY = {
    "memcpy": [
        Instruction(0, "push", "{r4, r5, lr}"),
        Instruction(2, "bl", "10 <helper>"),
        Instruction(6, "pop", "{r4, r5, pc}"),
    ],
    "helper": [
        Instruction(16, "stmdb", "sp!, {r4-r7}"),
        Instruction(20, "sub", "sp, #24"),
        Instruction(22, "vpush", "{d8-d9}"),
        Instruction(26, "str.w", "lr, [sp, #-8]!"),
        Instruction(30, "bne.n", "10 <helper+0x4>"),
    ],
}

ASSEMBLY = {
    "kernel": [
        Instruction(0, "push", "{r4, lr}"),
        *[
            Instruction(2 + 10 * turn + at, mnemonic, operands)
            for turn in range(3)
            for at, mnemonic, operands in (
                (0, "stmdb", "sp!, {r0, r1, r2, r3, ip, lr}"),
                (4, "bl", "40 <rule>"),
                (6, "ldmia.w", "sp!, {r0, r1, r2, r3, ip, lr}"),
                (8, "ssat", "r2, #8, r0"),
            )
        ],
        Instruction(32, "pop", "{r4, pc}"),
    ],
    "rule": [Instruction(64, "push", "{r4, r5}"), Instruction(66, "bx", "lr")],
}


def test_calls_from_inline_assembly_count_once(tmp_path: Path) -> None:
    """The compiler sees neither the calls nor what is saved around each of them."""
    (tmp_path / "x.ci").write_text(_ci(_node("x.c:kernel", 8), _node("x.c:rule", 8)))
    graph = read_callgraph([tmp_path / "x.ci"], ASSEMBLY)
    assert graph.worst_case("x.c:kernel") == 8 + 24 + 8


# lines of the call graph, worst case of f in bytes
GRAPHS = [
    ((_node("f", 24),), 24),
    ((_node("f", 24), _node("g", 8), _edge("f", "g")), 32),
    ((_node("f", 4), _node("g", 8), _node("h", 16), _edge("f", "g"), _edge("f", "h")), 20),
    ((_node("f", 4), _node("g", 8), _node("h", 16), _edge("f", "g"), _edge("g", "h")), 28),
    ((_node("f", 4), _edge("f", "memcpy")), 4 + 12 + 16 + 24 + 16 + 8),
    ((_node("f", 40, "dynamic,bounded"),), 40),
]


@pytest.mark.parametrize(("lines", "worst"), GRAPHS)
def test_worst_case_stack(tmp_path: Path, lines: tuple[str, ...], worst: int) -> None:
    (tmp_path / "x.ci").write_text(_ci(*lines))
    assert read_callgraph([tmp_path / "x.ci"], LIBRARY).worst_case("f") == worst


# lines of the call graph, reason why there is no bound
UNBOUNDED = [
    ((_node("f", 4), _node("g", 4), _edge("f", "g"), _edge("g", "f")), "recursive"),
    ((_node("f", 4), _edge("f", "__indirect_call")), "pointer"),
    ((_node("f", 4, "dynamic"),), "no fixed size"),
    ((_node("f", 4), _edge("f", "elsewhere")), "not known"),
]


@pytest.mark.parametrize(("lines", "reason"), UNBOUNDED)
def test_stack_without_a_bound(tmp_path: Path, lines: tuple[str, ...], reason: str) -> None:
    (tmp_path / "x.ci").write_text(_ci(*lines))
    graph = read_callgraph([tmp_path / "x.ci"], LIBRARY)
    with pytest.raises(UnboundedStackError, match=reason):
        graph.worst_case("f")
