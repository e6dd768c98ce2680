"""What a verification found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tinyq.verification.compare import Comparison


@dataclass(frozen=True)
class LayerReport:
    """One layer over all samples.

    ``different`` counts elements at which the emulated C differs from the reference,
    ``oracle_different`` those at which the reference differs from the oracle's intermediate tensor
    (None where the oracle has none). ``instructions`` is the first sample's count.
    """

    index: int
    name: str
    op: str
    kernel: str
    elements: int
    macs: int
    different: int | None
    oracle_different: int | None
    instructions: int | None


@dataclass(frozen=True)
class DeviceReport:
    """A run on a board; ``port`` and ``baud`` are those it was reached by.

    ``cycles`` and ``least_cycles`` are the most and the fewest of an inference as ``counter``
    counted them, None without one; ``milliseconds`` is ``cycles`` at ``core_hz``, the core's clock
    during the run (0 and None where the firmware does not know it); ``board_hz`` is the highest
    clock of the board that was named, else 0. The golden samples are those
    of the export; ``golden_crc`` is of what the board computed. ``retries`` counts requests that
    were repeated, ``reconnects`` how often the port went away and came back.
    """

    port: str
    baud: int
    cycles: int | None
    least_cycles: int | None
    counter: str
    core_hz: int
    milliseconds: float | None
    board_hz: int
    golden_samples: int
    golden_crc: str
    golden_passed: bool
    retries: int
    reconnects: int


@dataclass(frozen=True)
class RunReport:
    """One emulator's run: its verdict, the most instructions of one inference, its stack in bytes.

    ``seconds`` is the time of the emulated run. Fields that an emulator cannot measure are None.
    """

    emulator: str
    equal: bool
    instructions_per_inference: int | None
    stack_bytes: int | None
    seconds: float


@dataclass(frozen=True)
class StepsReport:
    """Single layers on the oracle's own inputs (:mod:`tinyq.verification.stepwise`).

    ``layers`` were compared, ``layers_different`` of them differ somewhere. ``unexplained`` of the
    ``different`` elements are off by more than one, or where float32 cannot err so far, in the
    layers ``unexplained_layers``.
    """

    layers: int
    compared: int
    layers_different: int
    different: int
    largest: int
    unexplained: int
    unexplained_layers: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every difference is explained, and something was compared."""
        return self.compared > 0 and not self.unexplained


@dataclass(frozen=True)
class VerifyReport:
    """The verdict and every figure of one verification; sizes in bytes.

    ``equal``: the oracle, the integer reference and the C agree on every output integer of every
    sample (and, with ``layers``, on every layer). With int16 activations: reference and C agree on
    every integer, and ``steps``, else None, on every layer. ``comparisons`` are the pairs that make
    the verdict; ``gaps`` compare the oracle with the same framework in other settings, as
    information.
    ``flash_bytes`` is code and constants of the network alone; ``ram_bytes`` is arena, variables
    and measured stack. Fields that an emulator cannot measure are None. Of several emulators
    (``emulator`` names them with commas, ``runs`` has each) outputs are counted over all, and
    instructions and stack are those of the first that runs firmware. ``board`` is the one whose
    memory map the firmware had; ``notes`` say what was used in place of what is missing.
    """

    equal: bool
    target: str
    emulator: str
    oracle: str
    samples: int
    sample_source: str
    outputs_compared: int
    outputs_different: int
    max_difference: int
    accuracy: float | None
    oracle_accuracy: float | None
    instructions_per_inference: int | None
    flash_bytes: int | None
    code_bytes: int | None
    constant_bytes: int | None
    arena_bytes: int
    stack_bytes: int | None
    stack_bound_bytes: int | None
    ram_bytes: int | None
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Comparison, ...]
    layers: tuple[LayerReport, ...]
    host: str
    seconds: float
    device: DeviceReport | None = None
    compiler: str = ""
    board: str = ""
    runs: tuple[RunReport, ...] = ()
    notes: tuple[str, ...] = ()
    steps: StepsReport | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object with every field."""
        return dataclasses.asdict(self)
