"""What reports say when something is wrong: never less than the figures do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from tinyq.ir import DType, Node, TensorType, Value
from tinyq.ops.exactness import Exactness, exactness_of
from tinyq.quant import OrtLinear, Requant, accumulator_bounds, build_staircase, synthesize
from tinyq.report.formats import count, plural, shape, share, shortened, size
from tinyq.report.network import exactness_text, network_report, verdict
from tinyq.report.verification import verify_report
from tinyq.verification.compare import compare
from tinyq.verification.report import LayerReport, VerifyReport


def text_of(renderable: RenderableType) -> str:
    console = Console(width=240, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def proof(**figures: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "basis": "accumulators", "reachable": 1000, "channels": 4, "exact_channels": 3,
        "mismatches": 0, "max_abs": 0, "fixes": 0, "differing": 0, "exact": True,
    }  # fmt: skip
    return base | figures


def layer(index: int, name: str, exactness: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": index, "name": name, "op": "conv2d", "kernel": "conv2d_s8", "reason": "portable",
        "refusals": [{"kernel": "conv2d_s8_dsp", "reason": "the core has no DSP extension"}],
        "alternatives": [], "shape": [1, 2, 2, 4], "macs": 64, "instructions": 500,
        "constant_bytes": 40, "live_bytes": 32, "exactness": exactness,
    }  # fmt: skip


def manifest(*layers: dict[str, Any], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    port = {"name": "x", "shape": [1, 4], "dtype": "int8", "bytes": 4, "scale": 0.5,
            "zero_point": 3}  # fmt: skip
    return {
        "name": "net", "target": "cortex-m0", "optimize": "size", "oracle": "ort", "macs": 64,
        "constant_bytes": 40, "arena_bytes": 32, "instructions": 500, "notes": list(notes),
        "inputs": [port], "outputs": [port], "layers": list(layers),
    }  # fmt: skip


INEXACT = proof(mismatches=90, max_abs=2, differing=90, exact=False)


def test_a_layer_that_may_differ_is_never_silent() -> None:
    text = text_of(network_report(manifest(layer(0, "first", proof()), layer(1, "odd", INEXACT))))
    assert "90 may differ by 2" in text
    assert "Not exact: at 90 of 2,000 reachable accumulators" in text
    assert "by 2 at most, in odd" in text
    assert "Exact:" not in text


def test_an_exact_network_says_how_it_is_known() -> None:
    fixed = proof(mismatches=2, max_abs=1, fixes=2)
    text = text_of(network_report(manifest(layer(0, "a", fixed), layer(1, "b", proof()))))
    assert "every one of the 2,000 accumulators" in text
    assert "2 of them corrected one by one" in text


def test_refusals_and_notes_are_shown() -> None:
    text = text_of(network_report(manifest(layer(0, "a", proof()), notes=("1 transpose is left",))))
    assert "conv2d_s8_dsp: the core has no DSP extension" in " ".join(text.split())
    assert "Note: 1 transpose is left" in text
    assert "real = 0.5 * (integer - 3)" in text


@pytest.mark.parametrize(
    ("exactness", "said"),
    [
        (proof(), "proved"),
        (proof(fixes=1, mismatches=1), "proved, 1 fix"),
        (proof(basis="pairs", fixes=3, mismatches=3), "all pairs, 3 fixes"),
        (proof(basis="construction"), "by construction"),
        (proof(basis="samples"), "by samples"),
        (proof(ambiguous=3), "proved, 3 sums ambiguous"),
        (INEXACT, "90 may differ by 2"),
    ],
)
def test_exactness_in_a_cell(exactness: dict[str, Any], said: str) -> None:
    assert exactness_text(exactness) == said


def test_what_is_not_proved_is_named() -> None:
    layers = (layer(0, "a", proof(ambiguous=2)), layer(1, "soft", proof(basis="samples")))
    text = " ".join(text_of(network_report(manifest(*layers))).split())
    assert "Not proved, but verified on samples: soft." in text
    assert "At 2 sums of means the oracle's own float32 may round either way" in text
    assert verdict(layers) == "all proved are exact"


def test_verdict_of_a_network() -> None:
    assert verdict([layer(0, "a", proof())]) == "all exact"
    assert verdict([layer(0, "a", proof(fixes=1)), layer(1, "b", INEXACT)]) == "90 may differ"


def node_with(**attributes: Any) -> Node:
    value = Value("y", TensorType((1, 4), DType.INT8))
    return Node("dense", "n", (), (value,), SimpleNamespace(**attributes))


def synthesised() -> Requant:
    weights = np.array([[5, -3, 100], [1, 2, 3]])
    low, high = accumulator_bounds(weights, -128, 127)
    scale = np.array([0.0031, 0.37], np.float32)
    zero = np.zeros(2, np.int64)
    oracle = OrtLinear(scale, zero, zero, 3, -128, 127)
    stair = build_staircase(oracle, low, high, -128, 127)
    return synthesize(stair, scale.astype(np.float64))


def test_exactness_counts_reachable_accumulators() -> None:
    found = exactness_of(node_with(requant=synthesised()))
    # 255 values of every input: sums from -128 * positives - 127 * negatives on, and back.
    reach = [255 * int(np.abs(row).sum()) + 1 for row in ([5, -3, 100], [1, 2, 3])]
    assert (found.basis, found.reachable, found.channels) == ("accumulators", sum(reach), 2)
    assert found.exact


def test_exactness_of_an_inexact_requantization() -> None:
    requant = synthesised()
    bad = replace(requant, fixes=(), proof=replace(requant.proof, mismatches=70, exact=False))
    found = exactness_of(node_with(requant=bad))
    assert (found.exact, found.differing, found.mismatches) == (False, 70, 70)


def test_exactness_of_pairs_and_tables() -> None:
    pairs = exactness_of(node_with(fixes=((1, 2, -1), (3, 4, 1))))
    assert (pairs.basis, pairs.reachable, pairs.fixes, pairs.exact) == ("pairs", 65536, 2, True)
    assert exactness_of(node_with()) == Exactness("construction")


def verification(difference: int) -> VerifyReport:
    a = np.zeros((4, 3), np.int8)
    b = a.copy()
    b[2, 1] += difference
    ort, reference, c = ("onnxruntime", [a]), ("reference", [a]), ("qemu", [b])
    names = ["scores"]
    comparisons = tuple(
        compare(x, y, names) for x, y in ((ort, reference), (reference, c), (ort, c))
    )
    last = comparisons[-1]
    return VerifyReport(
        equal=last.equal, target="cortex-m4", emulator="qemu", oracle="onnxruntime", samples=4,
        sample_source="4 random, seed 0", outputs_compared=12, outputs_different=last.different,
        max_difference=last.max_difference, accuracy=0.75, oracle_accuracy=1.0,
        instructions_per_inference=1234, flash_bytes=3000, code_bytes=1000, constant_bytes=2000,
        arena_bytes=64, stack_bytes=40, stack_bound_bytes=48, ram_bytes=104,
        comparisons=comparisons, gaps=(compare(ort, ("other settings", [b]), names),),
        layers=(LayerReport(0, "conv", "conv2d", "conv2d_s8", 3, 9, difference, 0, 900),),
        host="nowhere", seconds=0.5,
    )  # fmt: skip


def test_report_of_a_difference_names_layer_and_element() -> None:
    text = " ".join(text_of(verify_report(verification(-3))).split())
    assert "DIFFERENT: 1 of 12 output integers differ from onnxruntime's, by 3 at most." in text
    assert "-3: 1" in text
    assert "The first layer that differs is 0, conv2d 'conv' (conv2d_s8)." in text
    assert "output 'scores', sample 2, element 1: 0 and -3." in text


def test_report_of_equality_has_the_figures() -> None:
    text = " ".join(text_of(verify_report(verification(0))).split())
    assert "EQUAL: onnxruntime, the integer reference and the C on qemu agree on all 12" in text
    assert "75.00% (onnxruntime: 100.00%)" in text
    assert "1,234 an inference" in text
    assert "code 1,000, constants 2,000" in text
    assert "arena 64, stack 40 (measured; 48 at most)" in text
    assert "for information: onnxruntime and other settings" in text


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (count(None), "-"),
        (count(1234567), "1,234,567"),
        (count(0.5), "0.50"),
        (size(None), "-"),
        (size(10239), "10,239 B"),
        (size(10240), "10,240 B (10.0 KiB)"),
        (share(1, 3), "33.3%"),
        (share(1, 0), "-"),
        (shape([]), "scalar"),
        (shape((1, 49, 10)), "1x49x10"),
        (plural(1, "fix"), "1 fix"),
        (plural(2000, "fix"), "2,000 fixes"),
        (plural(0, "layer"), "0 layers"),
        (shortened("short"), "short"),
        (shortened("abcdefghij", 7), "ab…ghij"),
    ],
)
def test_formats(got: str, wanted: str) -> None:
    assert got == wanted
