"""Classifiers and what they are made of: layers that stay fast in compiled loops, batch norm over all devices."""

from robgrad.networks import layers
from robgrad.networks.classifiers import CNN, MLP, Conv, cifar_cnn, classifier_for, digits_cnn, mnist_cnn
from robgrad.networks.convolutions import with_fast_convolutions
from robgrad.networks.equinox import of_equinox
from robgrad.networks.network import (
    NETWORKS,
    LogitsFn,
    Network,
    OfOne,
    Variables,
    init,
    intensity,
    logits,
    logits_fn,
    network_named,
    of_module,
    predicted,
)
from robgrad.networks.nnx import of_nnx
from robgrad.networks.normalisation import BatchNorm
from robgrad.networks.pretrained import of_state, read_state
from robgrad.networks.pytorch import of_torch
from robgrad.networks.residual import PreActResNet, preact_resnet_18, wide_resnet

__all__ = [
    "CNN",
    "MLP",
    "NETWORKS",
    "BatchNorm",
    "Conv",
    "LogitsFn",
    "Network",
    "OfOne",
    "PreActResNet",
    "Variables",
    "cifar_cnn",
    "classifier_for",
    "digits_cnn",
    "init",
    "intensity",
    "layers",
    "logits",
    "logits_fn",
    "mnist_cnn",
    "network_named",
    "of_equinox",
    "of_module",
    "of_nnx",
    "of_state",
    "of_torch",
    "preact_resnet_18",
    "predicted",
    "read_state",
    "wide_resnet",
    "with_fast_convolutions",
]
