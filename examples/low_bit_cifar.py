"""ResNet-20 on CIFAR-10, quantized to few bits from the published float network.

    python examples/low_bit_cifar.py recover rounding quantizers estimators guards

Each run appends one JSON line to ``--results``, and runs found there are not repeated, so that an
interrupted programme goes on where it stopped. ``--table`` prints what is recorded as tables.

* ``recover``: training at 4-bit weights with 8- and 4-bit activations, against rounding alone; the
  networks are exported, and onnxruntime is compared with PyTorch's integers.
* ``rounding``: nearest, AdaRound and BRECQ at 4, 3 and 2 bit weights, without labels.
* ``quantizers``: uniform, PoT and APoT, each from float to 4/4, 3/3 and 2/2 in turn.
* ``estimators``: STE, EWGS, DSQ, DAQ at 2/2, all from the network that STE trained at 3/3.
* ``guards``: APoT and EWGS at 2/2 straight from float, with and without guards of λ and clipping.

A pass is ``--images`` training images drawn at random, mirrored and shifted. On one CPU core a
second trains 150 to 200 of them. A GPU is used when there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resnet20 import accuracy, cifar10_pixels, float_resnet20, normalised
from torch import Tensor, fx

import tinyq.learn
from tinyq.errors import TinyqError
from tinyq.learn import FitConfig, QuantConfig, ReconstructConfig, apot_config

BATCH = 128


@dataclass(frozen=True)
class Run:
    """One training or rounding; ``start`` names the run it goes on from, None the float network."""

    experiment: str
    method: str
    weight_bits: int
    act_bits: int
    seed: int
    quantizer: str = "uniform"
    start: Run | None = None

    @property
    def name(self) -> str:
        """Name under which the result is recorded, and the trained network kept."""
        parts = (self.experiment, self.quantizer, self.method)
        return f"{'-'.join(parts)}-w{self.weight_bits}a{self.act_bits}-seed{self.seed}"


@dataclass(frozen=True)
class Data:
    """Training pixels and labels, test images and labels."""

    pixels: Tensor
    labels: Tensor
    x_test: Tensor
    y_test: Tensor

    def calibration(self, count: int) -> Tensor:
        """Return the first training images, normalised."""
        return _channels_last(normalised(self.pixels[:count]))

    def score(self, model: torch.nn.Module) -> float:
        """Percent of the test images that are right."""
        return accuracy(model.eval(), self.x_test, self.y_test)


class Augmented:
    """Passes of ``count`` images drawn at random, mirrored and shifted by up to four pixels."""

    def __init__(self, data: Data, count: int, seed: int):
        self.data, self.count = data, count
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.data.labels), generator=self.generator)[: self.count]
        for index in order.split(BATCH):
            dy, dx = torch.randint(0, 9, (2,), generator=self.generator).tolist()
            images = torch.nn.functional.pad(normalised(self.data.pixels[index]), (4, 4, 4, 4))
            images = images[:, :, dy : dy + 32, dx : dx + 32]
            if int(torch.randint(0, 2, (1,), generator=self.generator)):
                images = images.flip(-1)
            yield _channels_last(images), self.data.labels[index]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def configuration(quantizer: str, estimator: str, weight_bits: int, act_bits: int) -> QuantConfig:
    """Learned ranges; APoT with its authors' normalised weights."""
    if quantizer == "apot":
        config = replace(apot_config(weight_bits), act_clip=None)
    else:
        config = QuantConfig(
            weight_bits=weight_bits,
            weight_quantizer=quantizer,
            act_bits=act_bits,
            act_range="learned",
        )
    return replace(config, weight_estimator=estimator, act_estimator=estimator)


class Laboratory:
    """Executes runs once each; ``folder`` keeps the results and the trained networks."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.results)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "results.jsonl"
        self.data: Data | None = None

    def done(self) -> dict[str, dict[str, Any]]:
        """Recorded results by the run's name."""
        if not self.file.exists():
            return {}
        lines = map(json.loads, self.file.read_text().splitlines())
        return {line["name"]: line for line in lines}

    def load(self) -> Data:
        """Decode the images once."""
        if self.data is None:
            pixels, labels = cifar10_pixels("train", self.args.pool)
            x, y_test = cifar10_pixels("test", self.args.test)
            x_test = _channels_last(normalised(x))
            self.data = Data(_channels_last(pixels), labels, x_test, y_test)
        return self.data

    def execute(self, run: Run, act: Callable[[Run, Data], dict[str, Any]]) -> None:
        """Do ``act`` unless its result is recorded, and record it."""
        if run.name in self.done():
            return
        data = self.load()
        torch.manual_seed(run.seed)
        start = time.monotonic()
        result = act(run, data)
        line = {"name": run.name, **asdict(replace(run, start=None)), **result}
        line["start"] = run.start.name if run.start else None
        line["seconds"] = round(time.monotonic() - start)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def prepared(self, run: Run, data: Data) -> fx.GraphModule:
        """Network to train: from float, or from what another run trained."""
        example = data.calibration(2)
        estimator = run.method.split("-")[0]
        model = float_resnet20()
        config = configuration(run.quantizer, estimator, run.weight_bits, run.act_bits)
        if run.start is None:
            made = tinyq.learn.prepare(model, config, example)
            tinyq.learn.calibrate(made, data.calibration(512).split(BATCH))
            return made
        before = self.trained(run.start, data)
        return tinyq.learn.step_down(before, model, config, example)

    def trained(self, run: Run, data: Data) -> fx.GraphModule:
        """Network that ``run`` left."""
        made = self.prepared(run, data)
        made.load_state_dict(torch.load(self.folder / f"{run.name}.pt", weights_only=True))
        return made

    def train(self, run: Run, data: Data) -> dict[str, Any]:
        """Accuracy before and after training."""
        args = self.args
        model = self.prepared(run, data).to(memory_format=torch.channels_last)
        before = data.score(model)
        fit = FitConfig(
            epochs=args.passes if run.experiment != "recover" else args.recover_passes,
            lr=3e-4 if run.weight_bits == 4 else 1e-3,
            quantizer_lr=1e-3,
            weight_decay=1e-4,
            ewgs_probes=4,
            ewgs_images=32,
            ewgs_every=2,
        )
        optimizer = None
        if run.experiment == "guards":
            guarded = run.method.endswith("-guarded")
            fit = replace(fit, guarded=guarded, clip=1.0 if guarded else None, quantizer_lr=1e-4)
            groups = tinyq.learn.parameter_groups(model, replace(fit, lr=0.02))
            optimizer = torch.optim.SGD(groups, momentum=0.9)
        batches = Augmented(data, args.images, run.seed)
        result: dict[str, Any] = {"before": before, "images": args.images, "passes": fit.epochs}
        try:
            fitted = tinyq.learn.fit(model, batches, fit, optimizer=optimizer, progress=False)
        except TinyqError as failure:
            return {**result, "after": None, "failure": str(failure)[:400]}
        model.cpu()
        torch.save(model.state_dict(), self.folder / f"{run.name}.pt")
        result["losses"] = [round(v, 4) for v in fitted.losses]
        result["strongest"] = [max(s.values()) for s in fitted.strengths]
        result["findings"] = [str(f) for f in fitted.findings]
        result["after"] = data.score(model)
        if run.experiment == "recover":
            result.update(self.exported(model, run, data))
        return result

    def exported(self, model: fx.GraphModule, run: Run, data: Data) -> dict[str, Any]:
        """Accuracy of the exported file, and how its integers compare with PyTorch's."""
        import onnx

        from tinyq.ptq.observe import session as quantized_session

        path = tinyq.learn.export(model, self.folder / f"{run.name}.onnx")
        converted = tinyq.learn.convert(model)
        session = quantized_session(onnx.load(path))
        images, name = data.x_test.contiguous(), session.get_inputs()[0].name
        with torch.no_grad():
            own = torch.cat([converted(part) for part in images.split(250)]).numpy()
        other = np.concatenate(
            [session.run(None, {name: part.numpy()})[0] for part in images.split(250)]
        )
        nonzero = np.abs(own[own != 0])
        steps = np.rint(np.abs(own - other) / nonzero.min()) if nonzero.size else np.abs(own)
        right = data.y_test.numpy()
        return {
            "converted": 100.0 * float((own.argmax(1) == right).mean()),
            "onnxruntime": 100.0 * float((other.argmax(1) == right).mean()),
            "equal": float((steps == 0).mean()),
            "largest_difference": int(steps.max()),
        }

    def round(self, run: Run, data: Data) -> dict[str, Any]:
        """Accuracy of a rounding of the weights; activations stay at 8 bits."""
        x = data.calibration(self.args.calibration)
        config = QuantConfig(weight_bits=run.weight_bits, weight_range="mse", act_range="max")
        prepared = tinyq.learn.prepare(float_resnet20(), config, x[:2])
        tinyq.learn.calibrate(prepared, x.split(BATCH))
        settings = ReconstructConfig(steps=self.args.steps, seed=run.seed)
        method = {"adaround": tinyq.learn.adaround, "brecq": tinyq.learn.brecq}.get(run.method)
        if method is not None:
            method(prepared, x, settings)
        used = {"steps": settings.steps, "lr": settings.lr} if method else {}
        return {**used, "images": len(x), "after": data.score(prepared)}


def programme(experiment: str, seeds: int) -> list[Run]:
    """Runs of one experiment, in an order in which each finds what it starts from."""
    if experiment == "recover":
        widths = ((4, 8, 1), (4, 4, seeds))
        return [Run(experiment, "ste", w, a, s) for w, a, count in widths for s in range(count)]
    if experiment == "rounding":
        methods = ("nearest", "adaround", "brecq")
        return [Run(experiment, m, bits, 8, 0) for bits in (4, 3, 2) for m in methods]
    if experiment == "quantizers":
        return [r for q in ("uniform", "apot", "pot") for r in ladder(q)]
    if experiment == "estimators":
        widened = ladder("uniform")[:2]
        methods = ("ste", "ewgs", "dsq", "daq")
        return [
            *widened,
            *(
                Run(experiment, method, 2, 2, seed, start=widened[-1])
                for seed in range(seeds)
                for method in methods
            ),
        ]
    methods = ("ewgs-unguarded", "ewgs-guarded", "ste-guarded")
    return [Run(experiment, m, 2, 2, s, "apot") for s in range(seeds) for m in methods]


def ladder(quantizer: str) -> list[Run]:
    """From float to 4, 3 and 2 bits, each from the wider one."""
    runs: list[Run] = []
    for bits in (4, 3, 2):
        start = runs[-1] if runs else None
        runs.append(Run("quantizers", "ste", bits, bits, 0, quantizer, start))
    return runs


def table(results: dict[str, dict[str, Any]]) -> str:
    """Accuracies as Markdown, one row a configuration, the seeds' values side by side."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in results.values():
        bits = f"{line['weight_bits']}/{line['act_bits']}"
        key = (line["experiment"], line["quantizer"], line["method"], bits)
        rows.setdefault(key, []).append(line)
    lines = [
        "| experiment | weights | method | bits | before | after | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in rows.items():
        before = {f"{r['before']:.1f}" for r in found if "before" in r}
        after = ["failed" if r["after"] is None else f"{r['after']:.1f}" for r in found]
        seconds = ", ".join(str(r["seconds"]) for r in found)
        cells = (*key, ", ".join(sorted(before)), ", ".join(after), seconds)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


EXPERIMENTS = ("recover", "rounding", "quantizers", "estimators", "guards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", choices=(*EXPERIMENTS, []), default=[])
    parser.add_argument("--results", default="low_bit_cifar", help="folder of results")
    parser.add_argument("--table", action="store_true", help="print what is recorded")
    parser.add_argument("--images", type=int, default=2560, help="training images a pass")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--recover-passes", type=int, default=12)
    parser.add_argument("--pool", type=int, default=50000, help="images to draw from")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--calibration", type=int, default=512, help="images for rounding")
    parser.add_argument("--steps", type=int, default=1000, help="of rounding, each block or layer")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    laboratory = Laboratory(args)
    for experiment in args.experiments:
        for run in programme(experiment, args.seeds):
            act = laboratory.round if experiment == "rounding" else laboratory.train
            laboratory.execute(run, act)
    if args.table:
        print(table(laboratory.done()))


if __name__ == "__main__":
    main()
