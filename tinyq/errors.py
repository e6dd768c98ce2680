"""Diagnostics with stable codes.

Every way in which a user's input can be wrong has a code (``TQ101``), an exit status and a remedy.
The catalogue below is what ``tinyq explain CODE`` prints. User mistakes are raised as
:class:`TinyqError` and never end in a traceback; mistakes of tinyq itself are ordinary exceptions
and always do.

Code ranges: 1xx model files, 2xx operators and quantization that cannot be compiled, 3xx targets,
boards and options, 4xx toolchains and emulators, 5xx samples and verification, 6xx quantizing and
training, 7xx output folders, 8xx memory limits, 9xx devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class CodeInfo:
    """What a diagnostic code means, for ``tinyq explain``.

    ``exit_status`` is what the command line returns: 3 model file, 4 unsupported, 5 target or
    option, 6 toolchain, 7 emulator, 8 samples or data, 9 output, 10 memory limit, 11 device,
    12 quantization, 13 a defect of tinyq (1 is a failed verification, 2 a wrong command line).
    """

    code: str
    title: str
    explanation: str
    remedy: str
    exit_status: int


CATALOG: dict[str, CodeInfo] = {}


def _register(code: str, exit_status: int, title: str, explanation: str, remedy: str) -> None:
    if code in CATALOG:
        raise ValueError(f"diagnostic code {code} is registered twice")
    CATALOG[code] = CodeInfo(code, title, explanation, remedy, exit_status)


@dataclass(frozen=True)
class Diagnostic:
    """One finding: where it is, what was found, and what to do about it."""

    code: str
    found: str
    remedy: str = ""
    node: str = ""
    operator: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if self.code not in CATALOG:
            raise ValueError(f"unknown diagnostic code {self.code}")

    @property
    def info(self) -> CodeInfo:
        """The catalogue's entry for this code."""
        return CATALOG[self.code]

    def __str__(self) -> str:
        where = ": ".join(
            part
            for part in (self.file, f"{self.operator} '{self.node}'".lstrip() if self.node else "")
            if part
        )
        head = f"{self.code} {where}: " if where else f"{self.code} "
        return f"{head}{self.found}. {self.remedy or self.info.remedy}"


class TinyqError(Exception):
    """A mistake in the user's input, with every diagnostic that was found (at least one)."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        if isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        if not self.diagnostics:
            raise ValueError("a TinyqError needs at least one diagnostic")
        super().__init__("\n".join(str(d) for d in self.diagnostics))

    @property
    def exit_status(self) -> int:
        """Exit status of the first diagnostic."""
        return self.diagnostics[0].info.exit_status


def error(
    code: str, found: str, remedy: str = "", *, node: str = "", operator: str = "", file: str = ""
) -> TinyqError:
    """Make a :class:`TinyqError` of one diagnostic; the caller raises it."""
    return TinyqError(Diagnostic(code, found, remedy, node, operator, file))


# --- 1xx: model files -----------------------------------------------------------------------------
_register(
    "TQ101",
    3,
    "model file cannot be read",
    "The path does not exist, is a folder, or is not readable.",
    "Check the path.",
)
_register(
    "TQ102",
    3,
    "not a model file",
    "The file's bytes are not an ONNX model: it is another format, or it is truncated.",
    "Export the model again and compare the file's size.",
)
_register(
    "TQ103",
    3,
    "invalid ONNX model",
    "The file parses, but breaks a rule of the ONNX specification.",
    "Run onnx.checker.check_model on the file; it names the rule.",
)
_register(
    "TQ104",
    3,
    "opset not supported",
    "The model uses an opset below 13, or one newer than the installed onnx package knows.",
    "Convert it with onnx.version_converter, or update the onnx package.",
)
_register(
    "TQ105",
    3,
    "external data is missing",
    "The model keeps its weights in another file that is not beside it.",
    "Copy the data file next to the model.",
)
_register(
    "TQ106",
    3,
    "dynamic shape",
    "An input dimension other than the batch has no fixed size, or shapes cannot be inferred.",
    "Give the shape: --shape INPUT=1,49,10,1",
)
_register(
    "TQ107",
    3,
    "no such input",
    "An option names an input that the model does not have.",
    "Use one of the names that `tinyq inspect MODEL` lists.",
)
_register(
    "TQ108",
    3,
    "an optional package is missing",
    "Reading this kind of model needs a package that is not installed with tinyq by itself.",
    "Install the extra: pip install 'tinyq[tflite]'",
)
_register(
    "TQ109",
    3,
    "invalid TensorFlow Lite model",
    "The file parses, but an operator lacks an input that it needs, or the file holds no graph.",
    "Convert the model again.",
)
# --- 2xx: what cannot be compiled -----------------------------------------------------------------
_register(
    "TQ201",
    4,
    "operator not supported",
    "The model contains an operator that tinyq has no integer implementation for.",
    "`tinyq ops` lists what is supported; replace the operator, or cut the model before it.",
)
_register(
    "TQ202",
    4,
    "not quantized",
    "A tensor is computed in float: no QuantizeLinear/DequantizeLinear pair gives its integers.",
    "Quantize the model first: tinyq quantize MODEL --calib DATA",
)
_register(
    "TQ203",
    4,
    "unsupported form of an operator",
    "The operator is supported, but not with these attributes, shapes or types.",
    "See the message for what is accepted.",
)
_register(
    "TQ204",
    4,
    "unsupported quantization parameters",
    "A scale is not a positive finite number, zero points differ by channel, or the type is not "
    "supported for this tensor.",
    "Use per-tensor affine activations (int8 or uint8) and symmetric weights.",
)
_register(
    "TQ205",
    4,
    "accumulator may overflow 32 bits",
    "The weights and the input range of this layer allow a sum beyond 2^31 - 1.",
    "Split the layer, or use a smaller bias or fewer inputs.",
)
_register(
    "TQ206",
    4,
    "no kernel for this target",
    "Every kernel refused this node for the selected target.",
    "The table says why each kernel refused.",
)
_register(
    "TQ207",
    4,
    "no kernel without multiplications",
    "With --kernels shift every product must become additions and shifts, which this layer's "
    "operands or form do not allow.",
    "Leave --kernels shift out: kernels that multiply then take these layers.",
)
# --- 3xx: targets and options ---------------------------------------------------------------------
_register(
    "TQ301",
    5,
    "unknown target",
    "No target of that name is known.",
    "`tinyq targets` lists them.",
)
_register(
    "TQ302",
    5,
    "invalid target file",
    "A TOML file under targets/ lacks a field or has a value out of range.",
    "docs/adding-a-board.md describes the fields.",
)
_register(
    "TQ303",
    5,
    "invalid option",
    "An option's value is not one of those accepted, or two options exclude each other.",
    "See `tinyq COMMAND --help`.",
)
_register(
    "TQ304",
    5,
    "board has another core",
    "The folder was compiled for another core than the board has, or --target names another.",
    "Compile with --board alone: it implies the target.",
)
# --- 4xx: toolchains and emulators ----------------------------------------------------------------
_register(
    "TQ401",
    6,
    "compiler not found",
    "No C compiler for this target is on the PATH.",
    "pip install 'tinyq[emulator]' (zig as compiler), or apt install gcc-arm-none-eabi "
    "libnewlib-arm-none-eabi (or set TINYQ_ARM_GCC).",
)
_register(
    "TQ402",
    6,
    "compilation failed",
    "The C compiler reported an error for generated code. This is a mistake of tinyq.",
    "Please report it with the model and the message.",
)
_register(
    "TQ403",
    7,
    "emulator not found",
    "The emulator's program is not on the PATH, or its package is not installed.",
    "pip install 'tinyq[emulator]' (unicorn), or apt install qemu-system-arm (or set TINYQ_QEMU).",
)
_register(
    "TQ404",
    7,
    "emulated run failed",
    "The firmware faulted, ran out of time, or ended without its closing line.",
    "The message has the emulator's last output.",
)
_register(
    "TQ405",
    6,
    "firmware does not fit",
    "The linker could not place code, constants or memory in the regions of the target.",
    "Choose a target with more memory, or a smaller network.",
)
_register(
    "TQ406",
    6,
    "floating-point code in an integer build",
    "The ELF of an integer-only build contains a floating-point routine.",
    "Please report it with the model; --io float is the only option that allows float code.",
)
_register(
    "TQ407",
    6,
    "CMSIS-NN not found",
    "Kernels of CMSIS-NN were asked for, or a network calls them, and its folder is not known.",
    "Name its folder with --cmsis-nn DIR or CMSIS_NN_DIR (and that of cmsis_compiler.h with "
    "CMSIS_CORE_DIR).",
)
_register(
    "TQ408",
    6,
    "CMSIS-NN lacks a function",
    "The CMSIS-NN that was found does not have a function that a kernel calls.",
    "Use a newer CMSIS-NN; docs/cmsis-nn.md lists the versions that were tested.",
)
_register(
    "TQ409",
    7,
    "core or board not emulated",
    "The emulator has no model of the core or board.",
    "Use --emulator qemu, which has all cores (apt install qemu-system-arm).",
)
_register(
    "TQ410",
    7,
    "executed instructions cannot be counted",
    "QEMU's plugin that counts every instruction could not be built on this machine.",
    "Install a C compiler for this machine (apt install gcc libc6-dev), or name one in TINYQ_CC.",
)
# --- 5xx: samples and verification ----------------------------------------------------------------
_register(
    "TQ501",
    8,
    "samples cannot be read",
    "The sample file is missing, or is neither .npy, .npz with an array `x`, nor a folder of .npy.",
    "Save the samples with numpy.savez(path, x=samples, y=labels).",
)
_register(
    "TQ502",
    8,
    "samples do not fit the model",
    "Shape or dtype of the samples is not that of the model's input.",
    "`tinyq inspect` prints the shape and dtype that each input expects.",
)
_register(
    "TQ503",
    3,
    "not a compiled folder",
    "The folder has no tinyq manifest, or one written by another version.",
    "Run `tinyq compile` first.",
)
_register(
    "TQ504",
    8,
    "labels cannot be used",
    "The label file has another number of labels than there are samples, or none were given.",
    "Give one integer label a sample.",
)
# --- 65x: training in PyTorch ---------------------------------------------------------------------
_register(
    "TQ650",
    12,
    "network cannot be traced",
    "torch.fx follows the forward method once with symbols; a branch or a loop that depends on the "
    "data, or on a shape, stops it.",
    "Move the code that depends on data out of forward; take numbers from __init__ for shapes.",
)
_register(
    "TQ651",
    12,
    "PyTorch operator not supported",
    "The network uses a module or function that tinyq.learn cannot quantize or export.",
    "Replace it by a supported one (docs/training.md lists them), or quantize the part before it.",
)
_register(
    "TQ652",
    12,
    "invalid quantization setting",
    "A field of QuantConfig has a value that does not exist, or two fields exclude each other.",
    "The message names the field and what it accepts.",
)
_register(
    "TQ653",
    12,
    "range is not known",
    "A quantizer has seen no data, so that it has no scale, or data or weights are not finite.",
    "Run tinyq.learn.calibrate(model, batches), or some training steps, before converting.",
)
_register(
    "TQ654",
    12,
    "not a prepared network",
    "The network has no fake quantization: convert and export need what prepare returned.",
    "Call tinyq.learn.prepare(model, config, example) first.",
)
_register(
    "TQ655",
    12,
    "training failed",
    "The loss became NaN or infinite or rose without bound, or an epoch had no batches.",
    "tinyq.learn.diagnose(model, batch) names the layer; lower the learning rate or clip "
    "gradients.",
)
_register(
    "TQ656",
    12,
    "state of another network",
    "A state dict or checkpoint was written by a network with other levels or another "
    "configuration, or by a version that did not keep what is needed.",
    "Prepare the network with the QuantConfig with which the state was trained.",
)
_register(
    "TQ657",
    12,
    "network or example cannot be taken",
    "tinyq.learn takes float32 networks of one input that are not prepared yet, and as an example "
    "one float32 tensor [N, ...] that the network runs on.",
    "Give prepare the float network and one batch of its inputs.",
)
_register(
    "TQ658",
    12,
    "weights are left in float",
    "Incremental quantization freezes weights in stages; until the last one some are in float.",
    "Call tinyq.learn.freeze_stage(model, 1.0), and calibrate again, before converting.",
)
# --- 7xx: output ----------------------------------------------------------------------------------
_register(
    "TQ701",
    9,
    "output folder cannot be written",
    "The folder exists with other contents, or cannot be created or written.",
    "Choose another folder with -o, or make room on the disk.",
)
_register(
    "TQ702",
    9,
    "name is not a C identifier",
    "The network's name becomes a prefix of C symbols.",
    "Give one with --name: letters, digits and underscores, not starting with a digit.",
)
_register(
    "TQ703",
    9,
    "file system refused",
    "A file could not be written: the disk is full, read-only, or permission is missing.",
    "Make room or choose another place; temporary files go where TMPDIR points.",
)
_register(
    "TQ704",
    9,
    "the format cannot bring a library",
    "The network calls a library of yours, such as CMSIS-NN, that a package of this format has no "
    "place for.",
    "Use --format cmake, or compile with --kernels tinyq.",
)
# --- 8xx: memory limits ---------------------------------------------------------------------------
_register(
    "TQ801",
    10,
    "RAM limit exceeded",
    "The network's arena is larger than --ram allows, whichever kernels are chosen.",
    "Make the tensors of the named layer smaller, or allow more.",
)
_register(
    "TQ802",
    10,
    "flash limit exceeded",
    "The constants and code are larger than --flash allows, whichever kernels are chosen.",
    "Use fewer weights or fewer bits, or allow more.",
)
_register(
    "TQ803",
    10,
    "board too small",
    "Code, constants, the arena and the stack take more than the board's flash or RAM has.",
    "Compile with --optimize size, use a smaller network, or choose a board with more memory.",
)
_register(
    "TQ804",
    10,
    "no choice of weights keeps the limits",
    "Whatever form each layer's weights take, flash, RAM or time is exceeded.",
    "Allow what the message says can be reached, or change the network.",
)
# --- 9xx: devices ---------------------------------------------------------------------------------
_register(
    "TQ901",
    11,
    "package for devices missing",
    "Talking to a board needs the package pyserial; flashing with pyOCD needs pyocd.",
    "pip install 'tinyq[device]'",
)
_register(
    "TQ902",
    11,
    "port cannot be opened",
    "The serial port does not exist, is in use, or may not be used.",
    "Check the cable and the port's name; on Linux your user has to be in the group `dialout`.",
)
_register(
    "TQ903",
    11,
    "the board does not answer",
    "The port is open, but no valid answer came: another baud rate, no device firmware on the "
    "board, or one that stopped.",
    "Check --baud, write the firmware (`tinyq flash DIR --board BOARD`), and reset the board.",
)
_register(
    "TQ904",
    11,
    "another version of the protocol",
    "The board's firmware and this tinyq do not speak the same version of the serial protocol.",
    "Write firmware made by this version: tinyq flash DIR --board BOARD",
)
_register(
    "TQ905",
    11,
    "firmware of another model",
    "The C on the board is not that of the folder: another model, target or options.",
    "Write this folder's firmware: tinyq flash DIR --board BOARD",
)
_register(
    "TQ906",
    11,
    "the board went away",
    "The port disappeared during the run and did not come back.",
    "Check cable and supply, and start again.",
)
_register(
    "TQ907",
    11,
    "the board failed",
    "The board answered that it could not do what was asked.",
    "Write the firmware anew and reset the board; if it stays, please report it.",
)
_register(
    "TQ908",
    11,
    "cannot write to the board",
    "The program that flashes the board is missing, or tinyq knows no way for this board.",
    "Install it, or pyOCD: pip install 'tinyq[device]'. The firmware is built: any tool may write "
    "it.",
)
_register(
    "TQ909",
    11,
    "flashing failed",
    "The program that flashes the board ended with an error, or the drive is not a board's.",
    "Check cable, probe and board; the message has the program's last output.",
)
_register(
    "TQ999",
    13,
    "a defect of tinyq",
    "Something happened that tinyq does not expect; the traceback on stderr says where.",
    "Please report it, with the traceback, the command and the model.",
)
# --- 6xx: quantizing a float model (601 to 629) ---------------------------------------------------
_register(
    "TQ601",
    12,
    "operator cannot be quantized",
    "The float model contains an operator, or a form of one, for which no quantized form is known.",
    "Replace the operator, or cut the model before it. Every such node is listed.",
)
_register(
    "TQ602",
    12,
    "model is quantized already",
    "The model contains QuantizeLinear or DequantizeLinear nodes, or quantized operators.",
    "Give the float model, or compile this one as it is.",
)
_register(
    "TQ603",
    12,
    "weights are not finite",
    "A weight tensor of the float model holds NaN or infinity.",
    "Training diverged, or the file is damaged: export a checkpoint with finite weights.",
)
_register(
    "TQ604",
    12,
    "values are not finite",
    "The calibration data, or a tensor computed from them, holds NaN or infinity.",
    "Remove those samples, and check how they were normalised.",
)
_register(
    "TQ605",
    12,
    "calibration data cannot be used",
    "The path is missing, holds no samples, or is neither .npy, .npz nor a folder of .npy, .npz or "
    "images.",
    "Save the samples with numpy.savez(path, x=samples, y=labels).",
)
_register(
    "TQ606",
    12,
    "calibration data do not fit the model",
    "Shape, layout or dtype of the samples is not that of the model's input.",
    "Give samples as [N, ...] in the layout of the model's input, or name theirs with --layout.",
)
_register(
    "TQ607",
    12,
    "invalid quantization option",
    "An option of the quantizer has a value that is not accepted, or two exclude each other.",
    "See `tinyq quantize --help`.",
)
_register(
    "TQ608",
    12,
    "not a float32 model",
    "An input or a weight has another floating-point type than float32.",
    "Export the model in float32.",
)
_register(
    "TQ609",
    12,
    "Pillow is not installed",
    "Reading a folder of images needs the package Pillow.",
    "pip install 'tinyq[images]', or save the samples as .npz.",
)
_register(
    "TQ610",
    12,
    "matplotlib is not installed",
    "Drawing a plot needs the package matplotlib.",
    "pip install 'tinyq[plot]', or leave the plot out.",
)
_register(
    "TQ613",
    12,
    "a package for fitting is missing",
    "`tinyq fit` needs OR-tools for its solver and joblib for parallel evaluation.",
    "pip install 'tinyq[solver]'",
)
_register(
    "TQ620",
    12,
    "no calibration data",
    "Ranges were estimated from BatchNorm statistics and made-up inputs: accuracy may be poor.",
    "Give at least 100 typical samples: --calib DATA",
)
_register(
    "TQ621",
    12,
    "constant tensor",
    "A tensor is zero on every calibration sample: no scale follows from it; 1.0 was taken.",
    "Check that the samples are typical, and that this part of the network is alive.",
)
_register(
    "TQ622",
    12,
    "dead channels",
    "Channels of a layer are zero on every calibration sample, or all their weights are zero.",
    "They cost time and memory for nothing: prune them, or check the training.",
)
_register(
    "TQ623",
    12,
    "few calibration samples",
    "Ranges from few samples miss the values of rare inputs.",
    "Give at least 100 typical samples.",
)
_register(
    "TQ624",
    12,
    "weight scale was raised",
    "A channel's bias does not fit 32 bits at the scale of its weights, which are nearly zero.",
    "Usually harmless: the channel outputs its bias. Check for dead filters.",
)
_register(
    "TQ625",
    12,
    "choice made by the quantizer",
    "A requested method does not apply to a layer; the message says what was done instead.",
    "Nothing needs to be done; the message tells what would change it.",
)
_register(
    "TQ626",
    12,
    "integer samples for a float input",
    "The samples are integers and the model's input is float32: they were taken as the numbers "
    "that they are, without scaling.",
    "Scale pixels as in training, unless the model itself takes 0 to 255.",
)
