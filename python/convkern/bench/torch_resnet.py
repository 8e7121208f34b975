"""ResNets as nn.Modules with the module names and the order of operators of torchvision's, and their time before and
after convkern.torch.replace_layers: of inference, and of training steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConvkernError
from . import harness
from .models import TOLERANCE


class BasicBlock(nn.Module):
    """Two 3x3, of which the first has the stride, plus the input."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride), 1x1 to four times the width, plus the input."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """layers: blocks of each of the four stages; (3, 4, 6, 3) is ResNet-50. width: channels of the first stage."""

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        num_classes: int = 1000,
        width: int = 64,
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck,
    ):
        super().__init__()
        self.block = block
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(2 * width, layers[1], 2)
        self.layer3 = self._make_layer(4 * width, layers[2], 2)
        self.layer4 = self._make_layer(8 * width, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        block, downsample, channels = self.block, None, planes * self.block.expansion
        if stride != 1 or self.inplanes != channels:
            downsample = nn.Sequential(
                nn.Conv2d(self.inplanes, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        layers = [block(self.inplanes, planes, stride, downsample)]
        self.inplanes = channels
        layers += [block(self.inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


MODELS: dict[str, dict[str, Any]] = {
    "resnet18": dict(layers=(2, 2, 2, 2), block=BasicBlock),
    "resnet50": dict(layers=(3, 4, 6, 3), block=Bottleneck),
}


def run(
    name: str, n: int, threads: int, seconds: float = 1.0, rounds: int = harness.ROUNDS, size: int = 224,
    training: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Time a model of MODELS in PyTorch, eager, on n images: torch's layers, ours, and ours fused.

    Before is torch's own in both memory formats, of which the better one counts. training: not inference, but a step:
    forward, cross-entropy, backward, SGD with momentum. Raises ConvkernError if the results (of a step: its loss)
    differ. Returns a row: seconds of each, and the ratios of the better `before` to `after` and to `fused`.
    """
    from ..torch import replace_layers

    if name not in MODELS:
        raise ConvkernError(f"no model {name!r} here; want {' or '.join(MODELS)}")
    torch.manual_seed(0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = ResNet(**MODELS[name]).train(training)
        models = dict(
            contiguous=copy.deepcopy(model),
            channels_last=copy.deepcopy(model).to(memory_format=torch.channels_last),
            after=replace_layers(copy.deepcopy(model)),
            fused=replace_layers(copy.deepcopy(model), fuse=True),
        )
        xs = [torch.randn(n, 3, size, size)]
        xs += [xs[0].clone() for _ in range(min(harness.ring_size(xs[0].nbytes), 8) - 1)]
        xs_last = [x.to(memory_format=torch.channels_last) for x in xs]
        call = _step if training else _infer
        contestants = {key: call(m, xs_last if key == "channels_last" else xs) for key, m in models.items()}
        with torch.inference_mode(not training), warnings.catch_warnings():
            results = {key: contestant(0) for key, contestant in contestants.items()}
            want = results["contiguous"]
            error = max(float((y - want).abs().max() / want.abs().max()) for y in results.values())
            if not error <= TOLERANCE["float32"]:
                raise ConvkernError(f"{name}: results differ by {error:.1e} of the largest output")
            timings = harness.interleave(contestants, seconds, rounds)
    finally:
        torch.set_num_threads(threads_before)
    before = min(("contiguous", "channels_last"), key=lambda key: timings[key].median)
    return dict(
        model=name,
        n=n,
        training=training,
        before=before,
        **{key: timing.as_dict() for key, timing in timings.items()},
        ratio=harness.ratio(timings[before], timings["after"]),
        ratio_fused=harness.ratio(timings[before], timings["fused"]),
        error=error,
    )


def _infer(model: nn.Module, xs: list[Tensor]) -> Callable[[int], Tensor]:
    return lambda i: model(xs[i % len(xs)])


def _step(model: nn.Module, xs: list[Tensor]) -> Callable[[int], Tensor]:
    labels = torch.arange(len(xs[0]))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step(i: int) -> Tensor:
        loss = F.cross_entropy(model(xs[i % len(xs)]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
