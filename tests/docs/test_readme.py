"""The README's generated parts are up to date. RENEW=1 writes them anew (see also test_links)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from bench.measure import REFERENCE, read_recorded
from typer.testing import CliRunner

from tinyq.cli import app
from tinyq.errors import CATALOG

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def replace_section(text: str, name: str, body: str) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = text.split(start)
    return f"{before}{start}{body}{end}{rest.split(end)[1]}"


def test_operators_are_those_of_the_registry() -> None:
    text = README.read_text(encoding="utf-8")
    table = CliRunner().invoke(app, ["ops", "--markdown"]).stdout
    wanted = replace_section(text, "operators", table)
    if os.environ.get("RENEW"):
        README.write_text(wanted, encoding="utf-8")
        return
    assert text == wanted, "run: RENEW=1 python -m pytest tests/docs"


NETWORKS = {
    "kws": "keyword spotting (DS-CNN)",
    "vww": "person detection (MobileNetV1 0.25)",
    "ic": "image classification (ResNet-8)",
    "ad": "anomaly detection (autoencoder)",
    "sww": "wake word (1-D DS-CNN)",
}


def test_figures_are_the_recorded_ones() -> None:
    """`make bench ARGS=--record` measures them, `make check` holds them."""
    recorded = read_recorded()["figures"]
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    kinds = ("instructions", "flash", "ram")
    head = "".join(f" {kind.replace('ram', 'RAM')} | (TFLM) |" for kind in kinds)
    lines = [f"| network |{head}", "|---" * 7 + "|"]
    for name, title in NETWORKS.items():
        ours = recorded[f"{name} {reference['core']} balanced"]
        theirs = reference["networks"][name]["tflm"]
        cells = "".join(f" {ours[kind]:,} | {theirs[kind]:,} |" for kind in kinds)
        lines.append(f"| {title} |{cells}")
    text = README.read_text(encoding="utf-8")
    wanted = replace_section(text, "measured", "\n".join(lines) + "\n")
    if os.environ.get("RENEW"):
        README.write_text(wanted, encoding="utf-8")
        return
    assert text == wanted, "run: RENEW=1 python -m pytest tests/docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_exit_status_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert {info.exit_status for info in CATALOG.values()} <= rows


def test_every_command_and_option_of_the_docs_exists() -> None:
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})
    pages = (
        ROOT / "docs" / "cli.md",
        ROOT / "docs" / "exporting.md",
        ROOT / "docs" / "device.md",
        README,
    )
    page = "".join(path.read_text(encoding="utf-8") for path in pages)
    listed = runner.invoke(app, ["--help"]).stdout
    for verb in re.findall(r"`tinyq (\w+)", page):
        assert re.search(rf"\b{verb}\b", listed), verb
    helps = "".join(
        runner.invoke(app, [verb, "--help"]).stdout
        for verb in (
            "compile",
            "verify",
            "profile",
            "export",
            "flash",
            "quantize",
            "sensitivity",
            "inspect",
            "ops",
        )
    )
    for option in set(re.findall(r"`(--[a-z-]+)", page)) - {"--install-completion", "--help"}:
        assert option in helps, option
