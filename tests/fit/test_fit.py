"""Fitting a small float network: costs against real compilations, the choice against all others."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from ptq.ptq_models import Builder
from typer.testing import CliRunner, Result

from tinyq.cli import app
from tinyq.errors import TinyqError
from tinyq.fit import (
    Budget,
    Candidates,
    Problem,
    assigned,
    fit,
    forms_of,
    measure,
    quantize_forms,
    solve,
)
from tinyq.fit.measure import FORMS as EVERY
from tinyq.fit.measure import Lowered, cycles, integer_graph
from tinyq.ops.packed import encoding_of
from tinyq.plan import plan_shared
from tinyq.plan.price import flash_estimate
from tinyq.ptq import CalibrationData, PtqConfig
from tinyq.ptq.emit import emit
from tinyq.ptq.pipeline import prepare_model
from tinyq.select import Goal, select
from tinyq.target import load_core

joblib = pytest.importorskip("joblib")
pytest.importorskip("ortools")

X = np.random.default_rng(3).normal(size=(40, 3, 8, 8)).astype(np.float32)
DATA = CalibrationData({"x": X}, np.arange(40) % 4)
CORE = load_core("cortex-m4")
FORMS = ("int8", "lut4", "ternary")
RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def float_model() -> onnx.ModelProto:
    """Three convolutions, the mean and a dense layer to 4 classes; x [N, 3, 8, 8]."""
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 8, strides=[2, 2]))
    y = b.op("Relu", b.conv(y, 8, 16))
    y = b.op("Relu", b.conv(y, 16, 16))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Gemm", y, b.weight(4, 16, gain=3.0), b.const(np.zeros(4)), transB=1),
                   ["n", 3, 8, 8])  # fmt: skip


@pytest.fixture(scope="module")
def candidates() -> Candidates:
    return quantize_forms(prepare_model(float_model(), DATA, PtqConfig()), FORMS)


@pytest.fixture(scope="module")
def problem(candidates: Candidates) -> Problem:
    return measure(candidates, Lowered.of(candidates).costs(CORE, Goal.BALANCED))


def compiled(candidates: Candidates, forms: dict[str, str], goal: Goal) -> tuple[int, int, int]:
    """Flash, arena and cycles of an assignment, from its own model."""
    prepared = candidates.prepared
    model = emit(prepared.graph, prepared.units, assigned(candidates, forms))
    schedule, memory = plan_shared(select(integer_graph(model), CORE, goal))
    return flash_estimate(schedule), memory.arena_bytes, cycles(schedule)


def assignments(names: list[str]) -> Iterator[dict[str, str]]:
    for forms in itertools.product(FORMS, repeat=len(names)):
        yield dict(zip(names, forms, strict=True))


def test_predictions_are_what_compiling_gives(candidates: Candidates, problem: Problem) -> None:
    """Shared functions and the arena included; corrections of single outputs move a few bytes."""
    names = [layer.name for layer in problem.layers]
    assert len(names) == 4
    for forms in list(assignments(names))[::9]:
        choice = tuple(
            [o.form for o in layer.options].index(forms[layer.name]) for layer in problem.layers
        )
        predicted = problem.predict(choice)
        flash, arena, spent = compiled(candidates, forms, Goal.BALANCED)
        assert predicted.flash_bytes == pytest.approx(flash, rel=0.02)
        assert predicted.arena_bytes == arena
        assert predicted.cycles == pytest.approx(spent, rel=0.02)


def test_added_error_is_that_of_the_layer_alone(candidates: Candidates, problem: Problem) -> None:
    """Its bias is corrected for inputs that int8 layers compute."""
    prepared = candidates.prepared
    added = {layer.name: {o.form: o.error for o in layer.options} for layer in problem.layers}
    assert {errors["int8"] for errors in added.values()} == {0.0}
    name = list(added)[1]
    plan = assigned(candidates, {**dict.fromkeys(added, "int8"), name: "ternary"})
    int8 = candidates.tuned["int8"]
    tuned = candidates.tuned["ternary"].weights[name]
    assert np.array_equal(plan.weights[name].integers, tuned.integers)
    assert np.array_equal(plan.weights[name].bias, tuned.bias)
    model = emit(prepared.graph, prepared.units, int8.with_weights(name, tuned))
    noise = np.square(prepared.output_of(model) - prepared.reference).mean()
    base = candidates.quality.rms_error**2
    assert added[name]["ternary"] == pytest.approx(noise - base, rel=1e-5)
    levels = np.unique(plan.weights[name].integers)
    assert np.array_equal(levels, levels.max() * np.array([-1, 0, 1]))


def test_the_choice_keeps_the_limits_and_nothing_better_does(
    candidates: Candidates, problem: Problem
) -> None:
    names = [layer.name for layer in problem.layers]
    most, fewest = (compiled(candidates, dict.fromkeys(names, f), Goal.BALANCED)[0]
                    for f in ("int8", "ternary"))  # fmt: skip
    limit = (most + fewest) // 2
    found = fit(float_model(), DATA, CORE, Budget(flash=limit), forms=FORMS)
    assert found.goal is Goal.BALANCED
    chosen = found.chosen
    assert chosen.flash_bytes <= limit
    assert (chosen.flash_bytes, chosen.arena_bytes, chosen.cycles) == compiled(
        candidates, dict(chosen.forms), Goal.BALANCED
    )
    errors = {layer.name: {o.form: o.error for o in layer.options} for layer in problem.layers}
    better = [
        forms
        for forms in assignments(names)
        if sum(errors[n][f] for n, f in forms.items()) < chosen.predicted.error * (1 - 1e-6)
        and compiled(candidates, forms, Goal.BALANCED)[0] <= limit
    ]
    assert not better
    flashes = [point.prediction.flash_bytes for point, _ in found.front]
    assert flashes == sorted(flashes, reverse=True)
    assert found.front[0][1].rms_error == pytest.approx(found.before.rms_error)
    assert found.front[-1][1].rms_error > found.before.rms_error
    noise = 10 ** (-found.front[0][1].sqnr_db / 10) * found.signal
    assert noise == pytest.approx(found.before.rms_error**2, rel=1e-3)


def test_measured_cycles_scale_the_estimates() -> None:
    """A core that takes three cycles an instruction: the limit is in its cycles."""
    calls = []

    def three(model: onnx.ModelProto, goal: Goal) -> int:
        calls.append(goal)
        return 3 * cycles(select(integer_graph(model), CORE, goal))

    free = fit(float_model(), DATA, CORE, Budget(), forms=("int8",), cycles_of=three)
    assert not calls
    limit = 3 * free.chosen.cycles
    kept = fit(float_model(), DATA, CORE, Budget(cycles=limit), forms=("int8",), cycles_of=three)
    assert kept.chosen.cycles == limit
    with pytest.raises(TinyqError, match="cycles is limited to"):
        fit(float_model(), DATA, CORE, Budget(cycles=limit // 2), forms=FORMS, cycles_of=three)


def test_limits_that_nothing_keeps() -> None:
    with pytest.raises(TinyqError) as caught:
        fit(float_model(), DATA, CORE, Budget(flash=500, ram=700), forms=FORMS)
    (found,) = caught.value.diagnostics
    assert found.code == "TQ804"
    least = int(found.found.split("flash is limited to 500, the least is ")[1].split(";")[0]
                .split(" ")[0].replace(",", ""))  # fmt: skip
    assert "ram is limited to 700, the least is" in found.found
    kept = fit(float_model(), DATA, CORE, Budget(flash=least + 40), forms=FORMS, goal=Goal.SIZE)
    assert kept.chosen.flash_bytes <= least + 40


def test_evaluations_run_on_the_backend_that_joblib_is_told(problem: Problem) -> None:
    from joblib._parallel_backends import ThreadingBackend

    class Counting(ThreadingBackend):
        tasks = 0

        def submit(self, func, callback=None):  # type: ignore[no-untyped-def]
            type(self).tasks += 1
            return super().submit(func, callback)

    joblib.register_parallel_backend("counting", Counting)
    prepared = prepare_model(float_model(), DATA, PtqConfig())
    with joblib.parallel_config(backend="counting", n_jobs=2):
        found = measure(quantize_forms(prepared, FORMS, jobs=2), problem, jobs=2)
    assert Counting.tasks > 0
    assert found == problem


def test_forms() -> None:
    assert forms_of(["int2", "int4"]) == ("int8", "int4", "int2")
    assert forms_of(["apot", "binary"]) == ("int8", "apot5", "apot4", "pot3", "binary")
    assert forms_of(["all"]) == EVERY
    with pytest.raises(TinyqError, match="int9"):
        forms_of(["int9"])


def test_every_form_is_stored_as_what_it_is() -> None:
    """The compiler recognises each from the integers, and stores codes of its bits."""
    kinds = {"lut": "codebook"}
    prepared = prepare_model(float_model(), DATA, PtqConfig())
    found = quantize_forms(prepared, EVERY)
    for form in EVERY[1:]:
        graph = integer_graph(found.model(form))
        node = [n for n in graph.nodes if n.op == "conv2d"][1]
        encoding = encoding_of(node.input(1))
        assert encoding is not None
        kind = form.rstrip("2345")
        assert encoding.name == form.replace(kind, kinds.get(kind, kind)), form


@pytest.mark.parametrize("config", [PtqConfig(rounding="adaround"), PtqConfig(per_channel=False),
                                    PtqConfig(bias_correction=False)], ids=str)  # fmt: skip
def test_forms_under_other_options(config: PtqConfig) -> None:
    """Rounding is learned among the levels of a form; steps may be one for all channels."""
    found = quantize_forms(prepare_model(float_model(), DATA, config), ("int8", "pot4", "lut3"))
    for form in ("pot4", "lut3"):
        for name, weights in found.tuned[form].weights.items():
            assert set(np.unique(weights.integers)) <= set(weights.levels)
            assert len(weights.levels) <= 2**weights.bits
            learned = not np.array_equal(
                weights.integers, found.nearest[form].weights[name].integers
            )
            assert not learned or config.rounding == "adaround"
    assert integer_graph(found.model("lut3")).nodes


def test_powers_of_two_for_time_and_codebooks_for_flash(candidates: Candidates) -> None:
    """A slow multiplier: a power of two is one addition a weight, a level of a codebook up to four.

    Where products take a cycle both cost the same, and codebooks err less.
    """
    every = quantize_forms(candidates.prepared, ("int8", "lut3", "pot3"))
    lowered = Lowered.of(every)
    slow = measure(every, lowered.costs(load_core("cortex-m0+mul32"), Goal.SPEED))
    _, book, power = (slow.predict((k,) * len(slow.layers)).cycles for k in range(3))
    assert power < 0.7 * book
    limit = Budget(cycles=(power + book) // 2)
    assert least_error(slow, limit) < least_error(slow.restricted(("int8", "lut3")), limit)
    small = measure(every, lowered.costs(CORE, Goal.SIZE))
    limit = Budget(flash=small.predict((1,) * len(small.layers)).flash_bytes)
    assert least_error(small, limit) < least_error(small.restricted(("int8", "pot3")), limit)


def least_error(problem: Problem, budget: Budget) -> float:
    choice = solve(problem.undominated(), budget)
    return math.inf if choice is None else problem.undominated().predict(choice).error


@pytest.fixture
def place(tmp_path: Path) -> Path:
    onnx.save(float_model(), tmp_path / "float.onnx")
    np.savez(tmp_path / "c.npz", x=X, y=DATA.labels)
    return tmp_path


def invoke(place: Path, *arguments: str) -> Result:
    given = ["fit", place / "float.onnx", "--calib", place / "c.npz", "-o", place / "net"]
    return RUNNER.invoke(app, [*map(str, given), *arguments])


def test_command_line(place: Path) -> None:
    report = place / "fit.json"
    result = invoke(place, "-t", "cortex-m4", "--flash", "5K", "--forms", "lut4,pot,ternary",
                    "--points", "3", "--jobs", "2", "--backend", "threading", "--report",
                    str(report), "--report", str(place / "fit.png"), "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["firmware"]["equal"] is True
    assert found["chosen"]["flash_bytes"] <= 5 * 1024
    assert 1 < len(found["front"]) <= 3
    assert json.loads(report.read_text())["front"] == found["front"]
    assert (place / "fit.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((place / "net" / "manifest.json").read_text())
    assert manifest["target"] == "cortex-m4"


def test_time_limit_on_a_board(place: Path) -> None:
    """The limit is met by cycles of the emulated firmware at the board's clock."""
    asked = ("--board", "stm32f4-discovery", "--forms", "int8", "--no-run")
    assert invoke(place, *asked, "--latency", "20ms").exit_code == 0
    result = invoke(place, *asked, "--latency", "1us")
    assert result.exit_code == 10
    assert "cycles is limited to 168" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["-t", "cortex-m4", "--latency", "5ms"], 5, "without a clock"),
        (["-t", "cortex-m4", "--latency", "soon"], 5, "--latency soon"),
        (["-t", "cortex-m4", "--forms", "int8,odd"], 5, "--forms odd"),
        (["-t", "cortex-m4", "--backend", "nothing"], 5, "--backend nothing"),
        (["-t", "cortex-m4", "--report", "x.gif"], 12, "x.gif"),
        (["-t", "cortex-m4", "--flash", "300"], 10, "the least is"),
        ([], 2, "--target"),
    ],
)
def test_refusals(place: Path, options: list[str], status: int, words: str) -> None:
    result = invoke(place, *options)
    assert result.exit_code == status, result.output
    assert words in result.stderr.replace("\n", " ")
    assert not (place / "net").exists()
