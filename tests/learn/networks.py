"""Networks as others write them, small, for the tests of tinyq.learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """torchvision's way: in-place ReLU and addition, view, downsample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.a, self.bn_a = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.b, self.bn_b = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out = self.bn_b(self.b(self.relu(self.bn_a(self.a(x)))))
        out += self.down(x)
        out = self.avgpool(self.relu(out))
        out = out.view(out.size(0), -1)
        return self.fc(out)


class InvertedResidual(nn.Module):
    """MobileNetV2's way: ReLU6, depthwise, linear bottleneck with a residual, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(True)
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        return self.classifier(self.dropout(x))


class Concatenating(nn.Module):
    """Inception's way: functional ReLU, branches joined, a sigmoid gate, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 1)
        self.right = nn.Conv2d(3, 10, 3, padding=1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.hidden = nn.Linear(16 * 16, 24)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)
        x = x * torch.sigmoid(self.gate(x))
        x = F.avg_pool2d(x, 4)
        x = torch.flatten(x, 1)
        return self.out(F.dropout(F.relu(self.hidden(x)), 0.1, self.training))


class Autoencoder(nn.Module):
    """Dense layers with BatchNorm1d, input [N, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(),
            nn.Linear(4, 32),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Separable(nn.Module):
    """DS-CNN's way: a tall first kernel with uneven padding and stride, depthwise and pointwise."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 8, (5, 3), (2, 1), (2, 1)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        ]
        layers += [nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d((8, 16))]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.squeeze(torch.squeeze(self.features(x), -1), -1))


NETWORKS = {
    "resnet": (Residual, (3, 16, 16)),
    "mobilenetv2": (InvertedResidual, (3, 16, 16)),
    "inception": (Concatenating, (3, 16, 16)),
    "autoencoder": (Autoencoder, (32,)),
    "ds-cnn": (Separable, (3, 16, 16)),
}


def settled(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a network whose BatchNorm statistics fit its data, in eval mode, and 64 inputs."""
    kind, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = kind()
    data = torch.randn(64, *shape)
    with torch.no_grad():
        for module in model.modules():  # uneven and negative factors, as training leaves them
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.weight.uniform_(-0.5, 1.5)
                module.bias.normal_(0.0, 0.3)
        for _ in range(30):
            model(data)
    return model.eval(), data
