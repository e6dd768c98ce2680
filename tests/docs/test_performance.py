"""Tables of docs/performance.md that recorded figures give. RENEW=1 writes them anew."""

from __future__ import annotations

import os

from bench import beside
from test_readme import ROOT, replace_section

PAGE = ROOT / "docs" / "performance.md"


def test_layers_beside_cmsis_nn_are_the_recorded_ones() -> None:
    """`make bench ARGS=--record` with CMSIS_NN_DIR measures them."""
    found = beside.read()
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join(beside.kind_table(found))
    wanted = replace_section(text, "beside", table)
    if os.environ.get("RENEW"):
        PAGE.write_text(wanted, encoding="utf-8")
    else:
        assert text == wanted, "run: RENEW=1 python -m pytest tests/docs"
    assert {kind.core for kind in found} >= {"cortex-m0", "cortex-m4", "cortex-m7", "cortex-m55"}
    assert [k for k in found if k.worst > 1] == []
