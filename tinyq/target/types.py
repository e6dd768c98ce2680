"""Cores, microcontrollers and boards as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

ISAS = ("scalar", "dsp", "mve")


@dataclass(frozen=True)
class CycleTable:
    """Cycles per instruction class, for estimates only: memory stalls are not in it.

    A class that the core has no instruction for holds 0. ``load_next`` is a load that directly
    follows another; ``load_multiple_base`` + n * ``load_multiple_each`` is LDM, STM, PUSH and POP
    of n registers; ``vector`` is one Helium instruction. ``boards`` says in words how far estimates
    were from published measurements, empty where there are none to compare with.
    """

    source: str
    estimate: bool
    alu: float
    load: float
    load_next: float
    store: float
    load_multiple_base: float
    load_multiple_each: float
    multiply: float
    multiply_accumulate: float
    multiply_long: float
    simd: float
    divide: float
    branch_taken: float
    branch_not_taken: float
    call: float
    vector: float = 0.0
    boards: str = ""


@dataclass(frozen=True)
class PipelineKind:
    """How one kind of instruction is issued.

    It takes one of each of ``units`` for ``occupies`` cycles, and its result is there ``latency``
    cycles after its issue. ``early`` is how many cycles before that its operands (the address of a
    load or store, a shifted operand) must be there, ``late`` by how many its accumulator or the
    stored value may come after. ``alone`` is issued with nothing beside it, ``first`` with nothing
    before it in its cycle; nothing follows for ``busy`` cycles.
    """

    units: tuple[str, ...] = ()
    latency: int = 1
    occupies: int = 1
    early: int = 0
    late: int = 0
    alone: bool = False
    first: bool = False
    busy: int = 1


@dataclass(frozen=True)
class Pipeline:
    """A core that issues in order, up to ``width`` instructions a cycle.

    ``units`` are (name, number). Load and store multiple move ``words`` registers a cycle and take
    ``multiple`` cycles more. A taken branch costs ``taken`` cycles beside its issue, one that goes
    the rarer way ``mispredicted``.
    """

    source: str
    width: int
    words: int
    multiple: int
    taken: int
    mispredicted: int
    units: tuple[tuple[str, int], ...]
    kinds: Mapping[str, PipelineKind]

    def kind(self, name: str) -> PipelineKind:
        """The kind's rules, those of ``alu`` for a kind that the core does not tell apart."""
        return self.kinds.get(name, self.kinds["alu"])


@dataclass(frozen=True)
class Core:
    """A processor core with the instruction set that code for it may use.

    ``flags`` are the compiler flags of an integer build, ``float_flags`` those of a build that may
    use the FPU (empty where there is none); ``zig`` is zig's name of the processor in an integer
    build. ``dsp`` and ``mve`` say what the chosen ``isa`` offers, not what the silicon has.
    ``mul_cycles`` is the cost of MULS in cycles (1 or 32 on M0 and M0+).
    ``board`` names the emulated board that stands for this core. ``pipeline`` is there for cores
    whose cycles a table of instructions does not tell.
    """

    name: str
    title: str
    architecture: str
    isa: str
    isas: tuple[str, ...]
    flags: tuple[str, ...]
    float_flags: tuple[str, ...]
    zig: str
    long_multiply: bool
    hw_divide: bool
    unaligned: bool
    fpu: str
    mul_cycles: int
    timing: CycleTable
    board: str
    source: str
    default_isa: str
    default_mul_cycles: int
    pipeline: Pipeline | None = None

    @property
    def dsp(self) -> bool:
        """Whether the DSP extension (SMLAD, SSAT with shift, ...) may be used."""
        return self.isa in ("dsp", "mve")

    @property
    def mve(self) -> bool:
        """Whether integer Helium may be used."""
        return self.isa == "mve"

    @property
    def pairs(self) -> bool:
        """Whether it may issue a load and a multiplication in one cycle."""
        return self.pipeline is not None and self.pipeline.width > 1

    @property
    def peak_macs_per_cycle(self) -> float:
        """Multiply-accumulates of 8-bit values a cycle that nothing but memory could slow down.

        Sixteen products an instruction with Helium, two with the DSP extension, one without.
        """
        t = self.timing
        if self.mve:
            vector = self.pipeline.kind("vector_multiply").occupies if self.pipeline else t.vector
            return 16 / vector
        if self.dsp:
            return 2 / t.simd
        apart = t.multiply + t.alu
        return 1 / min(apart, t.multiply_accumulate or apart)

    @property
    def target(self) -> str:
        """The shortest target string that gives this core again."""
        text = self.name
        if self.isa != self.default_isa:
            text += f"+{self.isa}"
        if self.mul_cycles != self.default_mul_cycles:
            text += f"+mul{self.mul_cycles}"
        return text


@dataclass(frozen=True)
class Memory:
    """A region of the address space; ``kind`` is ``"flash"`` or ``"ram"``, sizes in bytes."""

    name: str
    kind: str
    base: int
    size: int
    source: str

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.base + self.size


@dataclass(frozen=True)
class Peripheral:
    """A device at an address, with the name of the driver that knows it.

    ``clock_hz`` is 0 where it does not matter; ``options`` are values for the driver (pins, baud).
    """

    driver: str
    base: int
    source: str
    clock_hz: int = 0
    options: tuple[tuple[str, int | str], ...] = ()


@dataclass(frozen=True)
class Mcu:
    """A microcontroller: a core, its memories (those used first come first) and its clock.

    ``counter`` is a timer at the core's clock, for cores without a cycle counter and SysTick.
    """

    name: str
    title: str
    core: str
    clock_hz: int
    memories: tuple[Memory, ...]
    source: str
    counter: Peripheral | None = None

    def memory(self, kind: str) -> Memory:
        """The first memory of ``kind``: the one that code (flash) or data (ram) is placed in."""
        return next(memory for memory in self.memories if memory.kind == kind)


@dataclass(frozen=True)
class RegisterStep:
    """One access of a set-up: ``what`` names register and effect, ``bits`` is its width.

    With ``wait`` the register is read until all those bits are set, with ``gone`` until none is.
    Else ``set`` is written, over the old value with the bits of ``clear`` taken out, or over 0 with
    ``write``.
    """

    what: str
    address: int
    bits: int = 32
    clear: int = 0
    set: int = 0
    wait: int = 0
    gone: int = 0
    write: bool = False


@dataclass(frozen=True)
class Console:
    """A board's UART. ``setup`` gives it clock and pins; without it only the address is known.

    ``clock_hz`` is what the UART divides, ``core_hz`` the core's clock, both after ``setup`` (0:
    unknown). ``verified`` says where the set-up has run.
    """

    driver: str
    base: int
    source: str
    clock_hz: int = 0
    core_hz: int = 0
    tx: str = ""
    rx: str = ""
    setup: tuple[RegisterStep, ...] = ()
    verified: str = ""

    @property
    def ready(self) -> bool:
        """Whether bare firmware can use it."""
        return bool(self.verified)


@dataclass(frozen=True)
class QemuMachine:
    """How QEMU runs a board: machine name, further arguments, and a timer to count with.

    Without a timer nothing is counted.
    """

    machine: str
    args: tuple[str, ...]
    timer: Peripheral | None = None


@dataclass(frozen=True)
class Flasher:
    """How firmware gets onto a board: the probe, and a command.

    {file} stands for the ELF, {bin} and {hex} for the images, {port} for the serial port.
    ``pyocd`` is pyOCD's name of the target, where pyOCD has it without a CMSIS pack.
    """

    probe: str
    command: tuple[str, ...]
    source: str
    pyocd: str = ""


@dataclass(frozen=True)
class Uf2:
    """The UF2 family that a board's USB drive takes."""

    family: int
    source: str


@dataclass(frozen=True)
class Board:
    """A board that carries one microcontroller, real or emulated.

    ``flash_offset`` is how many bytes of flash a loader on the board keeps for itself. ``start``
    says what, other than a reset, starts a program whose vector table is first in flash; it is
    empty where a reset does. ``boot`` names what bare firmware brings for a boot ROM, if anything:
    ``templates/export/bare/boot_<boot>.c.j2``.
    """

    name: str
    title: str
    mcu: Mcu
    source: str
    clock_hz: int
    console: Console | None = None
    qemu: QemuMachine | None = None
    flasher: Flasher | None = None
    flash_offset: int = 0
    start: str = ""
    uf2: Uf2 | None = None
    boot: str = ""

    @property
    def flash(self) -> Memory:
        """Where code and constants are placed: behind the board's loader, if it has one."""
        whole = self.mcu.memory("flash")
        return replace(
            whole, base=whole.base + self.flash_offset, size=whole.size - self.flash_offset
        )

    @property
    def ram(self) -> Memory:
        """Where variables, the arena and the stack are placed."""
        return self.mcu.memory("ram")
