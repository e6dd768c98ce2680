"""CIFAR-10 ResNet-20 as published with APoT: structure, state dict, data, float ONNX.

    python examples/resnet20.py resnet20.onnx

needs the folder of published networks (``TINYQ_MODELS``) and of data (``TINYQ_DATA``, by default
beside it). The structure is He et al.'s: three stages of three blocks, 16, 32, 64 channels.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tinyq.learn

# Normalisation that the published networks were trained with.
MEAN = (0.491, 0.482, 0.447)
STD = (0.247, 0.243, 0.262)


class Block(nn.Module):
    """Two 3x3 convolutions and the identity, or a 1x1 convolution, around them."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet20(nn.Module):
    """[N, 3, 32, 32] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def models_dir() -> Path:
    folder = os.environ.get("TINYQ_MODELS")
    if not folder or not (Path(folder) / "apot").is_dir():
        raise SystemExit("set TINYQ_MODELS to the folder that holds apot/*.npz")
    return Path(folder)


def data_dir() -> Path:
    return Path(os.environ.get("TINYQ_DATA") or models_dir().parent / "data")


def published(name: str) -> dict[str, Tensor]:
    """State dict of a published network, by its file's name without suffix."""
    with np.load(models_dir() / "apot" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key].copy()) for key in arrays.files}


def float_resnet20() -> ResNet20:
    """Build the published float network, in eval mode (82.36% on the JPEG test images)."""
    model = ResNet20()
    missing, unexpected = model.load_state_dict(published("cifar10_resnet20_32bit"), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def export_float_resnet20(path: str | Path) -> Path:
    """Write the float network as ONNX: input `x` [N, 3, 32, 32], normalised; output [N, 10]."""
    return tinyq.learn.export_float(float_resnet20(), path, torch.zeros(2, 3, 32, 32))


def cifar10_pixels(split: str, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 3, 32, 32] and labels [count] of the ``train`` or ``test`` file.

    The files are sorted by class: images are taken from one fixed permutation of them.
    """
    from PIL import Image

    with np.load(data_dir() / f"cifar10_jpeg_{split}.npz") as z:
        jpeg, offset, labels = z["jpeg"], z["offset"], z["y"]
    order = np.random.default_rng(0).permutation(len(labels))[start : start + count]
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in order
    ]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(labels[order].astype(np.int64))


def normalised(pixels: Tensor) -> Tensor:
    """What the network expects of ``pixels`` uint8 [N, 3, 32, 32]; the layout in memory stays."""
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255.0 - mean) / std


def cifar10(split: str, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Images of :func:`cifar10_pixels`, normalised, and labels."""
    pixels, labels = cifar10_pixels(split, count, start)
    return normalised(pixels).contiguous(), labels


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, batch: int = 250) -> Tensor:
    """Class of each image, int64 [N]."""
    return torch.cat([model(part).argmax(1) for part in x.split(batch)])


def onnx_answers(path: str | Path, x: Tensor, batch: int = 250) -> Tensor:
    """Class of each image, int64 [N], in onnxruntime."""
    import onnx

    from tinyq.ptq.observe import session as quantized_session

    session = quantized_session(onnx.load(path))
    name = session.get_inputs()[0].name
    outputs = [session.run(None, {name: part.numpy()})[0] for part in x.split(batch)]
    return torch.from_numpy(np.concatenate(outputs).argmax(1))


def percent(found: Tensor, wanted: Tensor) -> float:
    """Percent of ``found`` that are as ``wanted``."""
    return 100.0 * float((found == wanted).double().mean())


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent right."""
    return percent(answers(model, x), y)


def onnx_accuracy(path: str | Path, x: Tensor, y: Tensor) -> float:
    """Percent right, in onnxruntime."""
    return percent(onnx_answers(path, x), y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = export_float_resnet20(sys.argv[1] if len(sys.argv) > 1 else "resnet20.onnx")
    images, labels = cifar10("test", 2000)
    print(f"{target}: PyTorch {accuracy(float_resnet20(), images, labels):.2f}%, ", end="")
    print(f"onnxruntime {onnx_accuracy(target, images, labels):.2f}% of 2000 test images")
