"""The Python API: compile a model, verify a compiled folder."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinyq.errors import TinyqError, error

if TYPE_CHECKING:
    import onnx

    from tinyq.build.fit import BoardFit
    from tinyq.codegen import Program
    from tinyq.codegen.program import Library
    from tinyq.export import Package, Source
    from tinyq.fit import FitResult
    from tinyq.frontends.coarse_weights import CoarseLayer
    from tinyq.ir import Graph
    from tinyq.plan import MemoryPlan
    from tinyq.plan.limits import Advice, Limits
    from tinyq.ptq import CalibrationData, PtqConfig, PtqReport, PtqResult
    from tinyq.select import Goal, Libraries, Schedule
    from tinyq.target import Core
    from tinyq.verification.profile import Profile
    from tinyq.verification.verify import Progress, Subject, VerifyOptions, VerifyReport

ORACLES = ("ort", "tflite", "cmsis-nn")
OWN_KERNELS = ("tinyq", "packed", "shift")
KERNELS = (*OWN_KERNELS, "cmsis-nn", "auto")
COMPARED_KERNELS = ("tinyq", "cmsis-nn", "auto")
IO = ("int8", "float")
PACKING = ("auto", "never", "always")
STAGES = ("integer", "qdq")
TFLITE = ".tflite"


@dataclass(frozen=True)
class CompileOptions:
    """What `tinyq compile` can be told.

    target: a target string (``cortex-m4``). name: prefix of all C symbols, by default the file's.
    optimize: speed, size or balanced. shapes: fixed shapes of inputs by name. io: ``float`` adds
    functions that quantize inputs and dequantize outputs. kernels: ``tinyq`` (its own alone), of
    these ``packed`` (weights of few values are read by their codes wherever a kernel can) or
    ``shift`` (no layer multiplies), ``cmsis-nn`` (CMSIS-NN's functions wherever they fit) or
    ``auto`` (whichever costs less, never one that can differ from the oracle). cmsis_nn: the
    library's folder, by default CMSIS_NN_DIR. ram, flash: most bytes of arena and of constants and
    code (``32K``; '' without limit).
    board: a board's name: it implies the target, and its memories are limits too.
    calib: typical samples of a float model, which is quantized first: data of
    :func:`tinyq.ptq.load_calibration`, or a path that it takes. quantization: how it is quantized.
    weights: a format of :data:`tinyq.quant.coarse.FORMATS` to which weights are rounded, the first
    and last layer's too with ``weights_all``; ``weights_layers`` gives formats by layer.
    weights_samples: samples by which the change of the outputs is measured (random ones if '').
    pack_activations: whether activations of few values are stored with 1, 2 or 4 bits: ``auto``
    when optimizing for size and to meet a limit on RAM, ``always`` where that makes the arena
    smaller, ``never``.
    input_scales: scale and int8 zero point of float inputs by name ('' for the only one), for
    models whose scales are found at run time.
    """

    target: str = ""
    name: str = ""
    optimize: str = "balanced"
    oracle: str = "ort"
    io: str = "int8"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kernels: str = "tinyq"
    cmsis_nn: str = ""
    ram: str = ""
    flash: str = ""
    board: str = ""
    calib: CalibrationData | Path | str | None = None
    quantization: PtqConfig | None = None
    weights: str = ""
    weights_all: bool = False
    weights_layers: Mapping[str, str] = field(default_factory=dict)
    weights_samples: str = ""
    pack_activations: str = "auto"
    input_scales: Mapping[str, tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled network: everything that the stages made, before it is written.

    ``quantization`` is the report of a float model's quantization, if it was one.
    """

    graph: Graph
    schedule: Schedule
    plan: MemoryPlan
    program: Program
    notes: tuple[str, ...]
    quantization: PtqReport | None = None


def lower_model(
    model: Path, options: CompileOptions, quantized: onnx.ModelProto | None = None
) -> tuple[Graph, tuple[str, ...], bytes]:
    """The integer graph of a model file, notes of the passes, and the model as one file.

    That file is ONNX, also of a TensorFlow Lite model, unless TensorFlow Lite is the oracle.
    ``quantized`` is taken in the file's place: what its float network was quantized to.
    """
    from tinyq.frontends.input_scale import with_input_scales
    from tinyq.frontends.onnx import import_model, opset
    from tinyq.frontends.ort import IslandEvaluator
    from tinyq.ops.lowering import Evaluate
    from tinyq.passes.pipeline import to_integer

    given = quantized or read_model(model)
    if options.input_scales:
        given = with_input_scales(given, options.input_scales)
    _refuse_float(given, model)
    proto, coarse = _with_coarse_weights(given, options)
    evaluate: Evaluate = IslandEvaluator(opset(proto))
    kept = proto.SerializeToString(deterministic=True)
    if options.oracle == "tflite":
        from tinyq.frontends.tflite import load_tflite
        from tinyq.frontends.tflite_oracle import TfliteEvaluator

        if model.suffix != TFLITE:
            raise error("TQ303", f"--oracle tflite for {model.name}", "It needs a .tflite model.")
        source = load_tflite(model)
        evaluate, kept = TfliteEvaluator(source), source.raw
    graph = import_model(proto, options.shapes, str(model))
    lowered = to_integer(graph, evaluate, options.oracle)
    notes = lowered.notes
    if coarse:
        notes = (*_weight_notes(given, proto, coarse, lowered.graph, options), *notes)
    return lowered.graph, notes, kept


def _with_coarse_weights(
    given: onnx.ModelProto, options: CompileOptions
) -> tuple[onnx.ModelProto, tuple[CoarseLayer, ...]]:
    """The model with the weights that the options ask for."""
    from tinyq.frontends.coarse_weights import WeightChoice, coarsen
    from tinyq.quant.coarse import check_format

    choice = WeightChoice(options.weights, options.weights_all, options.weights_layers)
    if not choice:
        return given, ()
    if options.oracle == "tflite":
        raise error("TQ303", "--weights with --oracle tflite", "The oracle runs the file as it is.")
    for form in filter(None, (options.weights, *options.weights_layers.values())):
        check_format(form, "weights")
    return coarsen(given, choice)


def _weight_notes(
    given: onnx.ModelProto, changed: onnx.ModelProto, coarse: tuple[CoarseLayer, ...],
    graph: Graph, options: CompileOptions,
) -> tuple[str, ...]:  # fmt: skip
    """What became of the weights, and how far the outputs moved."""
    from tinyq.frontends.oracle import OrtOracle
    from tinyq.verification.fidelity import fidelity_note, samples_for

    samples = samples_for(graph, options.weights_samples)
    before, after = (OrtOracle(model, graph) for model in (given, changed))
    by_form: dict[str, list[float]] = {}
    for layer in coarse:
        by_form.setdefault(layer.form, []).append(layer.sqnr_db)
    lines = [
        f"weights of {len(found)} layers rounded to {form}: signal to noise {min(found):.1f} to "
        f"{max(found):.1f} dB a layer"
        for form, found in by_form.items()
    ]
    return (*lines, fidelity_note(graph, before, after, samples))


def _refuse_float(proto: onnx.ModelProto, model: Path) -> None:
    """One error for a float network or its float layers, in place of one for each node."""
    from tinyq.ptq.emit import FLOAT_LAYERS
    from tinyq.ptq.graph import is_float

    left = next((p.value for p in proto.metadata_props if p.key == FLOAT_LAYERS), "")
    if left:
        raise error(
            "TQ202", f"layers that were left in float: {', '.join(json.loads(left))}",
            "tinyq compiles to integers alone: quantize without --allow-float, or run this file "
            "in onnxruntime.",
            file=str(model),
        )  # fmt: skip
    if is_float(proto):
        raise error(
            "TQ202", "a float model: none of its tensors is quantized",
            f"Quantize and compile it at once: tinyq compile {model} --calib DATA, or quantize it "
            f"first: tinyq quantize {model} --calib DATA",
            file=str(model),
        )  # fmt: skip


def _quantize(model: Path, options: CompileOptions, progress: Progress) -> PtqResult:
    """Quantize a float model file as the options say. Raises TQ303 and TQ6xx."""
    from tinyq.ptq import CalibrationData, inputs_of, load_calibration, quantize, with_shapes

    if model.suffix == TFLITE or options.oracle == "tflite":
        raise error(
            "TQ303", f"calibration data for {model.name}",
            "A TensorFlow Lite model is quantized when it is converted; float networks are taken "
            "as ONNX.",
        )  # fmt: skip
    data = options.calib
    source = with_shapes(model, options.shapes) if options.shapes else model
    if not isinstance(data, CalibrationData):
        assert data is not None
        data = load_calibration(data, inputs_of(source))
    return quantize(source, data, options.quantization, progress)


def read_model(model: Path) -> onnx.ModelProto:
    """A model file as ONNX: as it is, or converted from TensorFlow Lite (``.tflite``)."""
    if model.suffix == TFLITE:
        from tinyq.frontends.tflite import load_tflite, to_onnx

        return to_onnx(load_tflite(model))
    from tinyq.frontends.onnx import load_model

    return load_model(model)


def inspect_model(
    model: Path, stage: str = "integer", shapes: Mapping[str, tuple[int, ...]] | None = None
) -> str:
    """The text form of a model: as imported (``qdq``), or lowered to integers (``integer``)."""
    from tinyq.frontends.onnx import import_model
    from tinyq.ir import to_text

    _one_of("stage", stage, STAGES)
    if stage == "qdq":
        return to_text(import_model(read_model(model), shapes, str(model)))
    graph, _, _ = lower_model(model, CompileOptions("", shapes=shapes or {}))
    return to_text(graph)


def compile_model(
    model: Path | str, options: CompileOptions, progress: Progress | None = None
) -> Compiled:
    """Compile ``model`` in memory. Raises TinyqError with everything that is wrong."""
    from tinyq.codegen import GenerateOptions, generate
    from tinyq.plan.limits import fit
    from tinyq.select import Goal

    tell = progress or _silent
    path = Path(model)
    _one_of("optimize", options.optimize, tuple(g.value for g in Goal))
    _one_of("oracle", options.oracle, ORACLES)
    _one_of("io", options.io, IO)
    _one_of("kernels", options.kernels, KERNELS)
    _one_of("pack-activations", options.pack_activations, PACKING)
    limits = _limits(options)
    libraries = _libraries(options)
    core = target_core(options.target, options.board)
    name = options.name or default_name(path)
    if options.calib is None and options.quantization is not None:
        raise error("TQ605", "how to quantize is given, but no samples", "Give calib too.")
    result = None if options.calib is None else _quantize(path, options, tell)
    tell("lowering to integers", 0, 1)
    graph, notes, proto = lower_model(path, options, result.model if result else None)
    tell("generating C", 0, 1)
    family = options.kernels if options.kernels in ("packed", "shift") else ""
    fitted = fit(
        graph, core, Goal(options.optimize), limits, libraries, family,
        _advice(options.board, core), options.pack_activations,
    )  # fmt: skip
    schedule, memory, notes = fitted.schedule, fitted.plan, (*notes, *fitted.notes)
    generate_options = GenerateOptions(
        io=options.io,
        oracle=options.oracle,
        model=proto,
        shapes=dict(options.shapes),
        notes=notes,
        libraries=_called(schedule, options, libraries),
    )
    program = generate(schedule, memory, name, generate_options)
    report = result.report if result else None
    return Compiled(graph, schedule, memory, program, notes, report)


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A float network quantized within limits and compiled: the search, and what it compiled to."""

    result: FitResult
    compiled: Compiled


def fit_model(
    model: Path | str,
    calibration: CalibrationData,
    options: CompileOptions,
    *,
    latency: float = 0.0,
    clock_hz: int = 0,
    forms: Sequence[str] = (),
    config: PtqConfig | None = None,
    points: int = 10,
    jobs: int = 1,
    progress: Progress | None = None,
) -> FittedNetwork:
    """Choose the form of every layer's weights within limits, quantize, and compile.

    Limits are those of ``options`` (flash, ram, board) and ``latency``, seconds an inference at
    ``clock_hz`` (by default the board's), for which firmware is built and run in QEMU. ``forms``
    as in :data:`tinyq.fit.FORMS` or its groups, all by default. Evaluations run in ``jobs``
    processes, or wherever ``joblib.parallel_config`` says. Raises TQ804 when no choice keeps the
    limits, TQ613 without OR-tools, and what quantizing, compiling and (for ``latency``) profiling
    raise.
    """
    from tinyq.fit import FORMS, Budget, fit
    from tinyq.select import Goal
    from tinyq.target import load_board

    _one_of("optimize", options.optimize, tuple(g.value for g in Goal))
    core, limits = target_core(options.target, options.board), _limits(options)
    path, name = Path(model), options.name or default_name(Path(model))
    if latency and not clock_hz:
        if not options.board:
            raise error("TQ303", "a limit of time without a clock", "Give a board, or its clock.")
        clock_hz = load_board(options.board).clock_hz
    cycles = int(latency * clock_hz) if latency else None
    result = fit(
        path, calibration, core, Budget(limits.flash, limits.ram, cycles),
        goal=Goal(options.optimize), forms=forms or FORMS, config=config,
        points=points, jobs=jobs, cycles_of=_cycles_of(core.target), progress=progress,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tinyq-fit-") as folder:
        file = Path(folder) / f"{name}.onnx"
        file.write_bytes(result.model.SerializeToString(deterministic=True))
        chosen = replace(options, name=name, optimize=result.goal.value)
        return FittedNetwork(result, compile_model(file, chosen))


def _cycles_of(target: str) -> Callable[[onnx.ModelProto, Goal], int]:
    """A function that compiles a quantized model, runs it in QEMU and estimates its cycles."""
    from tinyq.verification.profile import profile

    def measure(model: onnx.ModelProto, goal: Goal) -> int:
        with tempfile.TemporaryDirectory(prefix="tinyq-cycles-") as folder:
            file, output = Path(folder) / "net.onnx", Path(folder) / "net"
            file.write_bytes(model.SerializeToString(deterministic=True))
            compile(file, output=output, target=target, optimize=goal.value)
            found = profile(output)
        if found.cycles is None:
            raise error("TQ410", f"a limit of time cannot be checked. {found.cycles_note}")
        return found.cycles

    return measure


def target_core(target: str, board: str = "") -> Core:
    """The core of a target string, or the board's. Raises TQ301, and TQ304 when they differ."""
    from tinyq.target import load_board, load_core

    if not board:
        return load_core(target)
    carried = load_board(board).mcu.core
    core = load_core(target or carried)
    if core.name != carried:
        raise error("TQ304", f"'{board}' has a {carried}, the target is {core.target}")
    return core


def _limits(options: CompileOptions) -> Limits:
    """The limits asked for, and those of the board less what start-up and stack take at least."""
    from tinyq.build.fit import room
    from tinyq.plan.limits import Limits, parse_bytes
    from tinyq.target import load_board

    ram, flash = (parse_bytes(text) if text else None for text in (options.ram, options.flash))
    if not options.board:
        return Limits(ram, flash)
    space = room(load_board(options.board))
    return Limits(min(ram or space.ram, space.ram), min(flash or space.flash, space.flash))


def _advice(board: str, core: Core) -> Advice | None:
    """Names the boards that have enough, when the limits are those of a board."""
    from tinyq.build.fit import START_FLASH, START_STACK, enough

    if not board:
        return None
    return lambda arena, flash: enough(core.name, arena + START_STACK, flash + START_FLASH)


def board_room(compiled: Compiled, board: str) -> str:
    """How much of a board's memories a compiled network takes, before it is built."""
    from tinyq.plan.price import flash_estimate
    from tinyq.target import load_board

    chosen = load_board(board)
    flash, arena = flash_estimate(compiled.schedule), compiled.plan.arena_bytes
    return (
        f"{chosen.title}: about {flash:,} of {chosen.flash.size:,} bytes of flash "
        f"({chosen.flash.size - flash:,} left for start-up and your program); an arena of "
        f"{arena:,} of {chosen.ram.size:,} bytes of RAM ({chosen.ram.size - arena:,} left for "
        "stack and variables)."
    )


def _libraries(options: CompileOptions) -> Libraries | None:
    """How kernels of CMSIS-NN are treated: its rounding is the oracle's."""
    from tinyq.build.cmsis_nn import find_cmsis_nn
    from tinyq.select import Libraries

    if options.kernels in OWN_KERNELS:
        return None
    if options.oracle == "tflite":
        raise error(
            "TQ303",
            f"--kernels {options.kernels} with --oracle tflite",
            "CMSIS-NN rounds in its own way: use --oracle cmsis-nn, or --oracle ort.",
        )
    find_cmsis_nn(options.cmsis_nn)
    rounding = "once" if options.oracle == "ort" else "twice"
    return Libraries(rounding, preferred=options.kernels == "cmsis-nn")


def _called(
    schedule: Schedule, options: CompileOptions, libraries: Libraries | None
) -> tuple[Library, ...]:
    """The libraries that the schedule calls."""
    from tinyq.build.cmsis_nn import find_cmsis_nn
    from tinyq.codegen.libraries import library_functions

    functions = library_functions(schedule)
    if libraries is None or not functions:
        return ()
    return (find_cmsis_nn(options.cmsis_nn).library(functions, libraries.rounding),)


def compile(model: Path | str, *, output: Path | str | None = None, **options: object) -> Compiled:
    """Compile ``model`` into the folder ``output`` (by default the model's name).

    Options are those of :class:`CompileOptions`. The folder is written whole or not at all.
    """
    from tinyq.codegen import write_program

    chosen = CompileOptions(**options)  # type: ignore[arg-type]
    compiled = compile_model(model, chosen)
    write_program(compiled.program, Path(output or compiled.program.name))
    return compiled


def open_folder(folder: Path, layers: bool = False) -> Subject:
    """A compiled folder ready to be verified: its integer graph again, and its oracles.

    With ``layers`` the oracle exposes every intermediate tensor that a layer of the C computes.
    Raises TQ503 for a folder that is none.
    """
    from tinyq.build import load_network
    from tinyq.frontends.onnx import load_model
    from tinyq.frontends.oracle import OrtOracle
    from tinyq.passes.adopt_fixed_point import with_library_arithmetic
    from tinyq.verification.reference import ReferenceOracle
    from tinyq.verification.stepwise import is_rounded_once
    from tinyq.verification.verify import Subject, read_manifest

    manifest = read_manifest(folder)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    options = CompileOptions(manifest["target"], oracle=manifest["oracle"], shapes=shapes)
    path = folder / manifest["model"]
    graph, _, _ = lower_model(path, options)
    if manifest["oracle"] == "ort":
        called = {layer["name"] for layer in manifest["layers"] if layer.get("library")}
        graph = with_library_arithmetic(graph, called)
    origins = graph.origins if layers or is_rounded_once(graph) else ()
    if manifest["oracle"] == "tflite":
        from tinyq.frontends.tflite import load_tflite
        from tinyq.frontends.tflite_oracle import TfliteOracle

        source = load_tflite(path)
        exposed = tuple(dict.fromkeys(o.name for o in origins if o.name in source.producer))
        reference = TfliteOracle(source, graph, exposed)
        return Subject(load_network(folder), graph, "TensorFlow Lite (BUILTIN_REF)", reference)
    proto = load_model(path)
    known = {name for node in proto.graph.node for name in node.output}
    names = dict.fromkeys(o.name for o in origins if o.name in known)
    gaps = {
        "onnxruntime (x86 default)": OrtOracle(
            proto, graph, integer_kernels=False, whole_sums=False
        ),
        "onnxruntime (not optimised)": OrtOracle(
            proto, graph, integer_kernels=False, optimise=False, whole_sums=False
        ),
    }
    oracle = OrtOracle(proto, graph, expose=tuple(names))
    if manifest["oracle"] == "cmsis-nn":
        return Subject(
            load_network(folder), graph, "CMSIS-NN (integer reference)", ReferenceOracle(graph),
            {"onnxruntime": oracle},
        )  # fmt: skip
    return Subject(load_network(folder), graph, "onnxruntime", oracle, gaps)


def verify(
    folder: Path | str, options: VerifyOptions | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Verify a compiled folder; ``report.equal`` is the verdict. Raises TQ4xx and TQ5xx."""
    from tinyq.build import load_network
    from tinyq.verification.verify import VerifyOptions as Options
    from tinyq.verification.verify import verify as run

    chosen = options or Options()
    if chosen.board and chosen.device is not None:
        target_core(load_network(Path(folder)).target, chosen.board)
    elif chosen.board:
        check_board(folder, chosen.board, chosen.toolchain)
    return run(open_folder(Path(folder), chosen.layers), chosen, progress)


def report(
    folder: Path | str,
    options: VerifyOptions | None = None,
    clock_hz: int = 0,
    progress: Progress | None = None,
) -> tuple[str, VerifyReport]:
    """Verify a compiled folder layer by layer and profile it: an HTML page, the verdict.

    With a clock the page has milliseconds. Raises TQ610 without matplotlib, and what verification
    and profile raise.
    """
    from tinyq.report.page import Page, page, require_charts
    from tinyq.verification.profile import profile
    from tinyq.verification.verify import VerifyOptions as Options
    from tinyq.verification.verify import read_manifest
    from tinyq.verification.verify import verify as run

    require_charts()
    path, chosen = Path(folder), replace(options or Options(), layers=True)
    subject = open_folder(path, layers=True)
    verification = run(subject, chosen, progress)
    (progress or _silent)("profiling", 0, 1)
    measured = profile(
        path, chosen.target, chosen.seed, clock_hz,
        emulator=chosen.emulator, toolchain=chosen.toolchain,
    )  # fmt: skip
    made = page(Page(read_manifest(path), subject.graph, verification, measured))
    return made, verification


def check_board(folder: Path | str, board: str, toolchain: str = "") -> BoardFit:
    """Build a compiled folder for its core and compare what it takes with the board's memories.

    Raises TQ304 for a board with another core, TQ803 when it does not fit, TQ401 and TQ402.
    """
    from tinyq.build import load_network
    from tinyq.build.fit import check_fit
    from tinyq.target import load_board

    network = load_network(Path(folder))
    core = target_core(network.target, board)
    with tempfile.TemporaryDirectory(prefix="tinyq-fit-") as name:
        return check_fit(network, core, load_board(board), Path(name), toolchain)


def export(
    folder: Path | str,
    form: str,
    output: Path | str | None = None,
    *,
    board: str = "",
    samples: int = 3,
    seed: int = 0,
    package: Package | None = None,
    baud: int = 115_200,
) -> Path:
    """Make a package of an ecosystem (``form``) from a compiled folder; returns its folder.

    ``board`` names the board of a ``bare`` export. Up to ``samples`` golden samples with this seed
    go into it; ``baud`` is the rate of its UART. Raises TQ303, TQ304, TQ503, TQ701 and TQ704.
    """
    from tinyq.export import Package, Source, golden_samples
    from tinyq.verification.verify import read_manifest

    path = Path(folder)
    manifest = read_manifest(path)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    options = CompileOptions(manifest["target"], oracle=manifest["oracle"], shapes=shapes)
    graph, _, _ = lower_model(path / manifest["model"], options)
    source = Source(
        files={file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()},
        manifest=manifest,
        core=target_core(manifest["target"], board),
        golden=golden_samples(graph, samples, seed),
        package=package or Package(),
    )
    return _write_export(source, form, Path(output or f"{path.resolve().name}-{form}"), board, baud)


def export_compiled(compiled: Compiled, form: str, output: Path | str, board: str = "") -> Path:
    """As :func:`export`, of a network that was just compiled."""
    from tinyq.export import Source, golden_samples

    program = compiled.program
    source = Source(
        files=program.files,
        manifest=program.manifest,
        core=target_core(program.manifest["target"], board),
        golden=golden_samples(compiled.graph),
    )
    return _write_export(source, form, Path(output), board)


def _write_export(source: Source, form: str, output: Path, board: str, baud: int = 115_200) -> Path:
    from tinyq.codegen.folder import write_files
    from tinyq.export import export_files
    from tinyq.target import load_board

    write_files(export_files(source, form, load_board(board) if board else None, baud), output)
    return output


def build_package(
    folder: Path | str, board: str, firmware: str, output: Path | None = None, baud: int = 115_200
) -> Path:
    """Export a compiled folder for ``board`` and build its firmware; the folder of the images.

    ``firmware`` is ``device`` or ``test``. Raises TQ803 when it does not fit, TQ908 for device
    firmware of a board whose UART is not known, TQ401 and TQ402.
    """
    from tinyq.build.arm import arm_toolchain
    from tinyq.build.toolchain import make
    from tinyq.export.uart import has_uart
    from tinyq.target import load_board

    if firmware == "device" and not has_uart(load_board(board)):
        raise error(
            "TQ908", f"tinyq does not know the UART of '{board}'",
            "--firmware test reports through the debug probe instead.",
        )  # fmt: skip
    check_board(folder, board)
    place = output or Path(f"{Path(folder).resolve().name}-{board}")
    package = export(folder, "bare", place, board=board, baud=baud).resolve()
    chosen = [f"FIRMWARE={firmware}"] if has_uart(load_board(board)) else []
    make(arm_toolchain("gcc").compiler, package, chosen)
    return package / ("build-device" if firmware == "device" else "build")


def profile_kernels(
    folder: Path | str, choices: tuple[str, ...] = COMPARED_KERNELS, cmsis_nn: str = ""
) -> tuple[Profile, ...]:
    """Profiles of a compiled folder's model, compiled anew with each choice of ``kernels``.

    Target, oracle, goal and shapes are the folder's. Raises what compile and profile raise; TQ407
    without CMSIS-NN.
    """
    from tinyq.verification.profile import profile
    from tinyq.verification.verify import read_manifest

    path = Path(folder)
    manifest = read_manifest(path)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    found = []
    with tempfile.TemporaryDirectory(prefix="tinyq-kernels-") as name:
        for choice in choices:
            compile(
                path / manifest["model"], output=Path(name) / choice, target=manifest["target"],
                name=manifest["name"], optimize=manifest["optimize"], oracle=manifest["oracle"],
                shapes=shapes, kernels=choice, cmsis_nn=cmsis_nn,
            )  # fmt: skip
            found.append(profile(Path(name) / choice))
    return tuple(found)


def default_name(model: Path) -> str:
    """A C identifier from the file's name; ``net_`` precedes what C does not take as a name."""
    from tinyq.codegen.names import check_name

    stem = re.sub(r"\W+", "_", model.name.split(".")[0], flags=re.ASCII).strip("_").lower()
    try:
        return check_name(stem)
    except TinyqError:
        return f"net_{stem or 'work'}"


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise error("TQ303", f"--{option} {value}", f"Accepted: {', '.join(accepted)}.")
