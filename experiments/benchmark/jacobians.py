"""The benchmark's alignment task in PyTorch: a VAE-GAN's manifold by our parameters, vectorised by torch.func."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from experiments.benchmark import contest


def alignment_task(work) -> contest.Task:
    """Alignment of the images with a VAE-GAN's manifold, vectorised over images; gives the mean fraction."""
    mean_code, decode = manifold(work)
    images = torch.tensor(work.arrays["many_images"], device=work.device).permute(0, 3, 1, 2)

    def fraction(image):
        jacobian = torch.func.jacfwd(lambda one: decode(one[None]).flatten())(mean_code(image[None])[0])
        basis = torch.linalg.qr(jacobian)[0]
        label = work.logits(image[None]).argmax(1)
        # From NCHW to the order of the decoder's pixels does not matter for one channel.
        gradient = torch.func.grad(lambda one: cross_entropy(work.logits(one[None]), label))(image).flatten()
        return (basis.T @ gradient).square().sum() / gradient.square().sum()

    every = torch.func.vmap(fraction, chunk_size=100)
    return lambda: [every(images).mean().item()]


def manifold(work) -> tuple[Callable, Callable]:
    """The 28x28 or 8x8 VAE-GAN's mean code and decoder, batch norm by the running statistics."""
    part = {
        name.removeprefix("manifold/"): torch.tensor(value, device=work.device)
        for name, value in work.arrays.items()
        if name.startswith("manifold/")
    }
    shape = work.spec["decoder"]

    def normalised(values, network: str, index: int):
        mean, variance = (part[f"{network}/batch_stats/BatchNorm_{index}/{name}"] for name in ("mean", "variance"))
        scale, bias = (part[f"{network}/params/BatchNorm_{index}/{name}"] for name in ("scale", "bias"))
        shaped = (1, -1, *[1] * (values.ndim - 2))
        factor = scale * (variance + 1e-3).rsqrt()
        return (values - mean.view(shaped)) * factor.view(shaped) + bias.view(shaped)

    def dense(values, network: str):
        return values @ part[f"{network}/params/Dense_0/kernel"] + part[f"{network}/params/Dense_0/bias"]

    def mean_code(images):
        for index in range(shape["encoder_layers"]):
            kernel = part[f"encoder/params/Conv_{index}/kernel"].permute(3, 2, 0, 1)
            missing = max(0, (-(-images.shape[-1] // 2) - 1) * 2 + kernel.shape[-1] - images.shape[-1])
            images = pad(images, (missing // 2, missing - missing // 2) * 2)
            bias = part[f"encoder/params/Conv_{index}/bias"]
            images = normalised(nn.functional.conv2d(images, kernel, bias, 2).relu(), "encoder", index)
        flat = images.permute(0, 2, 3, 1).flatten(1)
        moments = normalised(dense(flat, "encoder"), "encoder", shape["encoder_layers"])
        return moments[:, : moments.shape[1] // 2]

    def decode(codes):
        height, width, features = shape["base"]
        images = normalised(dense(codes, "decoder").relu(), "decoder", 0)
        images = images.view(-1, height, width, features).permute(0, 3, 1, 2)
        for index, (stride, padding) in enumerate(shape["layers"]):
            # PyTorch's transposed convolution turns the kernel around.
            kernel = part[f"decoder/params/Conv_{index}/kernel"].flip(0, 1).permute(2, 3, 0, 1)
            bias = part[f"decoder/params/Conv_{index}/bias"]
            images = nn.functional.conv_transpose2d(images, kernel, bias, stride, padding)
            last = index == len(shape["layers"]) - 1
            images = images.tanh() if last else normalised(images.relu(), "decoder", index + 1)
        return images

    return mean_code, decode
