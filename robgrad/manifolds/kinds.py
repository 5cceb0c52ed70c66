"""The kinds of manifold that a run can fit, keep and load, by name.

To add one is to write a `Kind` and name it in `KINDS`; the experiments' `--manifold` reads that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad import stacking
from robgrad.manifolds.generators import vae_gan_for
from robgrad.manifolds.geometry import Manifold
from robgrad.manifolds.pca import Plane, fit_pca, pca
from robgrad.manifolds.vae_gan import VaeGanSizes, from_vae_gan, init_vae_gan, vae_gan_step
from robgrad.training import Step, TrainState

Settings = Mapping[str, Any]


class Fitting(NamedTuple):
    """How a manifold that is trained is trained: what `training.fit` is given, a stack of one."""

    step: Step
    states: TrainState
    numbers: Any
    batch_size: int
    epochs: int


class Kind(NamedTuple):
    """A kind of manifold; its arrays are a pytree. `settings` are those named, from a run's configuration.

    Attributes:
      title: what a person calls it.
      settings: names of the settings that it depends on.
      fitting: `(image_shape, key, settings)` to how it is trained; None where `fit` does it.
      fit: `(images, settings)` to its arrays, where nothing is trained.
      shapes: `(image_shape, settings)` to the shapes of its arrays, for loading.
      manifold: `(image_shape, arrays, sampling_key)` to the manifold; the key, where there is one, is for kinds that
        can sample their projection.
      sample: `(image_shape, arrays, keys)` to images, one a key; None where it has none.
    """

    title: str
    settings: Sequence[str]
    fitting: Callable[[Sequence[int], Array, Settings], Fitting] | None
    fit: Callable[[np.ndarray, Settings], Any] | None
    shapes: Callable[[Sequence[int], Settings], Any]
    manifold: Callable[[Sequence[int], Any, Array | None], Manifold]
    sample: Callable[[Sequence[int], Any, Array], Array] | None


def _vae_gan_fitting(image_shape: Sequence[int], key: Array, settings: Settings) -> Fitting:
    model = vae_gan_for(image_shape)._replace(discriminator_steps=settings["discriminator_steps"])
    sizes = VaeGanSizes(jnp.array([settings["reconstruction_weight"]]), jnp.array([settings["vae_gan_learning_rate"]]))
    states = stacking.stack([init_vae_gan(model, image_shape, key)])
    return Fitting(vae_gan_step(model), states, sizes, settings["vae_gan_batch_size"], settings["vae_gan_epochs"])


def _vae_gan_shapes(image_shape: Sequence[int], settings: Settings) -> Any:
    del settings
    return jax.eval_shape(lambda: init_vae_gan(vae_gan_for(image_shape), image_shape, jax.random.key(0)).variables)


def _vae_gan_samples(image_shape: Sequence[int], variables, keys: Array) -> Array:
    model = vae_gan_for(image_shape)
    codes = jax.vmap(lambda key: jax.random.normal(key, (model.latent,)))(keys)
    return model.decoder.apply(variables["decoder"], codes)  # type: ignore[return-value]


def _plane_shapes(image_shape: Sequence[int], settings: Settings) -> Plane:
    directions = (int(np.prod(image_shape)), settings["pca_dimensions"])
    return Plane(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tuple(image_shape), directions)))  # type: ignore[arg-type]


VAE_GAN = Kind(
    "VAE-GAN",
    (
        *("vae_gan_epochs", "vae_gan_batch_size", "vae_gan_learning_rate"),
        *("reconstruction_weight", "discriminator_steps"),
    ),
    _vae_gan_fitting,
    None,
    _vae_gan_shapes,
    lambda image_shape, variables, key: from_vae_gan(vae_gan_for(image_shape), variables, key),
    _vae_gan_samples,
)
PCA = Kind(
    "PCA",
    ("pca_dimensions",),
    None,
    lambda images, settings: fit_pca(images, settings["pca_dimensions"]),
    _plane_shapes,
    lambda image_shape, plane, key: pca(Plane(*plane)),
    None,
)
KINDS: dict[str, Kind] = {"vae-gan": VAE_GAN, "pca": PCA}
