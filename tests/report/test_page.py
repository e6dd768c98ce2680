"""The HTML report: what it says, and that a browser draws it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from qdq import Qdq
from typer.testing import CliRunner

import tinyq
from tinyq.cli import app

pytestmark = pytest.mark.qemu
RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
ODD_NAME = "conv $a_1$ <b>&amp;"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEASURE = """<script>
const boxes = [...document.querySelectorAll('section')].map(s => {
  const svg = s.querySelector('figure svg'), r = svg ? svg.getBoundingClientRect() : null;
  return [s.id, r && [r.x, r.y, r.width, r.height], svg ? svg.querySelectorAll('path').length : 0];
});
document.body.innerHTML = '<pre>' + JSON.stringify(boxes) + '</pre>';
</script>"""


def residual() -> onnx.ModelProto:
    """A residual block with weights of two levels, a mean and a dense layer."""
    rng = np.random.default_rng(3)
    g = Qdq()
    x = g.dq(g.input((1, 4, 8, 8), name="image"), 0.05, 3)
    y = x
    for k in range(2):
        w = g.weights(rng.choice([-64, 64], (4, 4, 3, 3)) if k else
                      rng.integers(-127, 128, (4, 4, 3, 3)), 0.01)  # fmt: skip
        y = g.qdq(g.op("Relu", g.op("Conv", y, w, pads=[1, 1, 1, 1])), 0.08, -128)
    y = g.qdq(g.op("Add", x, y), 0.1)
    y = g.op("Flatten", g.qdq(g.op("GlobalAveragePool", y), 0.02, -128))
    y = g.op("MatMul", y, g.weights(rng.integers(-127, 128, (4, 5)), 0.01))
    model = g.end(y, 0.05).model()
    next(n for n in model.graph.node if n.op_type == "Conv").name = ODD_NAME
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    onnx.save(residual(), place / "net.onnx")
    tinyq.compile(place / "net.onnx", output=place / "net", target="cortex-m4")
    return place / "net"


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """The page of a verification on labelled samples."""
    rng = np.random.default_rng(0)
    samples, path = folder.with_name("samples.npz"), folder.with_name("page.html")
    x = rng.integers(-128, 128, (6, 4, 8, 8)).astype(np.int8)
    np.savez(samples, x=x, y=np.zeros(6, np.int64))
    result = RUNNER.invoke(
        app,
        ["report", str(folder), "-o", str(path), "--samples", str(samples), "--clock", "100"],
    )
    assert result.exit_code == 0, result.output
    assert "EQUAL" in result.stdout
    return path


class Reader(HTMLParser):
    """Text, and every address that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loads += [given[k] for k in ("src", "data", "srcset") if k in given]
        if tag in ("link", "image", "use", "script", "iframe"):
            self.loads += [v for k, v in given.items() if k.endswith("href")] or [tag]
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("path", "use", "rect", "line"):
            return
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


def test_the_page_loads_nothing(written: Path) -> None:
    reader = read(written)
    outside = [a for a in reader.loads if not a.startswith("#")]
    assert not outside
    assert "@import" not in written.read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_verify_and_profile(folder: Path, written: Path) -> None:
    text = " ".join(" ".join(read(written).text).split())
    profiled: Any = RUNNER.invoke(app, ["profile", str(folder), "--clock", "100", "--json"])
    (found,) = json.loads(profiled.stdout)["profiles"]
    verified: Any = RUNNER.invoke(
        app, ["verify", str(folder), "--samples", str(folder.with_name("samples.npz")), "--json"]
    )
    accuracy = json.loads(verified.stdout)["accuracy"]
    for figure in (
        f"{found['instructions']:,}", f"{found['cycles']:,}", f"{found['flash_bytes']:,} B",
        f"{found['milliseconds']:.3g} ms at 100 MHz", f"{accuracy:.2%}",
        "Equal: onnxruntime, the integer reference and the C on qemu agree on all 30 output",
        "narrowest encoding", "binary", ODD_NAME,
    ):  # fmt: skip
        assert figure in text, figure
    for layer in found["layers"]:
        assert f"{layer['instructions']:,}" in text


def test_buffers_of_the_memory_chart_are_those_of_the_plan(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    buffers = manifest["buffers"]
    assert max(b["offset"] + b["bytes"] for b in buffers) == manifest["arena_bytes"]
    by_kind = {kind: [b for b in buffers if b["kind"] == kind] for kind in ("input", "output")}
    assert [(b["first"], b["bytes"]) for b in by_kind["input"]] == [(-1, 256)]
    assert [(b["last"], b["bytes"]) for b in by_kind["output"]] == [(len(manifest["layers"]), 5)]
    # The addition reads what the first convolution read, the input with its channels last.
    add = next(layer["index"] for layer in manifest["layers"] if layer["op"] == "add")
    shortcut = next(b for b in buffers if b["name"] == manifest["layers"][0]["output"])
    assert (shortcut["first"], shortcut["last"]) == (0, add)


def test_a_browser_draws_every_chart(written: Path, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not on the PATH")
    html = written.read_text(encoding="utf-8")
    (tmp_path / "measured.html").write_text(html.replace("</main>", f"</main>{MEASURE}"))
    dumped = browse(tmp_path / "measured.html", "--dump-dom", "--window-size=1250,4000")
    boxes = {name: (box, paths) for name, box, paths in json.loads(
        re.findall("<pre>(.*)</pre>", dumped)[0])}  # fmt: skip
    assert set(boxes) == {"network", "exactness", "time", "memory", "flash", "weights"}
    shot = tmp_path / "page.png"
    browse(written, f"--screenshot={shot}", "--window-size=1250,4000")
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    for name, (box, paths) in boxes.items():
        if name == "exactness":
            continue
        x, y, width, height = (round(v) for v in box)
        assert width > 300, name
        assert height > 60, name
        assert paths >= 5, name
        drawn = picture[y : y + height, x : x + width]
        coloured = np.ptp(drawn, axis=2) > 25
        assert 0.005 < coloured.mean() < 0.9, (name, coloured.mean())


def browse(page: Path, *options: str) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={page.with_name('profile')}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_network_that_differs_is_shown_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    data = tmp_path / "net" / "net_data.c"
    text = data.read_text()
    at = text.index("{", text.index("weights")) + 1
    first = re.search(r"-?[1-9]\d*", text[at:])
    assert first is not None
    changed = f"{text[: at + first.start()]}{-int(first[0])}{text[at + first.end() :]}"
    data.write_text(changed)
    page = tmp_path / "page.html"
    result = RUNNER.invoke(app, ["report", str(tmp_path / "net"), "-o", str(page), "--random", "3"])
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert 'class="verdict different"' in page.read_text()


def test_what_is_missing_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable = RUNNER.invoke(app, ["report", str(folder), "-o", str(tmp_path / "no" / "x.html")])
    assert unwritable.exit_code == 9
    assert "TQ703" in unwritable.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = RUNNER.invoke(app, ["report", str(folder), "-o", str(tmp_path / "x.html")])
    assert result.exit_code == 12
    assert "TQ610" in result.stderr
    assert "tinyq[plot]" in result.stderr
