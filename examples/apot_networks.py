"""The networks published with APoT, rebuilt, checked, and exported as integer networks.

    python examples/apot_networks.py cifar10_resnet20_4bit out.onnx

prints accuracy on 2,000 real test images (or ``--images 2000 10000``) of (1) the authors'
arithmetic, written here on its own from the paper, (2) the same network prepared by tinyq, in
PyTorch, (3) its integers, in PyTorch, (4) the exported file in onnxruntime; and for how many images
the last answers as (1) and as (2) do.

What is exported differs from the authors' arithmetic in four ways, each forced by integers:

* the values that the residual additions pass on have 8 bits; the authors keep them in float;
* the input has 8 bits;
* activations reach their level through an 8-bit integer and a table, so that a value that is
  equally near to two levels, to within half an 8-bit step, may take the other one;
* first and last layer: the authors divide by max(w), and where min(w) is larger in magnitude their
  integers go beyond -128. ``--ends authors`` keeps them, in int16; the default has their integers
  in the channels that fit int8, and divides the others by their max|w|.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from apot_thresholds import WEIGHT_THRESHOLDS
from resnet20 import ResNet20, answers, cifar10, data_dir, onnx_answers, percent, published
from torch import Tensor, fx, nn

import tinyq.learn
from tinyq.learn import QuantConfig, apot_config
from tinyq.learn.levels import uniform
from tinyq.learn.prepare import act_quantizers, input_quantizers, quant_layers
from tinyq.learn.quantizers import WeightQuantizer


class ResNet10(nn.Module):
    """MNIST network of the APoT repository: [N, 1, 28, 28] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        from resnet20 import Block

        self.conv1 = nn.Conv2d(1, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.layer3 = nn.Sequential(Block(32, 64, 2))
        self.layer4 = nn.Sequential(Block(64, 128, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def mnist(count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised test digits [count, 1, 28, 28] and labels [count]."""
    with np.load(data_dir() / "mnist_test.npz") as z:
        x, y = z["x"][start : start + count], z["y"][start : start + count]
    images = (torch.from_numpy(x).float()[:, None] / 255.0 - 0.131) / 0.308
    return images, torch.from_numpy(y.astype(np.int64))


class Published:
    """A published network by name: float structure and state, thresholds, data."""

    def __init__(self, name: str):
        self.name = name
        self.bits = int(name.rsplit("_", 1)[1].removesuffix("bit"))
        self.cifar = name.startswith("cifar10")
        self.uniform = "_uniform_" in name
        self.state = published(name)
        self.model: nn.Module = ResNet20() if self.cifar else ResNet10()
        own = self.model.state_dict()
        self.model.load_state_dict({**own, **{k: v for k, v in self.state.items() if k in own}})
        self.model.eval()
        self.layers = [k.removesuffix(".act_alpha") for k in self.state if k.endswith("act_alpha")]

    def act_threshold(self, layer: str) -> float:
        return float(self.state[f"{layer}.act_alpha"])

    def weight_threshold(self, layer: str) -> float:
        stored = self.state.get(f"{layer}.weight_alpha")
        return WEIGHT_THRESHOLDS[self.name][layer] if stored is None else float(stored)

    def test(self, count: int) -> tuple[Tensor, Tensor]:
        return cifar10("test", count) if self.cifar else mnist(count)

    def calibration(self) -> Tensor:
        """Training images of CIFAR; the last test digits of MNIST, which are not measured on."""
        return (cifar10("train", 256) if self.cifar else mnist(256, 9000))[0]


# --- the authors' arithmetic, from the paper and without tinyq -----------------------------------
def _sums_of_powers(bits: int) -> Tensor:
    """Magnitudes of ``bits`` bits over their largest."""
    exponents = {
        2: [[1, 2, 3]],
        3: [[1, 2, 4], [3]],
        4: [[1, 3, 5], [2, 4, 6]],
        5: [[1, 3, 6], [2, 4, 7], [5]],
    }[bits]
    sums = {0.0}
    for powers in exponents:
        sums = {s + p for s in sums for p in (0.0, *(2.0**-e for e in powers))}
    magnitudes = torch.tensor(sorted(sums))
    return magnitudes / magnitudes.max()


def _nearest(x: Tensor, levels: Tensor) -> Tensor:
    return levels[(x.reshape(-1, 1) - levels).abs().argmin(1)].reshape(x.shape)


def paper_weight(w: Tensor, alpha: float, bits: int, *, even: bool) -> Tensor:
    x = ((w - w.mean()) / w.std() / alpha).clamp(-1, 1)
    if even or bits == 2:
        steps = 2 ** (bits - 1) - 1
        return alpha * (x * steps).round() / steps
    return alpha * x.sign() * _nearest(x.abs(), _sums_of_powers(bits - 1))


def paper_activation(x: Tensor, alpha: float, bits: int, *, even: bool) -> Tensor:
    x = (x / alpha).clamp(0, 1)
    if even:
        return alpha * (x * (2**bits - 1)).round() / (2**bits - 1)
    levels = _sums_of_powers(bits)
    bounds = (levels[1:] + levels[:-1]) / 2
    return alpha * levels[torch.bucketize(x.contiguous(), bounds)]


def paper_network(net: Published) -> nn.Module:
    """Copy of the network that computes as the authors' code does, the residual path in float."""
    traced = fx.symbolic_trace(copy.deepcopy(net.model))
    for name, module in list(traced.named_modules()):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        w = module.weight.detach()
        if name in net.layers:
            q = paper_weight(w, net.weight_threshold(name), net.bits, even=net.uniform)
            alpha = net.act_threshold(name)
            module.register_forward_pre_hook(
                lambda m, args, a=alpha: paper_activation(args[0], a, net.bits, even=net.uniform)
            )
        else:
            q = (w / w.max() * 127).round() / 127 * w.max()
        module.weight = nn.Parameter(q)
    return traced.eval()


def keep_integers(layer: nn.Module) -> None:
    """The authors' integers of the first or last layer, where a channel's fit int8."""
    with torch.no_grad():
        step = layer.weight.max() / 127
        layer.weight.copy_((layer.weight / step).round() * step)
        peaks = layer.weight.abs().flatten(1).amax(1).reshape(layer.weight_quantizer.step.shape)
        layer.weight_quantizer.set_step(torch.maximum(peaks / 127, step))


# --- the same network in tinyq --------------------------------------------------------------------
def tinyq_network(net: Published, ends: str = "int8") -> fx.GraphModule:
    """Prepared network with the published weights and thresholds."""
    config = apot_config(net.bits)
    if net.uniform:
        config = QuantConfig(
            weight_bits=net.bits,
            weight_range="learned",
            per_channel=False,
            normalize_weights=True,
            act_bits=net.bits,
            act_range="learned",
        )
    images = net.calibration()
    prepared = tinyq.learn.prepare(net.model, config, images[:2])
    inputs, layers = input_quantizers(prepared), quant_layers(prepared)
    for name in net.layers:
        layers[name].weight_quantizer.set_threshold(net.weight_threshold(name))
        inputs[name].set_threshold(net.act_threshold(name))
    for name in set(layers) - set(net.layers):
        if ends == "authors":
            weight = layers[name].weight.detach()
            wide = WeightQuantizer(
                uniform(9), layers[name].weight_quantizer.estimator, mode="mse", per_channel=False
            )
            wide.initialize(weight, float(weight.max()) * 255 / 127)
            layers[name].weight_quantizer = wide
        else:
            keep_integers(layers[name])
    # Ranges of the 8-bit values, as the network whose other thresholds are known makes them.
    known = [inputs[name] for name in net.layers]
    for quantizer in act_quantizers(prepared).values():
        quantizer.observer.rule = "max"
    tinyq.learn.calibrate(prepared, images.split(128), keep=known)
    tinyq.learn.align_biases(prepared)
    return prepared.eval()


PARTS = {
    "levels": ("authors", False, False),
    "levels, input": ("authors", True, False),
    "levels, ends": ("int8", False, False),
    "levels, ends, residual": ("int8", False, True),
    "all": ("int8", True, True),
}
"""What is in integers: name, (first and last layer, input in 8 bits, residual values in 8 bits)."""


def part(net: Published, name: str) -> fx.GraphModule:
    """The prepared network with some of its 8-bit values in float."""
    ends, first, residual = PARTS[name]
    prepared = tinyq_network(net, ends)
    low = {id(quantizer) for quantizer in map(input_quantizers(prepared).get, net.layers)}
    for k, quantizer in enumerate(act_quantizers(prepared).values()):
        quantizer.enabled = id(quantizer) in low or (first if k == 0 else residual)
    return prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="file of the network without suffix: cifar10_resnet20_4bit")
    parser.add_argument("path", nargs="?", help="ONNX file to write")
    parser.add_argument("--ends", choices=("int8", "authors"), default="int8")
    parser.add_argument("--images", type=int, nargs="+", default=[2000])
    parser.add_argument("--parts", action="store_true", help="the steps to fake quantization alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = Published(args.name)
    x, y = net.test(max(args.images))
    if args.parts:
        for name in PARTS:
            print(f"{args.name}, {name}: {percent(answers(part(net, name), x), y):.2f}")
        return
    prepared = tinyq_network(net, args.ends)
    path = tinyq.learn.export(prepared, Path(args.path or f"{args.name}.onnx"))
    paper, fake = answers(paper_network(net), x), answers(prepared, x)
    integers, exported = answers(tinyq.learn.convert(prepared), x), onnx_answers(path, x)
    for count in args.images:
        right = [percent(a[:count], y[:count]) for a in (paper, fake, integers, exported)]
        alike = [percent(exported[:count], a[:count]) for a in (paper, fake)]
        cells = [args.name.replace("_", " "), f"{count:,}", *(f"{v:.2f}" for v in (*right, *alike))]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
