"""What functions, methods and modules mean: the exported float network against PyTorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from learn.test_export import run  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import QuantConfig, calibrate, convert, export, export_float, prepare  # noqa: E402
from tinyq.learn.trace import operations, trace  # noqa: E402

pytestmark = pytest.mark.torch
warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")


class Function(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exported(model: nn.Module, x: Tensor, folder: Path) -> np.ndarray:
    return run(export_float(model, folder / "float.onnx", x[:2]), x)


def _unpacked(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h * w)


IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu by name": lambda x: F.relu(input=x),
    "torch.relu": torch.relu,
    "relu method": lambda x: x.relu(),
    "relu in place": lambda x: F.relu(x + x, inplace=True),
    "relu6": lambda x: F.relu6(x * x),
    "hardtanh": F.hardtanh,
    "hardtanh -3 3": lambda x: F.hardtanh(x, -3.0, 3.0),
    "hardtanh by name": lambda x: F.hardtanh(x, max_val=0.25, min_val=-2.0),
    "hardtanh_": lambda x: F.hardtanh_(x + x, -3.0, 3.0),
    "leaky 0.5": lambda x: F.leaky_relu(x, 0.5),
    "leaky by name": lambda x: F.leaky_relu(x, negative_slope=0.5, inplace=False),
    "leaky default": F.leaky_relu,
    "leaky_": lambda x: F.leaky_relu_(x + x, 0.5),
    "clamp": lambda x: torch.clamp(x, -0.5, 1.5),
    "clamp by name": lambda x: x.clamp(max=1, min=-0.25),
    "clamp at zero": lambda x: x.clamp(min=0),
    "clamp_": lambda x: (x + x).clamp_(-0.5, 1.5),
    "clip": lambda x: torch.clip(x, -0.5, 1.5),
    "sigmoid": torch.sigmoid,
    "tanh": F.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softmax": lambda x: F.softmax(x, 1),
    "softmax dim=-2": lambda x: F.softmax(x, dim=-2),
    "torch.softmax": lambda x: torch.softmax(x, 2),
    "softmax method": lambda x: x.softmax(-1),
    "softmax axis": lambda x: x.softmax(axis=3),
    "softmax module without dim": nn.Softmax(),
    "cat axis": lambda x: torch.cat([x, x], axis=1),  # type: ignore[call-overload]
    "cat last": lambda x: torch.cat((x, x), -1),
    "concat": lambda x: torch.concat([x, x * x], dim=2),
    "add by name": lambda x: torch.add(x, other=x),
    "sub": lambda x: (x * x).sub(x),
    "mean": lambda x: x.mean((2, 3)),
    "mean keepdim": lambda x: x.mean(dim=(-1, -2), keepdim=True),
    "mean axis": lambda x: torch.mean(x, axis=[2, 3], keepdims=True),  # type: ignore[call-overload]
    "flatten": lambda x: x.flatten(1),
    "flatten by name": lambda x: torch.flatten(x, start_dim=2),
    "flatten to": lambda x: torch.flatten(x, 1, 2),
    "view": lambda x: x.view(x.size(0), -1),
    "view shape": lambda x: x.view(x.shape[0], 3, -1),
    "unpacked shape": _unpacked,
    "reshape": lambda x: torch.reshape(x, (-1, 3, 84)),
    "unsqueeze": lambda x: x.unsqueeze(2).squeeze(2),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool by name": lambda x: F.max_pool2d(x, kernel_size=(3, 2), stride=1, padding=1),
    "max pool dilated": lambda x: F.max_pool2d(x, 2, stride=2, dilation=2),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 3, 2, padding=1),
    "avg pool by name": lambda x: F.avg_pool2d(x, kernel_size=2),
    "avg pool all": lambda x: F.avg_pool2d(x, kernel_size=(7, 12)),
    "avg pool padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg pool not counting": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive by name": lambda x: F.adaptive_avg_pool2d(x, output_size=(7, 3)),
    "adaptive None": nn.AdaptiveAvgPool2d((None, 1)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_functions_and_methods(name: str, tmp_path: Path) -> None:
    function = IMAGES[name]
    model = function if isinstance(function, nn.Module) else Function(function)
    x = 3 * torch.randn(4, 3, 7, 12, generator=torch.Generator().manual_seed(0))
    expected = model(x.clone()).numpy()
    found = exported(model, x, tmp_path)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


POOLS = list(product(("max", "avg"), (2, 3), (1, 2, 3), (0, 1), (5, 6, 7, 8), (True, False)))


def ceil_windows(size: int, kernel: int, stride: int, pad: int) -> tuple[int, int, int]:
    """Windows that PyTorch has with ceil_mode and without it, and by rounding up alone."""
    pools = [nn.MaxPool2d((kernel, 1), (stride, 1), (pad, 0), ceil_mode=c) for c in (True, False)]
    counts = [p(torch.zeros(1, 1, size, 1)).shape[2] for p in pools]
    return counts[0], counts[1], -((kernel - size - 2 * pad) // stride) + 1


@pytest.mark.parametrize(("kind", "kernel", "stride", "pad", "size", "counting"), POOLS)
def test_ceil_mode_is_pytorchs_or_refused(
    kind: str, kernel: int, stride: int, pad: int, size: int, counting: bool, tmp_path: Path
) -> None:
    x = torch.randn(2, 3, size, 6, generator=torch.Generator().manual_seed(size))
    made: nn.Module = nn.MaxPool2d(kernel, stride, pad, ceil_mode=True)
    if kind == "avg":
        made = nn.AvgPool2d(kernel, stride, pad, ceil_mode=True, count_include_pad=counting)
    added = [ceil_windows(n, kernel, stride, pad) for n in (size, 6)]
    hangs = any(with_ceil > without for with_ceil, without, _ in added)
    uneven = hangs and any(naive > with_ceil for with_ceil, _, naive in added)
    if uneven or (kind == "avg" and counting and pad and hangs):
        with pytest.raises(TinyqError, match=r"TQ651.*ceil_mode"):
            exported(made, x, tmp_path)
        return
    found = exported(made, x, tmp_path)
    np.testing.assert_allclose(found, made(x).numpy(), rtol=1e-5, atol=1e-6)


def test_counted_padding_that_hangs_over_is_refused() -> None:
    hanging = Function(lambda x: F.avg_pool2d(x, 3, 2, 1, True))
    with pytest.raises(TinyqError, match=r"TQ651.*ceil_mode.*count_include_pad=False"):
        prepare(hanging, QuantConfig(), torch.randn(2, 3, 8, 8))
    (_, op) = operations(trace(hanging, torch.randn(2, 3, 7, 7)))[-1]
    assert not op.ceil_mode


class _Uses(nn.Module):
    """A convolution, and a function of it and its output."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _add_after(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(net.relu(y)) + y


def _add_before(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    z = y + net.d(y)
    return z + net.relu(y)


def _functional(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    z = net.d(F.relu(y, inplace=True))
    return z + y.clamp_(max=0.5, min=0.1) + y


def _augmented(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    kept = y
    y += net.d(x)
    return kept * net.d(y)


def _view_of_result(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.relu(y).flatten(1) + y.flatten(1)


def _size_grows(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    rows = y.size(2)
    kept = rows
    rows += 1
    return net.relu(y).view(-1, 3, kept, y.size(3))


IN_PLACE = [_add_after, _add_before, _functional, _augmented, _view_of_result, _size_grows]


@pytest.mark.parametrize("function", IN_PLACE)
def test_readers_of_an_overwritten_value_read_the_result(
    function: Callable[[nn.Module, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = _Uses(function).eval(), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        expected = model(x.clone())
        again = trace(model, x)(x)
    assert torch.allclose(again, expected, atol=1e-6)
    np.testing.assert_allclose(exported(model, x, tmp_path), expected.numpy(), atol=1e-5)
    assert model.relu.inplace


def _view_read_later(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    flat = y.flatten(1)
    return net.relu(y).flatten(1) + flat


def _base_read_later(net: _Uses, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.relu(y.flatten(1)) + net.d(y).flatten(1)


@pytest.mark.parametrize("function", [_view_read_later, _base_read_later])
def test_views_of_an_overwritten_value_are_refused(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    with pytest.raises(TinyqError, match=r"TQ651.*overwrites.*inplace"):
        trace(_Uses(function), torch.randn(2, 3, 6, 6))


class _Drops(nn.Module):
    def __init__(self, training: bool | None = None):
        super().__init__()
        self.always = training

    def forward(self, x: Tensor) -> Tensor:
        act = self.training if self.always is None else self.always
        return F.dropout(F.relu(x), 0.5, training=act)


@pytest.mark.parametrize("mode", [True, False])
def test_functions_of_dropout_follow_the_mode(mode: bool) -> None:
    prepared = prepare(_Drops().train(mode), QuantConfig(), torch.ones(2, 1000))
    assert prepared.training == mode
    x = torch.ones(2, 1000)
    assert float((prepared.train()(x) == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(prepared.eval()(x), x)


def test_dropout_of_one_mode() -> None:
    never = prepare(_Drops(False), QuantConfig(), torch.ones(2, 1000)).train()
    assert torch.equal(never(torch.ones(2, 1000)), torch.ones(2, 1000))
    with pytest.raises(TinyqError, match=r"TQ651.*training=self.training"):
        prepare(_Drops(True), QuantConfig(), torch.ones(2, 1000))


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.randn(3, 1, 1)
        return self.c(x)


def test_another_computation_in_training_is_said() -> None:
    with pytest.warns(UserWarning, match="something else in training"):
        traced = trace(_Noisy(), torch.ones(2, 3, 4, 4))
    assert [op.kind for _, op in operations(traced)] == ["placeholder", "conv"]


class _Optional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
        if mask is not None:
            x = x * mask
        return F.relu(x + x if twice else x)


def test_optional_inputs_keep_their_defaults() -> None:
    found = operations(trace(_Optional(), torch.randn(2, 3)))
    assert [op.kind for _, op in found] == ["placeholder", "relu"]


class _TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(64, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.flatten(2))[0]


class _Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)[0]


def _branch_on_shape(x: Tensor) -> Tensor:
    return F.relu(x) if x.shape[2] > 4 else x


def _asserts_shape(x: Tensor) -> Tensor:
    assert x.shape[1] == 3
    return F.relu(x)


def _loop_on_shape(x: Tensor) -> Tensor:
    for _ in x.shape:
        x = F.relu(x)
    return x


def _rounds_of_shape(x: Tensor) -> Tensor:
    for _ in range(x.size(1)):
        x = F.relu(x)
    return x


WEIGHT = torch.ones(3, 3, 1, 1)
REFUSED: list[tuple[object, str]] = [
    (lambda x: F.relu(x) + 1.0, r"TQ651.*add.*Only two tensors"),
    (lambda x: torch.add(x, x, alpha=2), r"TQ651.*alpha=2"),
    (lambda x: x * x.size(1), r"TQ651.*Only two tensors"),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=1), r"TQ651.*divisor_override=1"),
    (nn.Sequential(nn.AvgPool2d(2, divisor_override=1)), r"TQ651.*'0'.*divisor_override"),
    (lambda x: torch.cat([x, x]), r"TQ651.*batch"),
    (lambda x: F.softmax(x, 0), r"TQ651.*batch"),
    (lambda x: F.softmax(x, 1, dtype=torch.float64), r"TQ651.*dtype"),
    (lambda x: x.clamp(max=1.0), r"TQ651.*min=None.*number"),
    (lambda x: x.clamp(min=x, max=x), r"TQ651.*number"),
    (lambda x: x.mean(1), r"TQ651.*mean over dimensions \[1\]"),
    (lambda x: x.mean(), r"TQ651.*mean over dimensions \[0, 1, 2, 3\]"),
    (lambda x: x.flatten(), r"TQ651.*changes the batch"),
    (lambda x: x.double().relu(), r"TQ651.*double"),
    (lambda x: F.conv2d(x, WEIGHT), r"TQ651.*conv2d.*nn.Conv2d"),
    (lambda x: F.linear(x.flatten(1), torch.ones(2, 192)), r"TQ651.*linear.*nn.Linear"),
    (lambda x: x[:, 0], r"TQ651.*indexed"),
    (lambda x: x.chunk(3, 1)[0], r"TQ651.*chunk"),
    (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], r"TQ651.*return_indices"),
    (F.dropout3d, r"TQ651.*dropout3d"),
    (lambda x: x.flatten(1).T, r"TQ651.*attribute T"),
    (_Indices(), r"TQ651.*'pool'.*return_indices"),
    (_Recurrent(), r"TQ651.*'rnn'.*GRU"),
    (_Uses(lambda net, x: net.c(x) + net.scale), r"TQ651.*scale.*1x1 depthwise"),
    (_Uses(lambda net, x: net.c(x) * net.scale[0]), r"TQ651.*indexed"),
    (nn.Sequential(nn.Linear(8, 4)), r"TQ651.*'0'.*dense layer.*\[2, 3, 8, 8\].*flatten"),
    (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), r"TQ651.*'0'.*track_running"),
    (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), r"TQ651.*remove_parametrizations"),
    (nn.utils.weight_norm(nn.Conv2d(3, 3, 1)), r"TQ651.*remove_weight_norm"),
    (nn.Conv2d(3, 3, 1).double(), r"TQ657.*weight is torch.float64.*float\(\)"),
    (nn.Conv2d(3, 3, 1).bfloat16(), r"TQ657.*bfloat16.*float\(\)"),
    (nn.Sequential(nn.Conv2d(4, 3, 1)), r"TQ657.*\[\[2, 3, 8, 8\]\].*example"),
    (_TwoInputs(), r"TQ657.*_TwoInputs.*x: .*y: .*one input"),
    (_branch_on_shape, r"TQ650.*shape.*constants"),
    (_asserts_shape, r"TQ650.*asserts a shape.*leave the assertion out"),
    (_loop_on_shape, r"TQ650.*shape.*__init__"),
    (_rounds_of_shape, r"TQ650.*numbers from __init__ for shapes"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("what", "message"), REFUSED)
@pytest.mark.parametrize("act", ["prepare", "export_float"])
def test_what_has_no_place_is_named_with_a_remedy(
    what: object, message: str, act: str, tmp_path: Path
) -> None:
    model = what if isinstance(what, nn.Module) else Function(what)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 8, 8)
    acts: dict[str, Callable[[], object]] = {
        "prepare": lambda: prepare(model, QuantConfig(), x),
        "export_float": lambda: export_float(model, tmp_path / "float.onnx", x),
    }
    with pytest.raises(TinyqError, match=message):
        acts[act]()


EXAMPLES = [
    (np.zeros((2, 3, 8, 8), np.float32), r"TQ657.*numpy.ndarray.*from_numpy"),
    ((torch.zeros(2, 3, 8, 8),), r"TQ657.*tuple"),
    (torch.zeros(2, 3, 8, 8).double(), r"TQ657.*float64.*float\(\)"),
    (torch.zeros(2, 5, 8, 8), r"TQ657.*\[\[2, 5, 8, 8\]\]"),
    (torch.zeros(3, 8, 8), r"TQ651.*\[3, 8, 8\].*batch dimension"),
]


@pytest.mark.parametrize(("example", "message"), EXAMPLES)
def test_examples_that_do_not_fit(example: Tensor, message: str) -> None:
    with pytest.raises(TinyqError, match=message):
        prepare(nn.Sequential(nn.Conv2d(3, 3, 1)), QuantConfig(), example)


@pytest.mark.parametrize("mode", [True, False])
def test_float_export_leaves_the_network_as_it_was(mode: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(True)).train(mode)
    model[1].train(not mode)
    before, x = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 4, 4)
    export_float(model, tmp_path / "float.onnx", x)
    assert [m.training for m in model.modules()] == [mode, mode, not mode, mode]
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match=r"TQ703.*missing"):
        export_float(nn.Sequential(nn.ReLU()), tmp_path / "missing" / "a.onnx", torch.ones(2, 3))


QUANTIZED: dict[str, Callable[[_Uses, Tensor], Tensor]] = {
    "hardtanh": lambda net, x: F.hardtanh(net.c(x), -3.0, 3.0),
    "leaky": lambda net, x: F.leaky_relu(net.c(x), 0.5),
    "clamp": lambda net, x: net.d(net.c(x).clamp(0.1, 2.0)),
    "cat": lambda net, x: torch.cat([net.c(x), net.d(x)], axis=1),  # type: ignore[call-overload]
    "in place": lambda net, x: net.d(net.relu(y := net.c(x))) + y,
    "ceil": lambda net, x: F.avg_pool2d(F.max_pool2d(net.c(x), 2, 1), 3, 2, ceil_mode=True),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_functions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = _Uses(QUANTIZED[name]).eval(), 3 * torch.randn(32, 3, 9, 9)
    prepared = prepare(model, QuantConfig(act_range="max"), x[:2])
    calibrate(prepared, [x])
    with torch.no_grad():
        expected, whole = model(x.clone()).numpy(), convert(prepared)(x).numpy()
    found = run(export(prepared, tmp_path / "net.onnx"), x)
    assert float((found - expected).std() / expected.std()) < 0.03
    assert float(np.isclose(found, whole, atol=1e-5).mean()) > 0.999
