"""Packages are what their ecosystems expect, and their golden samples pass wherever they build."""

from __future__ import annotations

import json
import re
import subprocess
import zlib
from pathlib import Path
from xml.etree import ElementTree

import export_models
import numpy as np
import onnx
import pytest
from builds import STRICT, STUBS, host_program, listed_by_cmake, run, yaml_keys

import tinyq
from tinyq.api import export, open_folder
from tinyq.export import FORMATS
from tinyq.verification.samples import random_samples

MODELS = {"small": export_models.small, "two_inputs": export_models.two_inputs}
WITHOUT_BOARD = [form for form in FORMATS if form != "bare"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("networks")
    for name, make in MODELS.items():
        onnx.save(make(), place / f"{name}.onnx")
        tinyq.compile(place / f"{name}.onnx", output=place / name, target="cortex-m4")
    return place


def crc_of(text: str) -> str:
    found = re.findall(r"crc 0x([0-9a-f]{8})\n", text)
    assert len(found) == 1, text
    return found[0]


def onnxruntime_crc(folder: Path, count: int) -> str:
    """CRC-32 of what onnxruntime computes for the golden inputs."""
    subject = open_folder(folder)
    samples = random_samples(subject.network.inputs, count, 0)
    crc = 0
    for k in range(count):
        named = {
            value.name: array[k].reshape(value.type.shape)
            for value, array in zip(subject.graph.inputs, samples.inputs, strict=True)
        }
        for output in subject.oracle.run(named):
            crc = zlib.crc32(np.ascontiguousarray(output).tobytes(), crc)
    return f"{crc:08x}"


@pytest.mark.parametrize("model", MODELS)
def test_make_builds_and_computes_what_onnxruntime_does(
    networks: Path, tmp_path: Path, model: str
) -> None:
    export(networks / model, "make", tmp_path / "out")
    text = run("make", f"CFLAGS=-O2 {' '.join(STRICT)}", "test", cwd=tmp_path / "out")
    assert text.endswith("PASS\n")
    assert crc_of(text) == onnxruntime_crc(networks / model, 3)
    assert (tmp_path / "out" / "build" / f"lib{model}.a").is_file()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["crc"] == crc_of(text)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_cmake_builds_and_passes(networks: Path, tmp_path: Path, compiler: str) -> None:
    export(networks / "small", "cmake", tmp_path)
    run("cmake", "-B", "build", f"-DCMAKE_C_COMPILER={compiler}",
        f"-DCMAKE_C_FLAGS={' '.join(STRICT)}", cwd=tmp_path)  # fmt: skip
    run("cmake", "--build", "build", cwd=tmp_path)
    assert "100% tests passed" in run("ctest", "--test-dir", "build", cwd=tmp_path)
    assert list((tmp_path / "build").rglob("libsmall.a"))


def test_cmake_package_is_a_part_of_another_project(networks: Path, tmp_path: Path) -> None:
    export(networks / "small", "cmake", tmp_path / "small")
    (tmp_path / "app.c").write_text('#include "small.h"\nint main(void) { return 0; }\n')
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app C)\nadd_subdirectory(small)\n"
        "add_executable(app app.c)\ntarget_link_libraries(app PRIVATE small)\n"
    )
    run("cmake", "-B", "build", cwd=tmp_path)
    run("cmake", "--build", "build", cwd=tmp_path)
    assert not list((tmp_path / "build").rglob("*model_test*.o"))


def test_a_wrong_weight_fails(networks: Path, tmp_path: Path) -> None:
    export(networks / "small", "make", tmp_path)
    data = tmp_path / "small" / "small_data.c"
    text = data.read_text()
    first = re.search(r"weights\w*\[\d+\][^=]*=\s*\{\s*(-?\d+)", text)
    assert first is not None
    data.write_text(text[: first.start(1)] + "99" + text[first.end(1) :])
    run("make", cwd=tmp_path)
    said = run("build/model_test", cwd=tmp_path, status=1)
    assert said.endswith("FAIL\n")
    assert re.search(r"sample \d output 0 element \d: got -?\d+, expected -?\d+\n", said)


# What the Arduino Library Specification requires of library.properties.
ARDUINO_FIELDS = (
    "name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url",
    "architectures",
)  # fmt: skip
ARDUINO_CATEGORIES = {
    "Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing",
    "Data Storage", "Data Processing", "Other",
}  # fmt: skip


@pytest.mark.qemu
def test_arduino_library_runs_its_sketch(networks: Path, tmp_path: Path) -> None:
    library = export(networks / "small", "arduino", tmp_path / "small")
    lines = (library / "library.properties").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines)
    assert all(fields[name] for name in ARDUINO_FIELDS)
    assert re.fullmatch(r"[A-Za-z0-9][\w .-]{0,62}", fields["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert fields["category"] in ARDUINO_CATEGORIES
    assert (library / "src" / fields["includes"]).is_file()
    sketch = library / "examples" / "ModelTest"
    assert (sketch / "ModelTest.ino").is_file()  # named as its folder
    bare = export(networks / "small", "bare", tmp_path / "bare", board="qemu-mps2-an386")
    machine = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft", "-O2", f"-I{library / 'src'}"]
    objects = []
    sources = [
        *(library / "src").glob("*.c"),
        *sketch.glob("*.c"),
        bare / "board/startup.c",
        bare / "board/port_semihosting.c",
    ]
    for source in sources:
        objects.append(tmp_path / f"{source.stem}.o")
        run("arm-none-eabi-gcc", "-std=c99", "-c", *machine, source, "-o", objects[-1],
            cwd=tmp_path)  # fmt: skip
    cpp = ["-x", "c++", "-include", "Arduino.h", f"-I{STUBS}", "-Wall", "-Wextra", "-Werror"]
    for source in (sketch / "ModelTest.ino", STUBS / "sketch_main.cpp"):
        objects.append(tmp_path / f"{source.stem}.o")
        run("arm-none-eabi-g++", "-c", *machine, "-fno-exceptions", "-fno-rtti", *cpp, source,
            "-o", objects[-1], cwd=tmp_path)  # fmt: skip
    run("arm-none-eabi-gcc", *machine, "-nostartfiles", "-Wl,-n", f"-T{bare / 'board' / 'link.ld'}",
        "-Wl,--no-warn-rwx-segments", *objects, "-o", "sketch.elf", cwd=tmp_path)  # fmt: skip
    text = run("qemu-system-arm", "-M", "mps2-an386", "-display", "none", "-monitor", "none",
               "-serial", "none", "-semihosting-config", "enable=on,target=native",
               "-kernel", "sketch.elf", cwd=tmp_path)  # fmt: skip
    assert text.endswith("PASS\n")


def test_platformio_library(networks: Path, tmp_path: Path) -> None:
    library = export(networks / "small", "platformio", tmp_path)
    described = json.loads((library / "library.json").read_text())
    # Required by PlatformIO's registry: name and version; the others by its library.json schema.
    assert re.fullmatch(r"[a-z0-9_.-]{1,100}", described["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", described["version"])
    assert isinstance(described["keywords"], list)
    assert described["authors"][0]["name"]
    assert described["frameworks"] == described["platforms"] == "*"
    assert (library / "src" / described["headers"]).is_file()
    (example,) = described["examples"]
    base = library / example["base"]
    assert all((base / name).is_file() for name in example["files"])
    project = (base / "platformio.ini").read_text()
    (link,) = re.findall(r"lib_deps = symlink://(.+)", project)
    assert (base / link).resolve() == library.resolve()
    sources = [*(library / "src").glob("*.c"), *(base / "src").glob("*.c")]
    assert host_program(tmp_path, sources, f"-I{library / 'src'}").endswith("PASS\n")
    for source in (library / "src").glob("*.c"):
        run("arm-none-eabi-gcc", "-std=c99", "-c", "-mcpu=cortex-m4", *STRICT, source, "-o",
            "x.o", cwd=tmp_path)  # fmt: skip


ZEPHYR = """
set(CONFIG_TINYQ_SMALL y)
function(zephyr_library_named name)
endfunction()
function(zephyr_include_directories)
endfunction()
function(zephyr_library_sources)
  foreach(source ${ARGV})
    message("file ${source}")
  endforeach()
endfunction()
"""


def test_zephyr_module(networks: Path, tmp_path: Path) -> None:
    module = export(networks / "small", "zephyr", tmp_path)
    described = yaml_keys((module / "zephyr" / "module.yml").read_text())
    # module.yml: `cmake` is the folder of a CMakeLists.txt, `kconfig` a file, from the root.
    assert (module / described["build.cmake"] / "CMakeLists.txt").is_file()
    kconfig = (module / described["build.kconfig"]).read_text()
    assert re.search(r"^config TINYQ_SMALL\n\tbool \".+\"\n\thelp\n\t  \S", kconfig, re.MULTILINE)
    listed = listed_by_cmake(module / "zephyr" / "CMakeLists.txt", ZEPHYR)
    assert {path.name for path in listed} == {p.name for p in (module / "small").glob("*.c")}
    assert all(path.is_file() for path in listed)
    sample = module / described["samples"] / "model_test"
    settings = dict(line.split("=") for line in (sample / "prj.conf").read_text().splitlines())
    assert settings["CONFIG_TINYQ_SMALL"] == "y"
    case = yaml_keys((sample / "sample.yaml").read_text())
    assert case["tests.sample.tinyq.small.model_test.harness"] == "console"
    cmake = (sample / "CMakeLists.txt").read_text()
    named = re.findall(r"src/\w+\.c", cmake)
    assert sorted(named) == sorted(f"src/{p.name}" for p in (sample / "src").glob("*.c"))
    assert (sample / "../..").resolve() == module.resolve()
    assert "ZEPHYR_EXTRA_MODULES ${CMAKE_CURRENT_SOURCE_DIR}/../.." in cmake
    sources = [*listed, *(sample / "src").glob("*.c")]
    flags = (f"-I{module / 'small'}", f"-I{STUBS}", "-Wno-format-security")
    assert host_program(tmp_path, sources, *flags).endswith("PASS\n")


def test_cmsis_pack(networks: Path, tmp_path: Path) -> None:
    folder = export(networks / "small", "cmsis-pack", tmp_path)
    (description,) = folder.glob("*.pdsc")
    root = ElementTree.parse(description).getroot()
    assert root.tag == "package"
    assert re.fullmatch(r"1\.\d+\.\d+", root.attrib["schemaVersion"])
    # The schema's sequence begins with these, and the file is called vendor.name.pdsc.
    assert [e.tag for e in root][:5] == ["vendor", "name", "description", "url", "releases"]
    assert description.name == f"{root.findtext('vendor')}.{root.findtext('name')}.pdsc"
    releases = root.findall("releases/release")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", r.attrib["version"]) for r in releases)
    conditions = {c.attrib["id"] for c in root.findall("conditions/condition")}
    components = root.findall("components/component")
    names = {c.attrib["Csub"] for c in components}
    assert names == {"small", "small test"}
    for component in components:
        assert {"Cclass", "Cgroup", "Csub", "Cversion"} <= component.attrib.keys()
        assert component.attrib["condition"] in conditions
    for required in root.iter("require"):
        assert required.attrib["Csub"] in names
    files = root.findall(".//file")
    for entry in files:
        path = folder / entry.attrib["name"]
        assert path.is_dir() if entry.attrib["category"] == "include" else path.is_file(), path
        assert entry.attrib["category"] in {"include", "header", "sourceC"}
    sources = [folder / e.attrib["name"] for e in files if e.attrib["category"] == "sourceC"]
    includes = [f"-I{folder / e.attrib['name']}" for e in files
                if e.attrib["category"] == "include"]  # fmt: skip
    assert host_program(tmp_path, sources, *includes).endswith("PASS\n")


ESP = """
function(idf_component_register)
  cmake_parse_arguments(ARG "" "" "SRCS;INCLUDE_DIRS" ${ARGN})
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  foreach(source ${ARG_SRCS})
    message("file ${source}")
  endforeach()
endfunction()
"""


def test_esp_idf_component(networks: Path, tmp_path: Path) -> None:
    component = export(networks / "small", "esp-idf", tmp_path)
    described = yaml_keys((component / "idf_component.yml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", described["version"])
    assert described["description"]
    assert described["dependencies.idf"].startswith(">=")
    sources = listed_by_cmake(component / "CMakeLists.txt", ESP)
    project = component / "examples" / "model_test"
    sources += listed_by_cmake(project / "main" / "CMakeLists.txt", ESP)
    assert all(path.is_file() for path in sources)
    text = (project / "CMakeLists.txt").read_text()
    assert "$ENV{IDF_PATH}/tools/cmake/project.cmake" in text
    assert (project / "../..").resolve() == component.resolve()
    flags = [f"-I{component / 'small'}", "-Wno-missing-prototypes"]
    said = host_program(tmp_path, [*sources, STUBS / "esp_main.c"], *flags)
    assert said.endswith("PASS\n")


@pytest.mark.parametrize("form", WITHOUT_BOARD)
def test_the_same_bytes_every_time(networks: Path, tmp_path: Path, form: str) -> None:
    for name in ("a", "b"):
        export(networks / "small", form, tmp_path / name)
    difference = subprocess.run(
        ["diff", "-r", str(tmp_path / "a"), str(tmp_path / "b")], check=False, capture_output=True
    )
    assert difference.stdout == b""
    assert (tmp_path / "a" / "README.md").is_file()
