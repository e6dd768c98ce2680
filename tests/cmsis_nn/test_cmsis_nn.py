"""Kernels on CMSIS-NN, against a stand-in always and against the library where it is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cmsis_cases import TABLE, Cases, drawn_convolutions, make_cases, run

from tinyq.build.cmsis_nn import CmsisNn, find_cmsis_nn
from tinyq.quant import Rounding

STANDIN = Path(__file__).with_name("standin")
HERE = os.environ.get("CMSIS_NN_DIR", "")
CORE = os.environ.get("CMSIS_CORE_DIR", "")
needs_library = pytest.mark.skipif(
    not (HERE and CORE), reason="CMSIS_NN_DIR and CMSIS_CORE_DIR do not name the library"
)
ROUNDINGS = pytest.mark.parametrize("rounding", list(Rounding), ids=lambda r: r.value)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> CmsisNn:
    monkeypatch.setenv("CMSIS_NN_DIR", str(STANDIN))
    monkeypatch.delenv("CMSIS_CORE_DIR", raising=False)
    return find_cmsis_nn()


def cases(rounding: Rounding) -> Cases:
    return make_cases(TABLE, rounding)


@ROUNDINGS
def test_standin_on_the_host(rounding: Rounding, standin: CmsisNn, tmp_path: Path) -> None:
    assert run(cases(rounding), standin, "cortex-m4", tmp_path / "net", "host") == []


@needs_library
@ROUNDINGS
def test_library_on_the_host(rounding: Rounding, tmp_path: Path) -> None:
    assert run(cases(rounding), find_cmsis_nn(), "cortex-m0", tmp_path / "net", "host") == []


@needs_library
@pytest.mark.qemu
@ROUNDINGS
@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m3", "cortex-m4", "cortex-m55"])
def test_library_on_cores(target: str, rounding: Rounding, tmp_path: Path) -> None:
    assert run(cases(rounding), find_cmsis_nn(), target, tmp_path / "net", "qemu") == []


@needs_library
@pytest.mark.qemu
@pytest.mark.parametrize("target", ["cortex-m3", "cortex-m4", "cortex-m55"])
def test_drawn_convolutions_on_cores(target: str, tmp_path: Path) -> None:
    drawn = make_cases(drawn_convolutions(100, 7), Rounding.TWICE).only_library(target)
    assert len(drawn.graph.nodes) > 90
    assert run(drawn, find_cmsis_nn(), target, tmp_path / "net", "qemu") == []


def test_every_case_is_computed_by_the_library() -> None:
    schedule = cases(Rounding.TWICE).schedule("cortex-m4")
    assert [layer.node.name for layer in schedule.layers if layer.call.library is None] == []
    assert {layer.call.kernel for layer in schedule.layers} == {
        "cmsis_convolve_s8", "cmsis_depthwise_s8", "cmsis_dense_s8", "cmsis_add_s8",
        "cmsis_mul_s8", "cmsis_avgpool_s8", "cmsis_max_pool_s8", "cmsis_softmax_s8",
        "cmsis_pad_s8", "cmsis_transpose_s8",
    }  # fmt: skip
