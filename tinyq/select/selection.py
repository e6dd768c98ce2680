"""Selection: every kernel of a node's operator is asked, the cheapest one for the goal is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import Graph, Node
from tinyq.ops.base import Kernel, KernelCall, Operator, width_of
from tinyq.ops.fixed_point import is_fixed_point
from tinyq.select.schedule import Candidate, Goal, Layer, Libraries, Schedule
from tinyq.target import Core

_LEAST_PRICE = 16
"""Instructions of one inference that a byte of flash is worth at least, for the balanced goal."""


Answers = dict[tuple[object, ...], tuple[Node, list[Candidate]]]
"""What kernels answered, by what they were asked; the node keeps the question's objects alive."""


def select(
    graph: Graph,
    core: Core,
    goal: Goal,
    forced: Mapping[str, str] | None = None,
    operators: Mapping[str, Operator] | None = None,
    libraries: Libraries | None = None,
    family: str = "",
    known: Answers | None = None,
) -> Schedule:
    """Choose a kernel for every node of an integer graph.

    ``forced`` maps a node's name to the name of the kernel it must use. ``operators`` replaces the
    registry. ``libraries`` lets kernels of a library of the user's be chosen, which are otherwise
    not asked. ``family`` restricts the layers with products to kernels that read weights by their
    codes, wherever there is one (``packed``), or that do without multiplications (``shift``).
    ``known`` keeps answers between selections for the same core, libraries and family. Raises one
    TinyqError with a diagnostic for every node that cannot be served: TQ206 where all kernels
    refuse, TQ207 where every kernel multiplies and none may, TQ303 where a forced kernel is unknown
    or refuses.
    """
    table = _registered() if operators is None else operators
    wanted = dict(forced or {})
    layers: list[Layer] = []
    problems = _unknown_nodes(graph, wanted)
    known = {} if known is None else known
    answers = {}
    for node in graph.nodes:
        key = _question(node)
        if key not in known:
            kernels = [k for k in table[node.op].kernels if _is_asked(k, node, libraries)]
            known[key] = node, [_ask(k, node, core, libraries) for k in kernels]
        asked = known[key][1]
        if table[node.op].macs(node) and node.name not in wanted:
            asked = _of_family(asked, core, family)
        answers[node] = asked
    price = _price_of_flash(answers.values())
    users = _users_of_code(answers.values())
    for node in graph.nodes:
        waiting = (core.mul_cycles - 1) * table[node.op].macs(node)
        candidates = _with_costs(answers[node], goal, price, waiting, users)
        allowed = [c for c in candidates if wanted.get(node.name, c.kernel) == c.kernel]
        accepted = _preferred([c for c in allowed if c.call is not None], libraries)
        if not accepted:
            problems.append(
                _without_products(node, table[node.op], candidates)
                if family == "shift" and node.name not in wanted
                else _refused(node, core, candidates, wanted.get(node.name))
            )
            continue
        best = min(accepted, key=lambda c: c.cost)
        assert best.call is not None
        layers.append(Layer(len(layers), node, best.call, candidates, table[node.op].macs(node)))
    if problems:
        raise TinyqError(problems)
    return Schedule(graph, core, goal, tuple(layers))


def _question(node: Node) -> tuple[object, ...]:
    """Equal for nodes that every kernel answers alike."""
    operands = tuple(None if v is None else id(v) if v.is_constant else v.type for v in node.inputs)
    return node.op, id(node.attrs), operands, tuple(v.type for v in node.outputs)


def _registered() -> Mapping[str, Operator]:
    from tinyq.ops import REGISTRY

    return REGISTRY.operators


def _is_asked(kernel: Kernel, node: Node, libraries: Libraries | None) -> bool:
    return width_of(node) in kernel.widths and (not kernel.library or libraries is not None)


def _ask(kernel: Kernel, node: Node, core: Core, libraries: Libraries | None) -> Candidate:
    if is_fixed_point(node) and not kernel.takes_fixed_point:
        return Candidate(kernel.name, None, "it does not round twice, as the oracle does here")
    answer = kernel.plan(node, core)
    if isinstance(answer, str):
        return Candidate(kernel.name, None, answer)
    if answer.library is not None and libraries is not None:
        refusal = libraries.refuses(answer.library)
        if refusal:
            return Candidate(kernel.name, None, refusal)
    return Candidate(kernel.name, answer)


def _of_family(candidates: list[Candidate], core: Core, family: str) -> list[Candidate]:
    """The candidates of a layer with products, those outside of the family refused."""
    packed = family == "packed" and any(_reads_codes(c, core) for c in candidates)

    def refusal(candidate: Candidate) -> str:
        if family == "shift" and candidate.call is not None and candidate.call.multiplies:
            return "it multiplies"
        if packed and not _reads_codes(candidate, core):
            return "the weights can be read by their codes"
        return ""

    return [
        Candidate(c.kernel, None, refusal(c)) if c.call is not None and refusal(c) else c
        for c in candidates
    ]


def _reads_codes(candidate: Candidate, core: Core) -> bool:
    call = candidate.call
    if call is None or not call.encoding:
        return False
    return call.multiplies or core.mul_cycles > 1 or call.encoding != "int8"


def _preferred(accepted: list[Candidate], libraries: Libraries | None) -> list[Candidate]:
    """The candidates among which the cost decides: the library's alone where it is preferred."""
    if libraries is None or not libraries.preferred:
        return accepted
    theirs = [c for c in accepted if c.call is not None and c.call.library is not None]
    return theirs or accepted


def _price_of_flash(answers: Iterable[list[Candidate]]) -> float:
    """Instructions for a byte: one percent of the network's time for one percent of its flash."""
    instructions = flash = 0
    for candidates in answers:
        calls = [c.call for c in candidates if c.call is not None]
        if calls:
            instructions += min(call.instructions for call in calls)
            flash += min(call.flash_bytes for call in calls)
    return max(_LEAST_PRICE, instructions / max(1, flash))


def _code_of(call: KernelCall) -> Hashable:
    """Equal for calls with the same inner functions, or the same function where there are none."""
    parts = [(core.template, core.params) for core in call.cores]
    key = (call.kernel, tuple(parts or [(call.template, call.params)]))
    try:
        hash(key)
    except TypeError:  # parameters that hold arrays
        return id(call)
    return key


def _users_of_code(answers: Iterable[list[Candidate]]) -> Counter[Hashable]:
    """How many layers could share each piece of code."""
    return Counter(
        _code_of(c.call) for candidates in answers for c in candidates if c.call is not None
    )


def _with_costs(
    candidates: list[Candidate],
    goal: Goal,
    price: float,
    waiting: int,
    users: Mapping[Hashable, int],
) -> tuple[Candidate, ...]:
    """Costs; ``waiting`` cycles are lost on multiplications, where the kernel has any.

    Each of the layers that could share code bears its part of it, unless size alone counts: that
    they will share it is an expectation.
    """

    def cost(call: KernelCall) -> float:
        if goal is Goal.SIZE:
            return call.flash_bytes
        flash = call.constant_bytes + call.code_bytes / users[_code_of(call)]
        time = call.instructions + (waiting if call.multiplies else 0)
        return time if goal is Goal.SPEED else time + price * flash

    return tuple(c if c.call is None else replace(c, cost=cost(c.call)) for c in candidates)


def _unknown_nodes(graph: Graph, forced: Mapping[str, str]) -> list[Diagnostic]:
    known = {node.name for node in graph.nodes}
    return [
        Diagnostic("TQ303", f"a kernel is given for '{name}', which is no node of the network")
        for name in sorted(set(forced) - known)
    ]


def _refused(
    node: Node, core: Core, candidates: tuple[Candidate, ...], wanted: str | None
) -> Diagnostic:
    reasons = "; ".join(f"{c.kernel}: {c.refusal}" for c in candidates if c.call is None)
    if wanted is not None:
        names = ", ".join(c.kernel for c in candidates if c.call is not None) or "none"
        found = next((c.refusal for c in candidates if c.kernel == wanted), "it does not exist")
        return Diagnostic(
            "TQ303",
            f"kernel '{wanted}' cannot be used: {found}",
            f"Kernels that accept this node on {core.target}: {names}",
            node.name,
            node.op,
        )
    found = f"no kernel for {core.target} ({reasons or 'the operator has none'})"
    return Diagnostic("TQ206", found, node=node.name, operator=node.op)


def _without_products(
    node: Node, operator: Operator, candidates: tuple[Candidate, ...]
) -> Diagnostic:
    names = {kernel.name for kernel in operator.kernels if kernel.without_products}
    reasons = "; ".join(f"{c.kernel}: {c.refusal}" for c in candidates if c.kernel in names)
    found = f"every kernel multiplies ({reasons or 'the operator has no other'})"
    return Diagnostic("TQ207", found, node=node.name, operator=node.op)
