"""Generated libraries: the API, side by side, determinism, float edges, refusals."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from codegen.fakes import alias_call, copy_call, lut_call, schedule_of, tensor
from codegen.host import UNDEFINED, WARNINGS, Instance, build, program_of, run_once, write

from tinyq.codegen import GenerateOptions, Program, generate, write_program
from tinyq.codegen.arrays import initialiser
from tinyq.errors import TinyqError
from tinyq.ir import Value
from tinyq.plan import plan
from tinyq.select import Schedule

X = np.arange(-10, 10, dtype=np.int8).reshape(1, 5, 4)


def network(step: int = 1) -> Schedule:
    """x -> table -> alias -> table: an addition of 2 * step, and the middle result."""
    table = (np.arange(256) + step).astype(np.uint8).view(np.int8)
    x, y, flat, z = tensor("x", 1, 5, 4), tensor("y", 1, 5, 4), tensor("flat", 20), tensor("z", 20)
    call = lut_call(table, 20, in_place=(0,))
    steps = [(call, [x], [y]), (alias_call(), [y], [flat]), (call, [flat], [z])]
    return schedule_of([x], [z, y], steps)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_runs(tmp_path: Path, compiler: str) -> None:
    z, y = run_once(network(), tmp_path, X, compiler=compiler)
    assert np.array_equal(z, X.reshape(-1) + 2)
    assert np.array_equal(y, X + 1)


def test_equal_functions_and_constants_are_shared() -> None:
    program = program_of(network())
    source = program.files["net.c"].decode()
    assert source.count("static void") == 1
    assert source.count("tinyq_lut_s8(") == 3
    assert program.constant_bytes == 256
    assert [layer["function"] for layer in program.manifest["layers"]] == [
        "tinyq_lut_s8",
        "",
        "tinyq_lut_s8",
    ]


def test_different_functions_are_numbered() -> None:
    x, y, z = tensor("x", 4), tensor("y", 4), tensor("z", 3)
    steps = [(copy_call(4), [x], [y]), (copy_call(3), [y], [z])]
    source = program_of(schedule_of([x], [z], steps)).files["net.c"].decode()
    assert "static void tinyq_copy_s8_1(" in source
    assert "static void tinyq_copy_s8_2(" in source


def test_two_instances_do_not_disturb_each_other(tmp_path: Path) -> None:
    program = program_of(network())
    library = build(program, tmp_path)
    first, second = Instance(library, program), Instance(library, program)
    a = first.run(X)[0]
    b = second.run(X + 50)[0]
    assert np.array_equal(first._view("output", 0), a)
    assert np.array_equal(b, X.reshape(-1) + 52)


@pytest.mark.parametrize("compiler", ["gcc", "g++", "clang"])
def test_two_networks_in_one_program(tmp_path: Path, compiler: str) -> None:
    """Headers, data and objects of two networks go together, from C and from C++."""
    main = tmp_path / f"main.{'cpp' if compiler == 'g++' else 'c'}"
    main.write_text(
        '#include "one.h"\n#include "two.h"\n'
        "static uint8_t arena_one[ONE_ARENA_SIZE] TINYQ_ALIGNED(ONE_ARENA_ALIGN);\n"
        "static uint8_t arena_two[TWO_ARENA_SIZE] TINYQ_ALIGNED(TWO_ARENA_ALIGN);\n"
        "int main(void) {\n"
        "    const int8_t x[20] = {5, -7};\n"
        "    int8_t z[20], y[20], w[20];\n"
        "    one_t one;\n    two_t two;\n"
        "    if (one_init(&one, arena_one, sizeof arena_one) != TINYQ_OK) return 1;\n"
        "    if (two_init(&two, arena_two, sizeof arena_two) != TINYQ_OK) return 2;\n"
        "    if (one_run(&one, x, z, y) != 0 || two_run(&two, x, w, y) != 0) return 3;\n"
        "    return z[0] == 7 && z[1] == -5 && w[0] == 11 && w[1] == -1 ? 0 : 4;\n}\n"
    )
    sources = []
    for name, step in (("one", 1), ("two", 3)):
        write(program_of(network(step), name), tmp_path / name)
        sources += sorted((tmp_path / name).glob("*.c"))
    objects = []
    include = [f"-I{tmp_path / name}" for name in ("one", "two")]
    for source in sources:
        objects.append(tmp_path / f"{source.stem}.o")
        plain = "clang" if compiler == "clang" else "gcc"
        command = [plain, *WARNINGS, "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    executable = tmp_path / "both"
    subprocess.run(
        [compiler, *include, str(main), *map(str, objects), "-o", str(executable)], check=True
    )
    assert subprocess.run([str(executable)], check=False).returncode == 0


def test_init_refuses_bad_memory(tmp_path: Path) -> None:
    program = program_of(network())
    net = Instance(build(program, tmp_path), program)
    size = program.manifest["arena_bytes"]
    address = net.arena.ctypes.data
    for where, count in [(0, size), (address, size - 1), (address + 4, size)]:
        assert net.call("init", ctypes.c_void_p(where), count) == -1


def test_profile_hooks_see_every_layer(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.c"
    hooks.write_text(
        '#include "tinyq_common.h"\nint tinyq_seen[8];\nint tinyq_count;\n'
        "void tinyq_layer_begin(int layer) { tinyq_seen[tinyq_count++] = layer; }\n"
        "void tinyq_layer_end(int layer, const void *output, unsigned bytes) {\n"
        "    tinyq_seen[tinyq_count++] = *(const int8_t *)output + 100 * layer + (int)bytes;\n}\n"
    )
    program = program_of(network())
    net = Instance(build(program, tmp_path, "-DTINYQ_PROFILE"), program)
    net.run(X)
    seen = (ctypes.c_int * 6).in_dll(net.lib, "tinyq_seen")
    first = int(X.flat[0])
    assert list(seen) == [0, first + 21, 1, first + 121, 2, first + 222]


def test_constant_output_and_passed_through_input(tmp_path: Path) -> None:
    x, y = tensor("x", 4), tensor("y", 4)
    fixed = Value("fixed", x.type, np.array([1, -2, 3, -4], np.int8))
    schedule = schedule_of([x], [y, x, fixed], [(copy_call(4, in_place=(0,)), [x], [y])])
    data = np.array([9, 8, -7, 6], np.int8)
    y_got, x_got, fixed_got = run_once(schedule, tmp_path, data)
    assert np.array_equal(y_got, data)
    assert np.array_equal(x_got, data)
    assert np.array_equal(fixed_got, fixed.array)


def test_same_input_same_bytes() -> None:
    assert dict(program_of(network()).files) == dict(program_of(network()).files)
    files = list(program_of(network()).files)
    assert files == sorted(files)
    assert files == [
        "CMakeLists.txt", "manifest.json", "net.c", "net.h", "net_data.c", "net_data.h",
        "tinyq_common.h", "tinyq_math.h",
    ]  # fmt: skip


def test_manifest() -> None:
    program = program_of(network(), options=GenerateOptions(cflags=("-O3",)))
    manifest = json.loads(program.files["manifest.json"])
    assert manifest["name"] == "net"
    assert manifest["target"] == "cortex-m4"
    assert manifest["cflags"] == ["-O3"]
    assert manifest["inputs"] == [
        {
            "name": "x",
            "shape": [1, 5, 4],
            "dtype": "int8",
            "bytes": 20,
            "scale": 0.5,
            "zero_point": -3,
        }
    ]
    assert [layer["output"] for layer in manifest["layers"]] == ["y", "flat", "z"]


def test_hostile_names_stay_inside_comments_and_strings(tmp_path: Path) -> None:
    x, y = tensor('in*/put "1" ??/', 4), tensor("/*ö\\n\n", 4)
    run_once(schedule_of([x], [y], [(copy_call(4), [x], [y])]), tmp_path, np.zeros(4, np.int8))


@pytest.mark.parametrize("name", ["", "2x", "a-b", "int", "tinyq", "tinyq_x", "ö"])
def test_bad_names_are_refused(name: str) -> None:
    schedule = network()
    with pytest.raises(TinyqError) as caught:
        generate(schedule, plan(schedule), name)
    assert caught.value.diagnostics[0].code == "TQ702"


def test_float_edges_round_half_to_even(tmp_path: Path) -> None:
    x, y = tensor("x", 12), tensor("y", 12)
    schedule = schedule_of([x], [y], [(copy_call(12), [x], [y])])
    program = program_of(schedule, options=GenerateOptions(io="float"))
    (tmp_path / "edge.c").write_text(
        '#include "net.h"\nvoid net_edge(const float *x, int8_t *q, float *y);\n'
        "void net_edge(const float *x, int8_t *q, float *y) {\n"
        "    net_quantize_input_0(x, q);\n    net_dequantize_output_0(q, y);\n}\n"
    )
    library = ctypes.CDLL(str(build(program, tmp_path, *UNDEFINED)))
    real = np.array(
        [0, 0.25, 0.75, -0.25, -0.75, 1.25, 0.24, 0.26, 1e9, -1e9, 64.9, -63], np.float32
    )
    levels, back = np.zeros(12, np.int8), np.zeros(12, np.float32)
    library.net_edge(*(ctypes.c_void_p(a.ctypes.data) for a in (real, levels, back)))
    wanted = np.clip(np.rint(real / np.float32(0.5)) - 3, -128, 127)
    assert np.array_equal(levels, wanted.astype(np.int8))
    assert np.array_equal(back, ((wanted + 3) * 0.5).astype(np.float32))
    assert "float" not in program_of(schedule).files["net.h"].decode()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
@pytest.mark.parametrize("count", [1, 19, 20, 21, 60])
def test_initialisers_hold_the_numbers(dtype: str, count: int) -> None:
    info = np.iinfo(dtype)
    array = np.random.default_rng(count).integers(info.min, info.max + 1, count).astype(dtype)
    array[0] = info.min
    text = initialiser(array, False)
    assert [int(part) for part in text.replace("\n", "").rstrip(",").split(",")] == array.tolist()


def test_struct_initialiser() -> None:
    array = np.array([[1, -2], [3, -4]], np.int32)
    assert initialiser(array, True) == "    {1, -2},\n    {3, -4},"


def small_program() -> Program:
    return program_of(network())


def test_write_replaces_only_what_tinyq_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "net"
    write_program(small_program(), folder)
    (folder / "stale.txt").write_text("old")
    write_program(small_program(), folder)
    assert sorted(p.name for p in folder.iterdir()) == list(small_program().files)
    assert [p.name for p in folder.parent.iterdir()] == ["net"]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_program(small_program(), empty)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for bad in (foreign, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TinyqError) as caught:
            write_program(small_program(), bad)
        assert caught.value.diagnostics[0].code == "TQ701"
    assert (foreign / "thesis.tex").read_text() == "mine"


def test_failed_write_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net"
    write_program(small_program(), folder)
    (folder / "mark").write_text("old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TinyqError, match="No space left"):
        write_program(small_program(), folder)
    assert (folder / "mark").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds(tmp_path: Path) -> None:
    write_program(small_program(), tmp_path / "net")
    for command in (["-S", "net", "-B", "build"], ["--build", "build"]):
        subprocess.run(["cmake", *command], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "build" / "libnet.a").exists()
