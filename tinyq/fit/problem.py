"""The choice as a problem of integers: layers, their options, and what an assignment adds up to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

Choice = tuple[int, ...]
"""The number of the chosen option, for every layer."""


@dataclass(frozen=True)
class Option:
    """One way of storing a layer's weights.

    form: how the weights are stored, of :data:`tinyq.fit.FORMS`. error: what it adds to the
    squared error at the output, against int8 everywhere.
    constant_bytes: of flash, without code. code: key of the function it calls, whose bytes are
    paid once however many layers call it. cycles: instructions of one inference, and the waiting
    of a slow multiplier. arena_bytes: the arena if all other layers were int8.
    """

    form: str
    error: float
    constant_bytes: int
    code: str
    cycles: int
    arena_bytes: int


@dataclass(frozen=True)
class Layer:
    """A layer with weights, and its options."""

    name: str
    operator: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Budget:
    """Most bytes of flash and arena, and most cycles; None without limit."""

    flash: int | None = None
    ram: int | None = None
    cycles: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What an assignment adds up to."""

    error: float
    flash_bytes: int
    arena_bytes: int
    cycles: int

    def within(self, budget: Budget) -> bool:
        """Whether every limit is kept."""
        pairs = (
            (self.flash_bytes, budget.flash),
            (self.arena_bytes, budget.ram),
            (self.cycles, budget.cycles),
        )
        return all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True)
class Problem:
    """Layers to choose for, and what the rest of the network takes in any case.

    code_bytes: bytes of every function that an option calls. other_codes: those that layers without
    weights call too, and that are in ``other_flash`` already.
    """

    layers: tuple[Layer, ...]
    code_bytes: Mapping[str, int]
    other_flash: int = 0
    other_cycles: int = 0
    other_arena: int = 0
    other_codes: frozenset[str] = field(default_factory=frozenset)

    def chosen(self, choice: Sequence[int]) -> list[Option]:
        """The options of an assignment."""
        pairs = zip(self.layers, choice, strict=True)
        return [layer.options[k] for layer, k in pairs]

    def forms(self, choice: Sequence[int]) -> dict[str, str]:
        """The form of every layer's weights, by name."""
        options = self.chosen(choice)
        return {x.name: o.form for x, o in zip(self.layers, options, strict=True)}

    def predict(self, choice: Sequence[int]) -> Prediction:
        """Sums over the options; each function once; the largest arena."""
        options = self.chosen(choice)
        codes = {o.code for o in options} - self.other_codes
        return Prediction(
            error=sum(o.error for o in options),
            flash_bytes=self.other_flash
            + sum(o.constant_bytes for o in options)
            + sum(self.code_bytes[c] for c in codes),
            arena_bytes=max([self.other_arena, *(o.arena_bytes for o in options)]),
            cycles=self.other_cycles + sum(o.cycles for o in options),
        )

    def undominated(self, measured: bool = True) -> Problem:
        """Without options that another of the layer replaces in every assignment, no worse.

        That is one of no more error, cycles and arena whose constants, and its function where it
        is another one, take no more flash than the option's constants alone. Where errors are not
        ``measured``, only the first option is compared with, which adds none. What can be reached
        within any limits stays the same.
        """
        layers = []
        for layer in self.layers:
            others = layer.options if measured else layer.options[:1]
            kept = [o for o in layer.options if not self._replaced(o, layer.options, others)]
            layers.append(replace(layer, options=tuple(kept)))
        return replace(self, layers=tuple(layers))

    def _replaced(self, option: Option, order: Sequence[Option], others: Sequence[Option]) -> bool:
        """Whether one of ``others`` does; of two that replace each other the first one stays."""
        return any(
            self._replaces(other, option)
            and (order.index(other) < order.index(option) or not self._replaces(option, other))
            for other in others
            if other is not option
        )

    def _replaces(self, one: Option, other: Option) -> bool:
        free = one.code == other.code or one.code in self.other_codes
        flash = one.constant_bytes + (0 if free else self.code_bytes[one.code])
        return (
            one.error <= other.error
            and one.cycles <= other.cycles
            and one.arena_bytes <= other.arena_bytes
            and flash <= other.constant_bytes
        )

    def restricted(self, forms: Collection[str]) -> Problem:
        """The problem with options of these forms alone."""
        layers = [
            replace(layer, options=tuple(o for o in layer.options if o.form in forms))
            for layer in self.layers
        ]
        return replace(self, layers=tuple(layers))

    def scaled(self, factor: float) -> Problem:
        """The problem with all cycles multiplied."""
        layers = tuple(
            replace(
                layer,
                options=tuple(replace(o, cycles=round(o.cycles * factor)) for o in layer.options),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, other_cycles=round(self.other_cycles * factor))
