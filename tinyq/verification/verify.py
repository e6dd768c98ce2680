"""Verifies a compiled folder: oracle, integer reference and C, on every sample."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinyq.build import Footprint, Network, load_network
from tinyq.device import DeviceOptions, run_on_device
from tinyq.emulate.choice import choose
from tinyq.emulate.network import RunOptions, run_everywhere
from tinyq.emulate.trace import RunTrace
from tinyq.errors import error
from tinyq.ir import AnyArray, Graph
from tinyq.quant.storage import Storage
from tinyq.target import load_board, load_core
from tinyq.verification.compare import Comparison, compare
from tinyq.verification.reference import interpret
from tinyq.verification.report import (
    DeviceReport,
    LayerReport,
    RunReport,
    StepsReport,
    VerifyReport,
)
from tinyq.verification.samples import SampleSet, load_labels, load_samples, random_samples
from tinyq.verification.stepwise import Step, compare_steps, is_rounded_once, kept_channels

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and of how many."""


class Oracle(Protocol):
    """Whatever decides what is right: runs the original model on integers."""

    def run(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Integer outputs of one inference."""
        ...

    def run_exposed(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Intermediate integer tensors by name."""
        ...


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify. ``samples`` is a file or folder; without one, ``random`` samples of ``seed``.

    ``emulator`` (one, or several with commas) and ``toolchain`` as in
    :func:`tinyq.emulate.choose`. ``target`` replaces the compiled folder's own; ``sanitize`` builds
    the host's C with ASan and UBSan; ``timeout`` is in seconds an emulated run. ``board`` names a
    board whose own memory map the firmware has, if the emulators have one. With ``device``
    the firmware on that board runs instead, and nothing is built.
    """

    emulator: str = ""
    samples: Path | None = None
    labels: Path | None = None
    random: int = 20
    seed: int = 0
    layers: bool = False
    target: str = ""
    sanitize: bool = False
    timeout: float = 1800.0
    board: str = ""
    device: DeviceOptions | None = None
    toolchain: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is verified: the folder's network, its integer graph and the oracles for it.

    ``gaps`` are further oracles, by name, that inform without deciding.
    """

    network: Network
    graph: Graph
    oracle_name: str
    oracle: Oracle
    gaps: Mapping[str, Oracle] = field(default_factory=dict)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a compiled folder; raises TQ503."""
    load_network(folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if not manifest.get("model") or not (folder / manifest["model"]).is_file():
        raise error("TQ503", "the model that it was compiled from is missing", file=str(folder))
    return manifest


def verify(
    subject: Subject, options: VerifyOptions, progress: Progress | None = None
) -> VerifyReport:
    """Run the samples through oracle, reference and C, and compare. Raises TQ4xx and TQ5xx."""
    start, tell = time.monotonic(), progress or _silent
    run = (_on_device if options.device is not None else _emulated)(subject, options, tell)
    samples = _samples(subject, options)
    labels = _labels(options, samples)
    expected = _run_oracle(subject, samples, tell)
    reference = _run_reference(subject, samples, options.layers, tell)
    ran, notes = run(samples)
    found = _Found(samples, labels, expected, reference, ran, notes)
    return _report(subject, options, found, start)


@dataclass(frozen=True, eq=False)
class _Ran:
    """What ran the C: its name, what it computed, and what is known where it was built here."""

    name: str
    trace: RunTrace
    footprint: Footprint | None = None
    compiler: str = ""
    board: str = ""
    device: DeviceReport | None = None


_Runs = tuple[tuple[_Ran, ...], tuple[str, ...]]
"""Every run, and notes."""


def _emulated(
    subject: Subject, options: VerifyOptions, tell: Progress
) -> Callable[[SampleSet], _Runs]:
    """What runs samples on the emulators; whatever is missing is said now, not after the oracle."""
    core = load_core(options.target or subject.network.target)
    choice = choose(options.emulator, options.toolchain, core.name)
    board, notes = emulated_board(options.board, choice.emulators)
    what = f"building and running on {' and '.join(choice.emulators)}"
    run_options = RunOptions(
        emulator=",".join(choice.emulators),
        toolchain=options.toolchain,
        layers=options.layers,
        target=options.target,
        board=board,
        sanitize=options.sanitize,
        timeout=options.timeout,
    )

    def run(samples: SampleSet) -> _Runs:
        tell(what, 0, 1)
        runs = run_everywhere(subject.network, samples.inputs, run_options)
        tell(what, 1, 1)
        made = (
            _Ran(
                r.trace.emulator, r.trace, r.artifact.footprint, r.artifact.compiler,
                r.artifact.board.name if r.artifact.board is not None else "",
            )
            for r in runs
        )  # fmt: skip
        return tuple(made), (*choice.notes, *notes)

    return run


def _on_device(
    subject: Subject, options: VerifyOptions, tell: Progress
) -> Callable[[SampleSet], _Runs]:
    """What runs samples on the board at ``options.device``."""
    device = options.device
    if device is None:
        raise ValueError("no device was named")
    if options.layers or options.sanitize or options.target or options.emulator:
        raise error(
            "TQ303",
            "--device with --layers, --sanitize, --target or --emulator",
            "A board runs what was flashed: --layers needs an emulator.",
        )

    def run(samples: SampleSet) -> _Runs:
        found = run_on_device(
            subject.network,
            samples.inputs,
            device,
            lambda done, total: tell(f"running on {device.port}", done, total),
        )
        most, info = max(found.cycles, default=None), found.info
        milliseconds = 1e3 * most / info.core_hz if most is not None and info.core_hz else None
        report = DeviceReport(
            port=device.port,
            baud=device.baud,
            cycles=most,
            least_cycles=min(found.cycles, default=None),
            counter=info.counter,
            core_hz=info.core_hz,
            milliseconds=milliseconds,
            board_hz=load_board(options.board).clock_hz if options.board else 0,
            golden_samples=info.golden_samples,
            golden_crc=f"{found.golden_crc:08x}",
            golden_passed=found.golden_passed,
            retries=found.retries,
            reconnects=found.reconnects,
        )
        return (_Ran(device.port, found.trace, device=report),), ()

    return run


def emulated_board(board: str, emulators: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """``board`` where every emulator has its memory map, else '' (the core's own), and a note."""
    known = load_board(board) if board else None
    if known is None or "qemu" not in emulators or known.qemu is not None:
        return board, ()
    stand_in = load_core(known.mcu.core).board
    return "", (f"QEMU has no model of '{board}': the code ran on {stand_in}",)


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _samples(subject: Subject, options: VerifyOptions) -> SampleSet:
    inputs = subject.network.inputs
    if options.samples is None:
        return random_samples(inputs, options.random, options.seed)
    quant = tuple(
        (v.type.quant.scale, v.type.quant.zero_point) if v.type.quant is not None else None
        for v in subject.graph.inputs
    )
    return load_samples(options.samples, inputs, quant)


def _labels(options: VerifyOptions, samples: SampleSet) -> AnyArray | None:
    if options.labels is None:
        return samples.labels
    labels = load_labels(options.labels)
    if len(labels) != samples.count:
        raise error(
            "TQ504", f"{len(labels)} labels for {samples.count} samples", file=str(options.labels)
        )
    return labels


def _one(subject: Subject, samples: SampleSet, index: int) -> dict[str, AnyArray]:
    """One sample as the graph's inputs by name, in their full shapes."""
    return {
        value.name: array[index].reshape(value.type.shape)
        for value, array in zip(subject.graph.inputs, samples.inputs, strict=True)
    }


def _run_oracle(subject: Subject, samples: SampleSet, tell: Progress) -> dict[str, list[AnyArray]]:
    """Outputs [n, ...] of the oracle and of every gap oracle, by name."""
    results: dict[str, list[AnyArray]] = {}
    oracles = {subject.oracle_name: subject.oracle, **subject.gaps}
    for name, oracle in oracles.items():
        rows = []
        for k in range(samples.count):
            tell(f"running {name}", k, samples.count)
            rows.append(oracle.run(_one(subject, samples, k)))
        results[name] = _stacked(rows)
    return results


def _stacked(rows: Sequence[tuple[AnyArray, ...]]) -> list[AnyArray]:
    return [np.stack([r.reshape(-1) for r in column]) for column in zip(*rows, strict=True)]


@dataclass(frozen=True, eq=False)
class _Reference:
    """Outputs, every tensor [n, elements] by name, and where the oracle differs, by node."""

    outputs: list[AnyArray]
    tensors: dict[str, AnyArray]
    oracle_layers: dict[str, int]
    steps: dict[str, Step]

    def tensor_of(
        self, layer: Mapping[str, Any], storages: Mapping[str, Storage]
    ) -> AnyArray | None:
        """What a layer of the manifest has to compute: for a stripe, its rows of a tensor.

        ``storages`` are those of packed tensors, by name.
        """
        rows = layer.get("rows")
        found = self.tensors.get(rows["of"] if rows else layer["output"])
        if found is None or not rows:
            return found
        row = found.shape[1] // rows["height"]
        part = found[:, rows["start"] * row : rows["stop"] * row]
        if not rows.get("packed"):
            return part
        elements = part.astype(np.int8).reshape(-1, row)
        return storages[rows["of"]].pack(elements).reshape(len(part), -1)

    def oracle_different(self, layer: Mapping[str, Any], last: Mapping[str, int]) -> int | None:
        """Elements at which the oracle differs; of all stripes together beside the last one.

        ``last`` is the number of rows of each tensor that are computed.
        """
        rows = layer.get("rows")
        if not rows:
            return self.oracle_layers.get(layer["name"])
        return self.oracle_layers.get(rows["layer"]) if rows["stop"] == last[rows["of"]] else None


def _run_reference(
    subject: Subject, samples: SampleSet, layers: bool, tell: Progress
) -> _Reference:
    rows: list[tuple[AnyArray, ...]] = []
    by_tensor: dict[str, list[AnyArray]] = {}
    oracle_layers: dict[str, int] = {}
    steps: dict[str, Step] = {}
    stepwise = is_rounded_once(subject.graph)
    for k in range(samples.count):
        tell("running the integer reference", k, samples.count)
        inputs = _one(subject, samples, k)
        values = interpret(subject.graph, inputs)
        rows.append(tuple(v.array if v.is_constant else values[v] for v in subject.graph.outputs))
        if stepwise:
            found = compare_steps(subject.graph, inputs, subject.oracle.run_exposed(inputs))
            for name, step in found.items():
                steps[name] = steps[name] + step if name in steps else step
        if not layers:
            continue
        for value, array in values.items():
            by_tensor.setdefault(value.name, []).append(array.reshape(-1))
        if stepwise:
            continue
        exposed = subject.oracle.run_exposed(inputs)
        for origin in subject.graph.origins:
            if origin.name in exposed:
                ours = np.transpose(values[origin.value].reshape(origin.shape), origin.perm)
                theirs = (
                    kept_channels(exposed[origin.name].astype(np.int64), origin) - origin.offset
                )
                wrong = int(np.count_nonzero(ours.astype(np.int64).reshape(-1) != theirs.ravel()))
                node_name = subject.graph.producers[origin.value].name
                oracle_layers[node_name] = oracle_layers.get(node_name, 0) + wrong
    stacked = {name: np.stack(arrays) for name, arrays in by_tensor.items()}
    oracle_layers |= {name: step.different for name, step in steps.items()}
    return _Reference(_stacked(rows), stacked, oracle_layers, steps)


@dataclass(frozen=True, eq=False)
class _Found:
    """All that was computed, before it is compared."""

    samples: SampleSet
    labels: AnyArray | None
    expected: dict[str, list[AnyArray]]
    reference: _Reference
    runs: tuple[_Ran, ...]
    notes: tuple[str, ...]


def _report(subject: Subject, options: VerifyOptions, found: _Found, start: float) -> VerifyReport:
    names = [value.name for value in subject.graph.outputs]
    expected, samples, runs = found.expected, found.samples, found.runs
    oracle = (subject.oracle_name, expected[subject.oracle_name])
    reference = ("reference", found.reference.outputs)
    devices = [(run.name, list(run.trace.outputs)) for run in runs]
    judged = [compare(oracle, device, names) for device in devices]
    comparisons = (
        compare(oracle, reference, names),
        *(c for device, last in zip(devices, judged, strict=True)
          for c in (compare(reference, device, names), last)),
    )  # fmt: skip
    gaps = tuple(compare(oracle, (name, expected[name]), names) for name in subject.gaps)
    layers = _layers(subject, found.reference, runs) if options.layers else ()
    steps = _steps(subject.graph, found.reference.steps)
    if steps is None:
        equal = all(c.equal for c in comparisons) and not any(
            layer.different or layer.oracle_different for layer in layers
        )
    else:
        own = [c for c in comparisons if c.expected == "reference"]
        equal = all(c.equal for c in own) and steps.agrees
        equal = equal and not any(layer.different for layer in layers)
    equal = equal and all(run.device is None or run.device.golden_passed for run in runs)
    built = next((run for run in runs if run.footprint is not None), runs[0])
    counts, footprint = built.trace.instructions_per_inference, built.footprint
    stack, arena = built.trace.stack_bytes, subject.network.arena_bytes
    data = footprint.data_bytes if footprint is not None else 0
    return VerifyReport(
        equal=equal,
        target=options.target or subject.network.target,
        emulator="device" if built.device else ",".join(run.name for run in runs),
        oracle=subject.oracle_name,
        samples=samples.count,
        sample_source=samples.source,
        outputs_compared=sum(c.compared for c in judged),
        outputs_different=sum(c.different for c in judged),
        max_difference=max(c.max_difference for c in judged),
        accuracy=_accuracy(devices[0][1], found.labels),
        oracle_accuracy=_accuracy(oracle[1], found.labels),
        instructions_per_inference=max(counts) if counts else None,
        flash_bytes=footprint.flash_bytes if footprint else None,
        code_bytes=footprint.code_bytes if footprint else None,
        constant_bytes=footprint.constant_bytes if footprint else None,
        arena_bytes=arena,
        stack_bytes=stack,
        stack_bound_bytes=footprint.stack_bound_bytes if footprint else None,
        ram_bytes=arena + data + stack if footprint and stack is not None else None,
        comparisons=comparisons,
        gaps=gaps,
        layers=layers,
        steps=steps,
        host=host_description(),
        seconds=round(time.monotonic() - start, 3),
        device=built.device,
        compiler=built.compiler,
        board=built.board,
        runs=tuple(_run_report(run, last) for run, last in zip(runs, judged, strict=True)),
        notes=found.notes,
    )


def _run_report(run: _Ran, judged: Comparison) -> RunReport:
    counts = run.trace.instructions_per_inference
    return RunReport(
        emulator=run.name,
        equal=judged.equal,
        instructions_per_inference=max(counts) if counts else None,
        stack_bytes=run.trace.stack_bytes,
        seconds=round(run.trace.elapsed, 3),
    )


def _layers(
    subject: Subject, reference: _Reference, runs: Sequence[_Ran]
) -> tuple[LayerReport, ...]:
    manifest = json.loads((subject.network.folder / "manifest.json").read_text(encoding="utf-8"))
    counted = next((r.trace.layer_instructions for r in runs if r.trace.layer_instructions), {})
    made = []
    last: dict[str, int] = {}
    storages = {
        entry["tensor"]: Storage(entry["bits"], tuple(entry["levels"]))
        for entry in manifest.get("packed", ())
    }
    for rows in filter(None, (entry.get("rows") for entry in manifest["layers"])):
        last[rows["of"]] = max(last.get(rows["of"], 0), rows["stop"])
    for entry in manifest["layers"]:
        name, index = entry["name"], entry["index"]
        wanted = reference.tensor_of(entry, storages)
        traced = [(run.trace.layers or {}).get(name) for run in runs]
        different = None
        if wanted is not None and all(got is not None for got in traced):
            different = sum(
                int(np.count_nonzero(wanted != got.reshape(wanted.shape)))
                for got in traced
                if got is not None
            )
        counts = counted.get(name)
        made.append(
            LayerReport(
                index, name, entry["op"], entry["kernel"],
                wanted.shape[1] if wanted is not None else 0, entry["macs"], different,
                reference.oracle_different(entry, last), counts[0] if counts else None,
            )
        )  # fmt: skip
    return tuple(made)


def _steps(graph: Graph, steps: Mapping[str, Step]) -> StepsReport | None:
    """The comparison of single layers; None where outputs are compared instead."""
    if not is_rounded_once(graph):
        return None
    total = Step(0, 0, 0, 0)
    for step in steps.values():
        total += step
    return StepsReport(
        len(steps), total.compared, sum(1 for step in steps.values() if step.different),
        total.different, total.largest, total.unexplained,
        tuple(name for name, step in steps.items() if step.unexplained),
    )  # fmt: skip


def _accuracy(outputs: Sequence[AnyArray], labels: AnyArray | None) -> float | None:
    """Share of samples whose largest element of the first output is at the label."""
    if labels is None:
        return None
    return float(np.mean(outputs[0].argmax(axis=1) == labels))


def host_description() -> str:
    """Processor and the features on which onnxruntime's integer kernels depend."""
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    known = [f for f in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp") if f in flags]
    return f"{platform.machine()} ({', '.join(known) or 'no vector features found'})"


__all__ = ["Comparison", "Subject", "VerifyOptions", "VerifyReport", "read_manifest", "verify"]
