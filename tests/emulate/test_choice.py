"""What runs a network when programs are missing: the wheels', and never silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_network import write_fake

from tinyq.build import arm
from tinyq.emulate import RunOptions, choice, choose, run_network, tools, unicorn
from tinyq.errors import TinyqError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither QEMU nor GCC."""
    for name in ("TINYQ_QEMU", "TINYQ_ARM_GCC"):
        monkeypatch.delenv(name, raising=False)
    arm.probe.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    yield
    arm.probe.cache_clear()


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheels, too."""
    monkeypatch.setattr(unicorn, "installed", lambda: False)
    for module in (arm, choice):
        monkeypatch.setattr(module, "find_zig", lambda: None)


@pytest.mark.qemu
def test_qemu_and_gcc_come_first() -> None:
    assert choose() == choice.Choice(("qemu",), "gcc")


@pytest.mark.usefixtures("bare")
def test_wheels_stand_in_and_say_so(tmp_path: Path) -> None:
    found = choose(core="cortex-m4")
    assert (found.emulators, found.toolchain) == (("unicorn",), "zig")
    assert "qemu-system-arm is not installed: unicorn ran the code" in found.notes
    assert "arm-none-eabi-gcc is not installed: zig compiled the code" in found.notes
    samples = [np.zeros((1, 8), np.int8), np.zeros((1, 4), np.int8)]
    run = run_network(write_fake(tmp_path), samples)
    assert (run.trace.emulator, run.artifact.toolchain) == ("unicorn", "zig")
    assert run.notes == found.notes


@pytest.mark.usefixtures("bare")
def test_what_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    samples = [np.zeros((1, 8), np.int8), np.zeros((1, 4), np.int8)]
    for options, code in (
        (RunOptions(emulator="qemu"), "TQ403"),
        (RunOptions(emulator="unicorn", toolchain="gcc"), "TQ401"),
        (RunOptions(emulator="unicorn", toolchain="clang"), "TQ401"),
    ):
        with pytest.raises(TinyqError, match=code):
            run_network(write_fake(tmp_path), samples, options)
    with pytest.raises(TinyqError, match="TQ409") as caught:
        choose(core="cortex-m55")
    assert "apt install qemu-system-arm" in str(caught.value)


@pytest.mark.usefixtures("bare")
def test_nothing_installed_is_one_error_with_both_remedies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent(monkeypatch)
    with pytest.raises(TinyqError) as caught:
        choose(core="cortex-m4")
    assert [d.code for d in caught.value.diagnostics] == ["TQ403", "TQ401"]
    for diagnostic in caught.value.diagnostics:
        remedy = diagnostic.remedy or diagnostic.info.remedy
        assert 0 <= remedy.index("pip install 'tinyq[emulator]'") < remedy.index("apt install")
    assert not any(tool.found for tool in tools())


@pytest.mark.qemu
def test_tools_that_are_installed_are_found() -> None:
    found = {tool.name: tool for tool in tools()}
    assert {"qemu", "unicorn", "gcc", "clang", "zig"} <= set(found)
    assert "qemu-system-arm" in found["qemu"].found
    assert found["zig"].found.startswith("zig ")
    assert found["unicorn"].found.startswith("unicorn 2.")
    assert {tool.kind for tool in found.values()} == {"emulator", "compiler"}


@pytest.mark.parametrize(
    ("emulator", "toolchain", "found"),
    [
        ("bochs", "", "unknown emulator 'bochs'"),
        ("qemu,qemu", "", "Name each emulator once"),
        ("qemu,", "", "unknown emulator ''"),
        ("", "icc", "gcc, clang, zig"),
        ("host", "gcc", "TINYQ_CC"),
    ],
)
def test_unknown_names(emulator: str, toolchain: str, found: str) -> None:
    with pytest.raises(TinyqError, match="TQ303") as caught:
        choose(emulator, toolchain)
    assert found in str(caught.value)


@pytest.mark.parametrize("home", ["", "a file"])
def test_zig_without_a_place_for_its_cache(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home:
        (tmp_path / home).touch()
        monkeypatch.setenv("HOME", str(tmp_path / home))
    samples = [np.zeros((1, 8), np.int8), np.zeros((1, 4), np.int8)]
    options = RunOptions(emulator="unicorn", toolchain="zig")
    with pytest.raises(TinyqError, match="TQ703") as caught:
        run_network(write_fake(tmp_path / "net"), samples, options)
    assert "ZIG_GLOBAL_CACHE_DIR" in str(caught.value)
