"""Finding the library, its sources and version; buffer sizes as the library itself states them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmsis_cases import TABLE, make_cases

from tinyq.build.cmsis_nn import CmsisNn, find_cmsis_nn
from tinyq.errors import TinyqError
from tinyq.ops.cmsis_nn.buffers import (
    ConvGeometry,
    average_pool_bytes,
    convolve_bytes,
    dense_bytes,
    depthwise_bytes,
)
from tinyq.quant import Rounding

STANDIN = Path(__file__).with_name("standin")
needs_library = pytest.mark.skipif(
    not (os.environ.get("CMSIS_NN_DIR") and os.environ.get("CMSIS_CORE_DIR")),
    reason="CMSIS_NN_DIR and CMSIS_CORE_DIR do not name the library",
)
SIZES = (
    "arm_convolve_get_buffer_sizes_s8",
    "arm_depthwise_conv_get_buffer_sizes_s8",
    "arm_fully_connected_get_buffer_sizes_s8",
    "arm_avgpool_get_buffer_sizes_s8",
    "arm_vector_sum_s8",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library's functions on sizes, for this machine."""
    found = find_cmsis_nn()
    target = tmp_path_factory.mktemp("cmsis") / "sizes.so"
    files = [str(path) for name in SIZES for path in found.root.glob(f"Source/*/{name}.c")]
    include = f"-I{found.root / found.includes[0]}"
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-O1", include, *files, "-o", target],
                   check=True)  # fmt: skip
    return ctypes.CDLL(str(target))


def words(*values: int) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def drawn(seed: int, depthwise: bool) -> ConvGeometry:
    """A geometry with every branch of the dispatch likely."""
    rng = np.random.default_rng(seed)
    row, point = rng.integers(0, 3) == 0, rng.integers(0, 4) == 0
    kernel_h = 1 if row or point else int(rng.integers(1, 6))
    kernel_w = 1 if point else int(rng.integers(1, 8))
    pad_h = 0 if row or point else int(rng.integers(0, 3))
    pad_w = 0 if point else int(rng.integers(0, 3))
    in_h = 1 if row else int(rng.integers(5, 20))
    in_w = int(rng.integers(9, 30))
    stride_h, stride_w = (int(v) for v in rng.integers(1, 4, 2))
    dilation = 2 if rng.integers(0, 6) == 0 and not row else 1
    in_c = int(rng.choice([1, 2, 3, 4, 7, 8, 16, 33, 64]))
    out_c = in_c * int(rng.integers(1, 3)) if depthwise else int(rng.integers(1, 70))
    out_h = (in_h + 2 * pad_h - dilation * (kernel_h - 1) - 1) // stride_h + 1
    extra = int(rng.integers(0, 2))
    out_w = (in_w + 2 * pad_w + extra - dilation * (kernel_w - 1) - 1) // stride_w + 1
    return ConvGeometry(
        in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, 1 if depthwise else in_c,
        stride_h, stride_w, pad_h, pad_w, dilation, dilation,
    )  # fmt: skip


SUFFIXES = {"scalar": "", "dsp": "_dsp", "mve": "_mve"}


def sizes_of(g: ConvGeometry) -> tuple[ctypes.Array[ctypes.c_int32], ...]:
    return (
        words(1, g.in_h, g.in_w, g.in_c),
        words(1, g.out_h, g.out_w, g.out_c),
    )


@needs_library
@pytest.mark.parametrize("isa", SUFFIXES)
def test_convolution_buffers(library: ctypes.CDLL, isa: str) -> None:
    function = getattr(library, f"arm_convolve_wrapper_s8_get_buffer_size{SUFFIXES[isa]}")
    for seed in range(400):
        g = drawn(seed, depthwise=False)
        source, result = sizes_of(g)
        params = words(0, 0, g.stride_w, g.stride_h, g.pad_w, g.pad_h, g.dilation_w, g.dilation_h)
        filters = words(g.out_c, g.kernel_h, g.kernel_w, g.filter_c)
        assert function(params, source, filters, result) == convolve_bytes(g, isa), g


@needs_library
@pytest.mark.parametrize("isa", SUFFIXES)
def test_depthwise_buffers(library: ctypes.CDLL, isa: str) -> None:
    function = getattr(library, f"arm_depthwise_conv_wrapper_s8_get_buffer_size{SUFFIXES[isa]}")
    for seed in range(400):
        g = drawn(seed, depthwise=True)
        source, result = sizes_of(g)
        params = words(0, 0, g.out_c // g.in_c, g.stride_w, g.stride_h, g.pad_w, g.pad_h,
                       g.dilation_w, g.dilation_h)  # fmt: skip
        filters = words(1, g.kernel_h, g.kernel_w, g.out_c)
        assert function(params, source, filters, result) == depthwise_bytes(g, isa), g


@needs_library
@pytest.mark.parametrize("isa", SUFFIXES)
def test_dense_and_mean_buffers(library: ctypes.CDLL, isa: str) -> None:
    dense = getattr(library, f"arm_fully_connected_s8_get_buffer_size{SUFFIXES[isa]}")
    mean = getattr(library, f"arm_avgpool_s8_get_buffer_size{SUFFIXES[isa]}")
    for size in (1, 3, 4, 5, 10, 31, 64, 129, 640):
        assert dense(words(17, 1, 1, size)) == dense_bytes(size, isa)
        assert mean(5, size) == average_pool_bytes(size, isa)


@needs_library
def test_kernel_sums(library: ctypes.CDLL) -> None:
    """The constants for Helium are what the library would sum at run time."""
    dense = {name: make for name, make in TABLE.items() if name.startswith("dense")}
    cases = make_cases(dense, Rounding.TWICE)
    for layer in cases.schedule("cortex-m55").layers:
        constants = {c.suffix: c.array for c in layer.call.constants}
        weights = np.ascontiguousarray(constants["weights"])
        outputs, inputs = weights.shape
        sums = np.empty(outputs, np.int32)
        library.arm_vector_sum_s8(
            sums.ctypes.data_as(ctypes.c_void_p), inputs, outputs,
            weights.ctypes.data_as(ctypes.c_void_p), layer.call.params.activation.input_offset, 0,
            constants["bias"].ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert np.array_equal(sums, constants["kernel_sums"]), layer.node.name


def test_only_what_is_called_is_named() -> None:
    found = find_cmsis_nn(STANDIN)
    assert found.sources(["arm_avgpool_s8"]) == ("Source/Pooling/arm_avgpool_s8.c",)
    both = found.library(["arm_pad_s8", "arm_avgpool_s8"], "once")
    assert both.sources == ("Source/Movement/arm_pad_s8.c", "Source/Pooling/arm_avgpool_s8.c")
    assert both.defines == ("CMSIS_NN_USE_SINGLE_ROUNDING",)
    assert found.library(["arm_pad_s8"], "twice").defines == ()


def test_sources_follow_calls(tmp_path: Path) -> None:
    source = tmp_path / "Source" / "A"
    source.mkdir(parents=True)
    (tmp_path / "Include").mkdir()
    (tmp_path / "Include" / "arm_nnfunctions.h").write_text("/* $Revision: V.7.1.0 */\n")
    (source / "arm_top_s8.c").write_text(
        "int arm_top_s8(const int *x,\n  int n)\n{\n  return arm_inner(x) + table[n];\n}\n"
        "/* arm_unused_s8 is only mentioned */\n"
    )
    (source / "arm_inner.c").write_text("int arm_inner(const int *x) { return *x; }\n")
    (source / "arm_unused_s8.c").write_text("int arm_unused_s8(void) { return 0; }\n")
    (source / "tables.c").write_text("const int table[3] = {1, 2, 3};\n")
    found = find_cmsis_nn(tmp_path)
    assert found.sources(["arm_top_s8"]) == (
        "Source/A/arm_inner.c", "Source/A/arm_top_s8.c", "Source/A/tables.c"
    )  # fmt: skip


def put_header(root: Path, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    (root / folder / "arm_nnfunctions.h").write_text(" * $Revision:    V.19.1.0\n")


def source_tree(root: Path) -> None:
    put_header(root, "Include")
    (root / "Source" / "A").mkdir(parents=True)
    (root / "Source" / "A" / "arm_x.c").write_text("int arm_x(void) { return 0; }\n")


def pack(root: Path) -> None:
    source_tree(root)
    (root / "ARM.CMSIS-NN.pdsc").write_text('<releases><release version="7.0.0" date="x">')


def tree_of_git(root: Path) -> None:
    source_tree(root)
    (root / "ARM.CMSIS-NN.pdsc").write_text('<releases><release version="0.0.0">')


def installed(root: Path) -> None:
    put_header(root, "include")
    (root / "lib").mkdir()
    (root / "lib" / "libcmsis-nn.a").write_bytes(b"!<arch>\n")


@pytest.mark.parametrize(
    ("make", "version", "binary"),
    [
        (source_tree, "header 19.1.0", ""),
        (tree_of_git, "header 19.1.0", ""),
        (pack, "7.0.0", ""),
        (installed, "header 19.1.0", "lib/libcmsis-nn.a"),
    ],
)
def test_kinds_of_copies(
    make: Callable[[Path], None], version: str, binary: str, tmp_path: Path
) -> None:
    make(tmp_path)
    found = find_cmsis_nn(tmp_path)
    assert (found.version, found.binary) == (version, binary)
    assert (found.root / found.includes[0] / "arm_nnfunctions.h").is_file()


@pytest.mark.parametrize(
    ("folder", "text"),
    [("", "neither --cmsis-nn nor CMSIS_NN_DIR"), ("empty", "arm_nnfunctions.h")],
)
def test_missing_library(
    folder: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMSIS_NN_DIR", raising=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TinyqError, match="TQ407") as caught:
        find_cmsis_nn(tmp_path / folder if folder else None)
    assert text in str(caught.value)


def test_missing_function() -> None:
    with pytest.raises(TinyqError, match="TQ408"):
        find_cmsis_nn(STANDIN).sources(["arm_lstm_unidirectional_s8"])


@needs_library
def test_every_function_has_sources() -> None:
    found: CmsisNn = find_cmsis_nn()
    schedule = make_cases(TABLE, Rounding.TWICE).schedule("cortex-m4")
    for layer in schedule.layers:
        assert layer.call.library is not None
        assert found.sources(layer.call.library.functions)
