"""Networks of the companion trainer: wide residual networks as TorchSSL builds them, timm's, a small one."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from cma_tune.errors import UserError, nearest

SLOPE = 0.1
"""Of LeakyReLU below zero."""


class Output(NamedTuple):
    """What a network gives: logits ``[B, C]`` and the features just before the classifier, ``[B, D]``."""

    logits: Tensor
    features: Tensor


class Network(nn.Module):
    """What all networks have in common: the number of features D, and the linear layer after them."""

    width: int
    classifier: nn.Linear

    def forward(self, images: Tensor) -> Output:
        """Normalised images ``[B, 3, H, W]`` to logits and features."""
        raise NotImplementedError


def _norm(channels: int) -> nn.BatchNorm2d:
    # The references' 0.001 is torch's momentum: the share of the new batch in the running statistics.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)


class Block(nn.Module):
    """A pre-activation residual block of two 3×3 convolutions.

    Args:
        width_in, width_out: channels; a 1×1 shortcut stands where they differ.
        stride: of the first convolution and the shortcut.
        activate_before: normalise and activate before the paths part. Where widths differ and it is off, both
            paths take the raw input, so that the block's first norm takes no part, as in the references.
    """

    def __init__(self, width_in: int, width_out: int, stride: int, activate_before: bool) -> None:
        super().__init__()
        self.bn1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1)
        self.bn2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1)
        self.shortcut = None if width_in == width_out else nn.Conv2d(width_in, width_out, 1, stride)
        self.activate_before = activate_before
        if self.shortcut is not None and not activate_before:
            self.bn1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width_in, H, W]`` to ``[B, width_out, H / stride, W / stride]``."""
        if self.shortcut is None:
            inner = leaky_relu(self.bn1(x), SLOPE)
            skipped = inner if self.activate_before else x
        elif self.activate_before:
            inner = leaky_relu(self.bn1(x), SLOPE)
            skipped = self.shortcut(inner)
        else:
            inner = x
            skipped = self.shortcut(x)
        inner = self.conv2(leaky_relu(self.bn2(self.conv1(inner)), SLOPE))
        out: Tensor = skipped + inner
        return out


class WideResNet(Network):
    """Wide residual network of depth 28, four blocks a stage, as TorchSSL builds it.

    Every convolution has a bias; BatchNorm has ε 1e-3 and momentum 1e-3; LeakyReLU has slope 0.1. Weights of
    convolutions start from a normal distribution of deviation √(2/fan_out) (He et al. 2015), the classifier's
    from Xavier's normal, with bias 0.

    Args:
        classes: C.
        widen: k; the stages have 16k, 32k, 64k channels.
        fourth_stage: a fourth stage of 128k, the first one then halving the sides too ("WRN-37-2").
        channels: of the images.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks" (2016).
    """

    def __init__(self, classes: int, widen: int, fourth_stage: bool = False, channels: int = 3) -> None:
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen, *([128 * widen] if fourth_stage else [])]
        strides = [2 if fourth_stage else 1, 2, 2, *([2] if fourth_stage else [])]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1)
        blocks: list[nn.Module] = []
        width_in = 16
        for stage, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            for number in range(4):
                first = number == 0
                blocks.append(Block(width_in, width, stride if first else 1, first and stage == 0))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = _norm(width_in)
        self.width = width_in
        self.classifier = nn.Linear(width_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.0, mode="fan_out")
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Output:
        """Normalised images ``[B, 3, H, W]`` to logits and features."""
        x = leaky_relu(self.bn(self.blocks(self.conv1(images))), SLOPE)
        features = x.mean(dim=(2, 3))
        return Output(self.classifier(features), features)


class SmallCNN(Network):
    """Four 3×3 convolutions with BatchNorm, 64 features, some 61,000 parameters: for digits on a CPU.

    It is this package's own, and stands for no published network.
    """

    WIDTHS = (16, 32, 64, 64)

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for number, width in enumerate(self.WIDTHS):
            layers += [nn.Conv2d(before, width, 3, 2 if number < 3 else 1, 1, bias=False)]
            # A usual momentum: short runs never get far with that of the references.
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.width = before
        self.classifier = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Output:
        """Normalised images ``[B, 3, H, W]`` to logits and features."""
        features = self.layers(images).mean(dim=(2, 3))
        return Output(self.classifier(features), features)


class TimmNetwork(Network):
    """Any timm model that pools its features, with a linear classifier of our own."""

    def __init__(self, name: str, classes: int, channels: int = 3) -> None:
        super().__init__()
        import timm

        self.body = cast(Any, timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels))
        # Some heads project after pooling: what the classifier would take, not the width of the last stage.
        self.width = int(self.body.head_hidden_size)
        self.classifier = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> Output:
        """Normalised images ``[B, 3, H, W]`` to logits and features."""
        features = self.body(images)
        return Output(self.classifier(features), features)


NAMES = ("wrn-28-2", "wrn-28-8", "wrn-37-2", "small-cnn")
TIMM = "timm:"


def check_network_name(name: str) -> None:
    """Check a network's name before anything is loaded.

    Raises:
        UserError: there is no network of that name.
    """
    if name in NAMES:
        return
    if not name.startswith(TIMM):
        raise UserError(
            f"Expected a network out of {', '.join(NAMES)} or timm:NAME, got '{name}'{nearest(name, NAMES)}."
        )
    import timm

    model = name.removeprefix(TIMM)
    if model.split(".")[0] not in timm.list_models():
        raise UserError(f"Expected a model of timm, got '{model}'{nearest(model, timm.list_models())}.")


def network(name: str, classes: int, channels: int = 3) -> Network:
    """A network with random weights.

    Args:
        name: wrn-28-2, wrn-28-8, wrn-37-2 (depth 28 and a fourth stage), small-cnn or ``timm:NAME``.
        classes: C.
        channels: of the images.

    Raises:
        UserError: there is no network of that name.
    """
    check_network_name(name)
    if name == "small-cnn":
        return SmallCNN(classes, channels)
    if name.startswith(TIMM):
        return TimmNetwork(name.removeprefix(TIMM), classes, channels)
    widen = int(name.rsplit("-", 1)[1])
    return WideResNet(classes, widen, fourth_stage=name == "wrn-37-2", channels=channels)
