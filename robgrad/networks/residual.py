"""Residual networks with batch norm before each activation: PreActResNet and wide ResNets."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jax import Array

from robgrad.networks import layers
from robgrad.networks.classifiers import Conv
from robgrad.networks.normalisation import BatchNorm

_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and activation, around which the input is added (He et al., 2016).

    Where its shape changes, a 1x1 convolution is on the way around: of the first activation, or of the block's input
    itself with `raw_shortcut`.
    """

    features: int
    stride: int = 1
    activation: Callable[[Array], Array] = nn.relu
    padding: layers.Padding = "CENTRED"
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, images: Array, weights: Array | None = None) -> Array:
        """Maps `[B, H, W, I]` to `[B, H', W', features]`."""
        active = self.activation(_norm()(images, weights))
        if self.stride > 1 or images.shape[-1] != self.features:
            # A strided 1x1 convolution sees every stride-th pixel alone.
            images = images if self.raw_shortcut else active
            images = _conv(self.features, 1)(images[:, :: self.stride, :: self.stride])
        active = _conv(self.features, 3, self.stride, self.padding)(active)
        return images + _conv(self.features, 3)(self.activation(_norm()(active, weights)))


class PreActResNet(nn.Module):
    """A convolution, groups of `PreActBlock`, batch norm, activation, the mean over pixels, a dense layer.

    Attributes:
      stem: features of the first convolution.
      groups: features of each group's blocks; every group but the first halves height and width.
      blocks: blocks a group.
      classes: number of logits.
      final_norm: whether batch norm and activation come before the mean over pixels; some networks in PyTorch have
        none.
      activation: behind each batch norm.
      padding: of strided windows: PyTorch's, or `"SAME"`.
      raw_shortcut: whether the 1x1 convolutions around blocks see their input before batch norm and activation.
    """

    stem: int
    groups: Sequence[int]
    blocks: int
    classes: int
    final_norm: bool = True
    activation: Callable[[Array], Array] = nn.relu
    padding: layers.Padding = "CENTRED"
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, images: Array, weights: Array | None = None) -> Array:
        """Maps `[B, H, W, C]` to logits `[B, classes]`; with `weights` batch norm is in training mode."""
        images = _conv(self.stem, 3)(images)
        for group, features in enumerate(self.groups):
            for block in range(self.blocks):
                form = self.activation, self.padding, self.raw_shortcut
                images = PreActBlock(features, 2 if group and not block else 1, *form)(images, weights)
        images = self.activation(_norm()(images, weights)) if self.final_norm else images
        return nn.Dense(self.classes, kernel_init=_HE)(images.mean((1, 2)))


def preact_resnet_18(classes: int = 10) -> PreActResNet:
    """PreActResNet-18 (He et al., 2016) for small images: four groups of two blocks, 64 to 512 features."""
    return PreActResNet(64, (64, 128, 256, 512), 2, classes)


def wide_resnet(depth: int, width: int, classes: int = 10) -> PreActResNet:
    """WRN-depth-width (Zagoruyko and Komodakis, 2016): three groups of (depth - 4) / 6 blocks, 16 to 64 times width.

    Raises:
      ValueError: if no whole number of blocks makes that depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"expected a depth of 10, 16, 22, 28, ..., got {depth}")
    return PreActResNet(16, (16 * width, 32 * width, 64 * width), (depth - 4) // 6, classes)


def _norm() -> BatchNorm:
    return BatchNorm(momentum=0.9, epsilon=1e-5)


def _conv(features: int, window: int, stride: int = 1, padding: layers.Padding = "CENTRED") -> Conv:
    # Strided windows stand as PyTorch's do, so that its weights mean the same.
    return Conv(features, window, stride, padding, use_bias=False, kernel_init=_HE)
