"""Data sets that a run's generator has made: images whose manifold is known, since a decoder made them of codes."""

import os
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.data import load
from robgrad.data.images import DataError, Dataset, Split, Truth
from robgrad.data.sources import GENERATED
from robgrad.manifolds import vae_gan_for
from robgrad.networks import LogitsFn
from robgrad.runs.checkpoints import load_arrays, load_network, read_about, stages
from robgrad.runs.directory import RunError


def load_data(name: str | os.PathLike, data_dir: str | os.PathLike | None = None, size: int | None = None) -> Dataset:
    """`robgrad.data.load`, and `"generated:RUN"`, the set that a run's generator makes, see `generated`.

    Raises:
      RunError: if a run has no such networks.
      DataError: as `robgrad.data.load`, and if a generated set should be resized.
    """
    if not isinstance(name, str) or not name.startswith(GENERATED):
        return load(name, data_dir, size)
    if size is not None:
        raise DataError(f"{name}: expected a folder of images to resize; other sets keep their size")
    return generated(name.removeprefix(GENERATED))


def generated(
    run: str | os.PathLike, train_examples: int = 6000, test_examples: int = 1000, labelled_by: str = "standard"
) -> Dataset:
    """A data set decoded by a run's VAE-GAN and labelled by one of its networks (Bordt et al., 2022); always the same.

    Codes are drawn from the prior N(0, I). Images are float32 in [-1, 1], as exact as that is; classes are the run's.

    Args:
      run: directory of a run that has trained a VAE-GAN and the network.
      train_examples, test_examples: how many images.
      labelled_by: the network, whose prediction is the label.

    Raises:
      RunError: if the run has no such network or no VAE-GAN, or cannot be read.
    """
    path = next((one for one in stages(run) if read_about(one).get("manifold") == "vae-gan"), None)
    if path is None:
        raise RunError(
            f"{run}: expected a run that has trained a VAE-GAN, found none; start one with --manifold=vae-gan"
        )
    about, arrays = load_arrays(path)
    classify, name = load_network(run, labelled_by), Path(run).expanduser().resolve().name
    return decoded(name, arrays["decoder"], classify, about["image_shape"], train_examples, test_examples)


def decoded(
    name: str,
    decoder: Any,
    classify: LogitsFn,
    image_shape: Sequence[int],
    train_examples: int,
    test_examples: int,
) -> Dataset:
    """The set that a VAE-GAN's decoder makes of codes from the prior, as `generated` does for a run.

    Args:
      name: what the set is called, behind `generated-` and before a digest of what is in it.
      decoder: variables of the decoder of `manifolds.vae_gan_for(image_shape)`.
      classify: a function of one image `[H, W, C]` in [-1, 1] to logits, which labels the images.
      image_shape: `[H, W, C]`.
      train_examples, test_examples: how many images.
    """
    model = vae_gan_for(image_shape)
    codes = np.random.default_rng(0).normal(size=(train_examples + test_examples, model.latent)).astype(np.float32)
    decode = partial(_decoded, model.decoder, decoder)

    @jax.jit
    def draw(codes):
        def one(code: Array) -> tuple[Array, Array]:
            image = decode(0, code)
            return image, jnp.argmax(classify(image))

        return lax.map(one, codes, batch_size=100)

    images, labels = (np.asarray(values) for values in draw(codes))
    classes = tuple(map(str, range(jax.eval_shape(classify, images[0]).shape[0])))
    labels = labels.astype(np.int32)
    train, test = (Split(images[rows], labels[rows]) for rows in (slice(train_examples), slice(train_examples, None)))
    digest = zlib.crc32(images.tobytes(), zlib.crc32(labels.tobytes()))
    truth = Truth(decode, codes[:train_examples], codes[train_examples:], variables=decoder)
    return Dataset(f"generated-{name}-{digest:08x}", classes, train, test, truth)


def _decoded(decoder: Any, variables: Any, label: Array | int, code: Array) -> Array:
    del label
    return decoder.apply(variables, code[None])[0]
