"""Float networks by the command line: quantizing, compiling at once, sensitivity, bad input."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ptq.ptq_models import Builder
from typer.testing import CliRunner, Result

import tinyq
from tinyq.cli import app
from tinyq.errors import CATALOG
from tinyq.ptq import PtqConfig

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 3, 8, 8)).astype(np.float32)


def float_model() -> onnx.ModelProto:
    """Two convolutions, the mean and a dense layer to 4 classes; x [N, 3, 8, 8]."""
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 6, strides=[2, 2]))
    y = b.op("Relu", b.conv(y, 6, 8))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Gemm", y, b.weight(4, 8, gain=3.0), b.const(np.zeros(4)), transB=1),
                   ["n", 3, 8, 8])  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with float.onnx and c.npz (`x`, `y`)."""
    onnx.save(float_model(), tmp_path / "float.onnx")
    np.savez(tmp_path / "c.npz", x=X, y=np.arange(40) % 4)
    return tmp_path


def invoke(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, [str(a) for a in arguments])


def succeed(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def test_compile_quantizes_first(place: Path) -> None:
    """One step gives what two do, and verify works on the folder's own model."""
    net, model = place / "net", place / "float.onnx"
    text = succeed("compile", model, "--calib", place / "c.npz", "-t", "cortex-m4", "-o", net)
    assert "SQNR" in text
    assert "conv2d" in text
    found = json.loads(succeed("verify", net, "--random", "3", "--json"))
    assert (found["equal"], found["emulator"]) == (True, "qemu")
    succeed("quantize", model, "--calib", place / "c.npz", "-o", place / "q.onnx", "-q")
    kept = json.loads((net / "manifest.json").read_text())["model"]
    assert (net / kept).read_bytes() == (place / "q.onnx").read_bytes()


def test_compile_json_has_the_quality(place: Path) -> None:
    found = json.loads(
        succeed("compile", place / "float.onnx", "--calib", place / "c.npz", "-t", "cortex-m4",
                "-o", place / "n", "--weights", "int4", "--round", "adaround", "--json")
    )  # fmt: skip
    assert found["macs"] > 0
    assert [x["weight_bits"] for x in found["quantization"]["layers"]] == [8, 4, 0, 8]


def test_compile_by_the_api(place: Path) -> None:
    compiled = tinyq.compile(
        place / "float.onnx", output=place / "net", target="cortex-m0", calib=place / "c.npz",
        quantization=PtqConfig(calibrator="max"),
    )  # fmt: skip
    assert compiled.quantization
    assert compiled.quantization.calibrator == "max"
    assert compiled.quantization.output.accuracy_float is not None
    assert (place / "net" / compiled.program.manifest["model"]).is_file()


@pytest.mark.parametrize("verb", ["compile", "inspect"])
def test_a_float_model_is_one_error_with_both_ways(place: Path, verb: str) -> None:
    target = ["-t", "cortex-m4"] if verb == "compile" else []
    result = invoke(verb, place / "float.onnx", *target, "--json")
    assert result.exit_code == 4
    (found,) = json.loads(result.stdout)["errors"]
    assert found["code"] == "TQ202"
    assert "tinyq compile" in found["remedy"]
    assert "--calib DATA" in found["remedy"]
    assert "tinyq quantize" in found["remedy"]


def test_report_files(place: Path) -> None:
    reports = [place / "r.json", place / "r.png"]
    options = [part for path in reports for part in ("--report", str(path))]
    succeed("quantize", place / "float.onnx", "--calib", place / "c.npz", *options, "-q",
            "--weights", "int4")  # fmt: skip
    layers = json.loads(reports[0].read_text())["layers"]
    assert sum(layers[1]["weight_levels"]) == 8 * 6 * 3 * 3
    assert [len(x["weight_levels"]) for x in layers] == [255, 15, 0, 255]
    assert png_size(reports[1])[1] > 100 * len(layers)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_sensitivity_ranks_and_draws(place: Path) -> None:
    arguments = ["sensitivity", place / "float.onnx", "--calib", place / "c.npz"]
    found = json.loads(succeed(*arguments, "--plot", place / "s.png", "--json"))
    errors = [layer["only"]["rms_error"] for layer in found["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert all(layer["all_but"]["accuracy_float"] is not None for layer in found["layers"])
    assert min(png_size(place / "s.png")) > 100
    assert succeed(*arguments, "--quiet") == ""
    assert "all but this layer" in succeed(*arguments)


def test_keep_accuracy_raises_layers(place: Path) -> None:
    arguments = ["quantize", place / "float.onnx", "--calib", place / "c.npz", "--weights", "int4"]
    found = json.loads(succeed(*arguments, "--keep-accuracy", "0%", "--json"))
    steps = found["search"]["steps"]
    assert found["search"]["loss"] == min(step["loss"] for step in steps)
    assert found["search"]["reached"] == (found["search"]["loss"] <= 0)
    assert "The bound was" in succeed(*arguments, "--keep-accuracy", "50%")


def test_float_layers_are_refused_by_the_compiler(place: Path) -> None:
    """A bound that integers do not reach leaves float layers; the compiler names each."""
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 4))
    onnx.save(b.model(b.conv(y, 4, 2), ["n", 3, 8, 8]), place / "image.onnx")
    output = place / "partly.onnx"
    found = json.loads(
        succeed("quantize", place / "image.onnx", "--calib", place / "c.npz", "-o", output,
                "--keep-accuracy", "0", "--allow-float", "--target", "cortex-m4", "--json")
    )  # fmt: skip
    raised = [name for name, to in found["search"]["raised"] if to == "float"]
    assert raised
    result = invoke("compile", output, "-t", "cortex-m4", "--json")
    assert result.exit_code == 4
    (found,) = json.loads(result.stdout)["errors"]
    assert found["code"] == "TQ202"
    assert all(name in found["found"] for name in raised)
    assert "--allow-float" in found["remedy"]


IMAGES = {"zebra/1.png": 1, "zebra/2.png": 1, "ant/1.png": 0, "ant/3.png": 0}


@pytest.fixture
def images(place: Path) -> Path:
    from PIL import Image

    for name in IMAGES:
        path = place / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (10, 10, 3)).astype(np.uint8)).save(path)
    return place / "images"


def test_labels_of_images(place: Path, images: Path) -> None:
    (place / "labels.csv").write_text(
        "file,class\n" + "".join(f"{name},{c}\n" for name, c in IMAGES.items())
    )
    np.save(place / "y.npy", [IMAGES[name] for name in sorted(IMAGES)])
    accuracies = set()
    for labels in ("subfolders", place / "labels.csv", place / "y.npy"):
        found = json.loads(
            succeed("quantize", place / "float.onnx", "--calib", images, "--labels", labels,
                    "--mean", "0.5,0.4,0.5", "--std", "0.25", "--size", "8x8", "--json")
        )  # fmt: skip
        assert found["samples"] == 4
        accuracies.add(found["output"]["accuracy_float"])
    assert len(accuracies) == 1
    assert accuracies <= {0.0, 0.25, 0.5, 0.75, 1.0}


def _csv(text: str) -> Callable[[Path], list[str]]:
    def write(place: Path) -> list[str]:
        (place / "l.csv").write_text(text)
        return ["--calib", "images", "--labels", "l.csv"]

    return write


def _npz(**arrays: Any) -> Callable[[Path], list[str]]:
    def write(place: Path) -> list[str]:
        np.savez(place / "d.npz", **arrays)
        return ["--calib", "d.npz"]

    return write


def _given(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda place: list(arguments)


def _loose(place: Path) -> list[str]:
    (place / "images" / "ant" / "1.png").rename(place / "images" / "loose.png")
    return ["--calib", "images", "--labels", "subfolders"]


NAN = X.copy()
NAN[3, 0, 0, 0] = np.nan
BAD = {
    "missing data": (_given("--calib", "nothing.npz"), "TQ605", "no such file"),
    "empty data": (_npz(x=X[:0]), "TQ605", "no samples"),
    "other array": (_npz(z=X), "TQ605", "not 'x'"),
    "layout": (_npz(x=X.transpose(0, 2, 3, 1)), "TQ606", "--layout nhwc"),
    "shape": (_npz(x=X[:, :, :4]), "TQ606", "[40, 3, 4, 8]"),
    "one sample without its dimension": (_npz(x=X[0]), "TQ606", "leading dimension"),
    "text": (_npz(x=np.array(["a"])), "TQ606", "dtype"),
    "NaN": (_npz(x=NAN), "TQ604", "sample 3"),
    "labels too few": (_npz(x=X, y=np.arange(3)), "TQ606", "3 labels for 40"),
    "labels not integers": (_npz(x=X, y=np.full(40, 0.5)), "TQ606", "one integer class"),
    "csv row": (_csv("ant/1.png,0\nant/3.png,ant\n"), "TQ605", "row 2"),
    "csv without a file": (_csv("ant/1.png,0\n"), "TQ606", "3 of 4 files have no label"),
    "csv missing": (_given("--calib", "images", "--labels", "no.csv"), "TQ605", "no.csv"),
    "labels of an array": (_given("--calib", "c.npz", "--labels", "l.csv"), "TQ605", "do not go"),
    "loose image": (_loose, "TQ606", "in no subfolder"),
    "labels without samples": (_given("--labels", "y.npy"), "TQ607", "without --calib"),
    "mean": (_given("--calib", "images", "--mean", "0.5;0.5"), "TQ607", "--mean 0.5;0.5"),
    "channels": (_given("--calib", "images", "--mean", "0.5,0.5"), "TQ607", "3 channels"),
    "std": (_given("--calib", "images", "--std", "0"), "TQ607", "above 0"),
    "size": (_given("--calib", "images", "--size", "8"), "TQ607", "96x96"),
    "other size": (_given("--calib", "images", "--size", "9x9"), "TQ606", "(8, 8)"),
    "bound": (_given("--calib", "c.npz", "--keep-accuracy", "half"), "TQ607", "0.5%"),
    "bound above one": (_given("--calib", "c.npz", "--keep-accuracy", "120%"), "TQ607", "120%"),
    "bound without samples": (_given("--keep-accuracy", "1%"), "TQ605", "needs samples"),
    "bound and all": (
        _given("--calib", "c.npz", "--keep-accuracy", "1%", "--calibrator", "all"), "TQ607", "all",
    ),
    "float without bound": (_given("--calib", "c.npz", "--allow-float"), "TQ607", "may be lost"),
    "float without target": (
        _given("--calib", "c.npz", "--allow-float", "--keep-accuracy", "1%"), "TQ607", "--target",
    ),
    "float without FPU": (
        _given("--calib", "c.npz", "--allow-float", "--keep-accuracy", "1%", "-t", "cortex-m0"),
        "TQ607", "no FPU",
    ),
    "shape of no input": (_given("--calib", "c.npz", "--shape", "z=1,3"), "TQ107", "the inputs"),
    "shape of another rank": (_given("--calib", "c.npz", "--shape", "x=1,3"), "TQ107", "4 dim"),
    "report": (_given("--calib", "c.npz", "--report", "r.pdf"), "TQ607", "r.pdf"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "code", "said"), BAD.values(), ids=BAD)
def test_bad_input(
    make: Callable[[Path], list[str]], code: str, said: str, place: Path, images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    arguments = make(place)
    before = sorted(place.rglob("*"))
    result = invoke("quantize", "float.onnx", *arguments)
    assert result.exit_code == CATALOG[code].exit_status
    assert code in result.stderr
    assert said in " ".join(result.stderr.split())
    assert not result.stdout
    assert sorted(place.rglob("*")) == before


def _log(b: Builder) -> str:
    return str(b.op("Log", b.op("Einsum", b.conv("x", 3, 4), equation="nchw->nchw")))


def _root(b: Builder) -> str:
    return str(b.op("Sqrt", b.conv("x", 3, 4)))


def _infinite(b: Builder) -> str:
    weight = b.rng.normal(size=(4, 3, 3, 3))
    weight[1, 1, 1, 1] = np.inf
    return str(b.op("Conv", "x", b.const(weight)))


BAD_NETWORKS = {
    "unknown operators": (_log, [None, 3, 8, 8], "TQ601", "Einsum"),
    "inner values": (_root, [None, 3, 8, 8], "TQ604", "becomes NaN"),
    "weights": (_infinite, [None, 3, 8, 8], "TQ603", "1 of 108 values"),
    "dynamic": (lambda b: b.conv("x", 3, 4), [None, 3, "h", "w"], "TQ106", "--shape"),
}


@pytest.mark.parametrize("verb", ["quantize", "compile", "sensitivity"])
@pytest.mark.parametrize(
    ("build", "shape", "code", "said"), BAD_NETWORKS.values(), ids=BAD_NETWORKS
)
def test_bad_networks(
    build: Callable[[Builder], str], shape: list[Any], code: str, said: str, verb: str, place: Path
) -> None:
    b = Builder()
    onnx.save(b.model(build(b), shape), place / "bad.onnx")
    target = ["-t", "cortex-m4"] if verb == "compile" else []
    result = invoke(verb, place / "bad.onnx", "--calib", place / "c.npz", *target)
    assert result.exit_code == CATALOG[code].exit_status
    assert code in result.stderr
    assert said in " ".join(result.stderr.split())


def test_dynamic_shapes_can_be_fixed(place: Path) -> None:
    b = Builder()
    onnx.save(b.model(b.conv("x", 3, 4), ["n", 3, "h", "w"]), place / "dynamic.onnx")
    shape = ["--shape", "x=1,3,8,8"]
    for verb in (["sensitivity"], ["quantize"], ["compile", "-t", "cortex-m4", "-o", place / "n"]):
        succeed(*verb, place / "dynamic.onnx", "--calib", place / "c.npz", *shape, "-q")
    succeed("verify", place / "n", "--emulator", "host", "--random", "2", "-q")


def test_a_tflite_file_is_not_taken(place: Path) -> None:
    (place / "float.tflite").write_bytes(b"any")
    result = invoke("quantize", place / "float.tflite", "--calib", place / "c.npz")
    assert result.exit_code == CATALOG["TQ102"].exit_status
    assert "to ONNX" in result.stderr


def test_what_cannot_be_quantized_is_refused_by_both_verbs(place: Path) -> None:
    succeed("quantize", place / "float.onnx", "--calib", place / "c.npz", "-o", place / "done.onnx")
    for verb in (["quantize"], ["compile", "-t", "cortex-m4"]):
        result = invoke(*verb, place / "done.onnx", "--calib", place / "c.npz")
        assert result.exit_code == 12
        assert "TQ602" in result.stderr


def test_choices_are_stated(place: Path) -> None:
    """A dead channel, a constant tensor and few samples are said, and the model is written."""
    b = Builder()
    dead = b.rng.normal(0, 1, (6, 3, 3, 3))
    dead[2] = 0
    y = b.op("Relu", b.op("Conv", "x", b.const(dead), b.const(np.r_[0.1, 0.1, 0, 0.1, 0.1, 0.1])))
    zero = b.op("Relu", b.op("Sub", b.op("Sigmoid", y), b.const(2.0)))
    onnx.save(b.model([y, zero], ["n", 3, 8, 8]), place / "odd.onnx")
    np.savez(place / "few.npz", x=X[:4])
    text = succeed("quantize", place / "odd.onnx", "--calib", place / "few.npz")
    for code in ("TQ621", "TQ622", "TQ623"):
        assert code in text
    assert "Conv 'conv_0': 1 of 6 channels" in text
    assert (place / "odd.int8.onnx").is_file()
    np.savez(place / "pixels.npz", x=RNG.integers(0, 256, X.shape).astype(np.uint8))
    pixels = succeed("quantize", place / "float.onnx", "--calib", place / "pixels.npz")
    assert "TQ626" in pixels
    assert "uint8 samples" in pixels
    assert "TQ620" in succeed("quantize", place / "float.onnx")


def test_dynamic_quantization_to_verified_c(place: Path) -> None:
    """The written model has an input range, compiles and verifies; the error is reported."""
    target, net = place / "dynamic.onnx", place / "net"
    found = json.loads(
        succeed("quantize", place / "float.onnx", "--dynamic", "--calib", place / "c.npz", "-o",
                target, "--json")
    )  # fmt: skip
    assert found["quality"]["sqnr_db"] > 25
    assert {n.op_type for n in onnx.load(target).graph.node} >= {"ConvInteger", "MatMulInteger"}
    succeed("compile", target, "-t", "cortex-m4", "-o", net, "--quiet")
    report = tinyq.verify(net, tinyq_options(place / "c.npz"))
    assert report.equal
    assert [o["name"].endswith("_scale") for o in manifest_of(net)["outputs"]] == [False, True]


def tinyq_options(samples: Path) -> Any:
    from tinyq.verification.verify import VerifyOptions

    return VerifyOptions(samples=samples, emulator="host")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_softmax_of_a_dynamic_model_is_static(tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Relu", b.op("Gemm", "x", b.weight(8, 12, gain=3.0), b.const(np.zeros(8)), transB=1))
    y = b.op("Softmax", b.op("Gemm", y, b.weight(4, 8, gain=3.0), b.const(np.zeros(4)), transB=1))
    onnx.save(b.model(y, ["n", 12]), tmp_path / "float.onnx")
    np.save(tmp_path / "c.npy", RNG.normal(size=(30, 12)).astype(np.float32))
    arguments = ["--dynamic", "--calib", tmp_path / "c.npy", "-o", tmp_path / "d.onnx"]
    succeed("quantize", tmp_path / "float.onnx", *arguments, "--quiet")
    succeed("compile", tmp_path / "d.onnx", "-t", "cortex-m4", "-o", tmp_path / "net", "--quiet")
    assert tinyq.verify(tmp_path / "net", tinyq_options(tmp_path / "c.npy")).equal
    (output,) = manifest_of(tmp_path / "net")["outputs"]
    assert (output["scale"], output["zero_point"]) == (1 / 256, -128)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--dynamic"], "TQ605"),
        (["--dynamic", "--calib", "c.npz", "--weights", "int4"], "TQ607"),
        (["--dynamic", "--calib", "c.npz", "--keep-accuracy", "1%"], "TQ607"),
    ],
)
def test_dynamic_refusals(place: Path, arguments: list[str], code: str) -> None:
    given = [str(place / a) if a == "c.npz" else a for a in arguments]
    result = invoke("quantize", place / "float.onnx", *given, "--json")
    assert code in result.output
    assert result.exit_code != 0


def test_input_scale(place: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    model, net = place / "dynamic.onnx", place / "net"
    quantize_dynamic(place / "float.onnx", model)
    plain = ["compile", model, "-t", "cortex-m4", "-o", net, "--quiet"]
    assert "TQ202" in invoke(*plain).output
    succeed(*plain, "--input-scale", "x=0.03,-4")
    (entry,) = manifest_of(net)["inputs"]
    assert (entry["dtype"], entry["zero_point"]) == ("int8", -4)
    assert tinyq.verify(net, tinyq_options(place / "c.npz")).equal
    for wrong, code in (
        ("y=0.1", "TQ107"),
        ("0.1,300", "TQ303"),
        ("-1", "TQ303"),
        ("a,b", "TQ303"),
    ):
        assert code in invoke(*plain, f"--input-scale={wrong}").output
    succeed(
        "quantize", place / "float.onnx", "--calib", place / "c.npz", "-o", place / "s.onnx", "-q"
    )
    assert "TQ303" in invoke("compile", place / "s.onnx", *plain[2:], "--input-scale", "0.1").output
