"""MLPerf Tiny's image classifier fitted into less flash and time, in integers and every encoding.

    python examples/fit_ic.py --jobs 2

Calibrates on 256 CIFAR-10 training images, and counts what is right of 2,000 test images for every
assignment; needs the folders of networks (``TINYQ_MODELS``) and data (``TINYQ_DATA``).
``calib.npz`` is left for ``tinyq fit``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from resnet20 import cifar10_pixels, models_dir

from tinyq.fit import (
    GROUPS,
    Budget,
    Candidates,
    Choice,
    Lowered,
    Problem,
    assigned,
    forms_of,
    front,
    least,
    measure,
    quantize_forms,
    solve,
)
from tinyq.fit.measure import cycles, integer_graph
from tinyq.plan import plan_shared
from tinyq.plan.limits import flash_estimate
from tinyq.ptq import CalibrationData, PtqConfig, inputs_of
from tinyq.ptq.emit import emit
from tinyq.ptq.observe import session as quantized_session
from tinyq.ptq.pipeline import prepare_model
from tinyq.select import Goal, select
from tinyq.target import Core, load_core

INTEGERS = forms_of(GROUPS["int"])


def images(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float32 [count, 32, 32, 3], 0 to 255, and labels."""
    pixels, labels = cifar10_pixels(split, count)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy().astype(np.float32), labels.numpy()


@dataclass(frozen=True)
class Checked:
    """An assignment as compiled, and what is left of the output."""

    flash_bytes: int
    cycles: int
    sqnr_db: float
    right: float


@dataclass
class Bench:
    """The candidates and the test images; every assignment is measured once."""

    candidates: Candidates
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]

    def check(self, forms: dict[str, str], core: Core, goal: Goal) -> Checked:
        prepared = self.candidates.prepared
        plan = assigned(self.candidates, forms)
        model = emit(prepared.graph, prepared.units, plan)
        session = quantized_session(model)
        (scores,) = session.run(None, {session.get_inputs()[0].name: self.x})
        right = 100.0 * float((scores.argmax(1) == self.y).mean())
        schedule, _ = plan_shared(select(integer_graph(model), core, goal))
        quality = prepared.evaluate(plan)
        return Checked(flash_estimate(schedule), cycles(schedule), quality.sqnr_db, right)

    def predicted_db(self, problem: Problem, choice: Choice) -> float:
        signal = float(np.square(self.candidates.prepared.reference).mean())
        noise = self.candidates.quality.rms_error**2 + problem.predict(choice).error
        return 10.0 * math.log10(signal / noise)

    def row(self, limit: str, problem: Problem, choice: Choice, core: Core, goal: Goal) -> None:
        """One line of a table."""
        forms = problem.forms(choice)
        found = self.check(forms, core, goal)
        print(
            f"| {limit} | {found.flash_bytes:,} | {found.cycles / 1e6:.2f} | "
            f"{self.predicted_db(problem, choice):.1f} | {found.sqnr_db:.1f} | "
            f"{found.right:.1f}% | {' '.join(forms.values())} |",
            flush=True,
        )


HEAD = """| limit | flash | M cycles | predicted dB | measured dB | right | weights |
|---|---|---|---|---|---|---|"""


def against_flash(bench: Bench, every: Problem, integers: Problem, core: Core, points: int) -> None:
    """The front of integers, and with every form at the same flash."""
    print(f"\n{core.target}, kernels for balanced: limits of flash\n\n{HEAD}")
    for point in front(integers, Budget(), points):
        limit = point.prediction.flash_bytes
        choice = solve(every, Budget(flash=limit))
        assert choice is not None
        assert every.predict(choice).error <= point.prediction.error
        bench.row(f"{limit:,}, integers", integers, point.choice, core, Goal.BALANCED)
        bench.row(f"{limit:,}, all", every, choice, core, Goal.BALANCED)
    smallest = least(every, "flash", Budget())
    choice = solve(every, Budget(flash=smallest))
    assert choice is not None
    bench.row("the least, all", every, choice, core, Goal.BALANCED)


def against_time(bench: Bench, every: Problem, integers: Problem, core: Core, points: int) -> None:
    """Limits of cycles from int8's to the least that integers reach."""
    print(f"\n{core.target}, kernels for speed: limits of cycles\n\n{HEAD}")
    most = integers.predict(tuple(0 for _ in integers.layers)).cycles
    fewest = least(integers, "cycles", Budget())
    assert fewest is not None
    for step in range(points):
        limit = most - (most - fewest) * step // (points - 1)
        for name, problem in (("integers", integers), ("all", every)):
            choice = solve(problem, Budget(cycles=limit))
            assert choice is not None
            bench.row(f"{limit / 1e6:.2f} M, {name}", problem, choice, core, Goal.SPEED)
    choice = solve(every, Budget(cycles=least(every, "cycles", Budget())))
    assert choice is not None
    bench.row("the least, all", every, choice, core, Goal.SPEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--points", type=int, default=7)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    model = models_dir() / "mlperf-tiny" / "ic_float.onnx"
    x, y = images("train", 256)
    np.savez("calib.npz", x=x, y=y)
    data = CalibrationData({inputs_of(model)[0].name: x}, y)
    candidates = quantize_forms(prepare_model(model, data, PtqConfig()), jobs=args.jobs)
    lowered = Lowered.of(candidates)
    bench = Bench(candidates, *images("test", args.test))
    for name, goal, table in (
        ("cortex-m4", Goal.BALANCED, against_flash),
        ("cortex-m0+mul32", Goal.SPEED, against_time),
    ):
        core = load_core(name)
        costs = lowered.costs(core, goal)
        every = measure(candidates, costs.undominated(measured=False), args.jobs)
        integers = measure(candidates, costs.restricted(INTEGERS), args.jobs)
        table(bench, every.undominated(), integers, core, args.points)


if __name__ == "__main__":
    main()
