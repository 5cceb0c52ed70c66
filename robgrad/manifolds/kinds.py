"""The kinds of manifold that a run can fit, keep and load, by name.

To add one is to write a `Kind` and name it in `KINDS`; the experiments' `--manifold` and the flags of its settings read
that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad import stacking
from robgrad.data import Dataset, Truth, load, scale
from robgrad.manifolds.denoiser import Denoiser, DenoiserSizes, denoiser_step, from_denoiser, init_denoiser
from robgrad.manifolds.generators import vae_gan_for
from robgrad.manifolds.geometry import Manifold
from robgrad.manifolds.neighbours import local_pca
from robgrad.manifolds.pca import Plane, fit_pca, pca
from robgrad.manifolds.renderer import Bank, renderer
from robgrad.manifolds.vae_gan import VaeGanSizes, from_vae_gan, init_vae_gan, vae_gan_step
from robgrad.training import Step, TrainState

Settings = Mapping[str, Any]
# Training images that neighbours are looked for among.
_COMPARED = 10_000


class Fitting(NamedTuple):
    """How a manifold that is trained is trained: what `training.fit` is given, a stack of one."""

    step: Step
    states: TrainState
    numbers: Any
    batch_size: int
    epochs: int


class Setting(NamedTuple):
    """A number that a kind of manifold depends on: what it is, in a sentence, and its default, which has its type."""

    text: str
    default: int | float


class Kind(NamedTuple):
    """A kind of manifold; its arrays are a pytree.

    The functions' `settings` are values by name, of the kind's own settings and of the data: `dataset`, `seed`,
    `held_out`, `train_examples`, `test_examples`.

    Attributes:
      title: what a person calls it.
      settings: its own settings by name.
      fitting: `(image_shape, key, settings)` to how it is trained; None where `fit` does it.
      fit: `(dataset, settings)` to its arrays, where nothing is trained; the set holds what the run uses of it.
      shapes: `(image_shape, settings)` to the shapes of its arrays, for loading.
      manifold: `(image_shape, arrays, sampling_key, settings)` to the manifold; the key, where there is one, is for
        kinds that can sample their projection.
      sample: `(image_shape, arrays, keys)` to images, one a key; None where it has none.
      limits: `(pixels, settings)` to settings that may be too large for the data: name, the most it may be, and why.
      needs_truth: whether it can be fitted only to data sets whose `truth` is known.
    """

    title: str
    settings: Mapping[str, Setting]
    fitting: Callable[[Sequence[int], Array, Settings], Fitting] | None
    fit: Callable[[Dataset, Settings], Any] | None
    shapes: Callable[[Sequence[int], Settings], Any]
    manifold: Callable[[Sequence[int], Any, Array | None, Settings], Manifold]
    sample: Callable[[Sequence[int], Any, Array], Array] | None = None
    limits: Callable[[int, Settings], Iterable[tuple[str, int, str]]] = lambda pixels, settings: ()
    needs_truth: bool = False


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


def _plane_limits(pixels: int, settings: Settings) -> Iterable[tuple[str, int, str]]:
    examples = settings["train_examples"]
    yield "pca_dimensions", min(examples, pixels) - 1, f"{examples} images of {pixels} pixels"


def _neighbour_limits(pixels: int, settings: Settings) -> Iterable[tuple[str, int, str]]:
    yield from _plane_limits(pixels, settings)
    yield "neighbours", settings["train_examples"], f"--train_examples is {settings['train_examples']}"
    yield "pca_dimensions", settings["neighbours"] - 1, f"--neighbours is {settings['neighbours']}"


def _denoiser_fitting(image_shape: Sequence[int], key: Array, settings: Settings) -> Fitting:
    states = stacking.stack([init_denoiser(Denoiser(), image_shape, key)])
    sizes = DenoiserSizes(jnp.array([settings["denoiser_learning_rate"]]))
    return Fitting(
        denoiser_step(Denoiser()), states, sizes, settings["denoiser_batch_size"], settings["denoiser_epochs"]
    )


def _denoiser_shapes(image_shape: Sequence[int], settings: Settings) -> Any:
    del settings
    return jax.eval_shape(lambda: init_denoiser(Denoiser(), image_shape, jax.random.key(0)).variables)


def _denoiser(image_shape: Sequence[int], variables, key: Array | None, settings: Settings) -> Manifold:
    del image_shape, key
    return from_denoiser(Denoiser(), variables, settings["denoiser_noise"], dimensions=settings["denoiser_dimensions"])


def _bank(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """All images whose codes are known, and the decoder's variables where it is a VAE-GAN's."""
    del settings
    truth = dataset.truth
    assert truth is not None
    join = lambda one, two: jnp.concatenate([jnp.asarray(one), jnp.asarray(two)])  # noqa: E731
    labels = join(dataset.train.labels, dataset.test.labels)
    images = join(scale(jnp.asarray(dataset.train.images)), scale(jnp.asarray(dataset.test.images)))
    codes = join(truth.train_codes[: len(dataset.train.labels)], truth.test_codes[: len(dataset.test.labels)])
    decoder = {"decoder": truth.variables} if truth.variables else {}
    return {"labels": labels, "codes": codes, "images": images, **decoder}


def _bank_shapes(image_shape: Sequence[int], settings: Settings) -> Any:
    count = settings["train_examples"] + settings["test_examples"]
    decoder: dict[str, Any] = {}
    if settings["dataset"].startswith("generated"):
        decoder = {"decoder": _vae_gan_shapes(image_shape, settings)["decoder"]}
        size = vae_gan_for(image_shape).latent
    else:
        size = _truth(settings["dataset"]).train_codes.shape[1]
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    return {"labels": labels, "codes": shape((count, size)), "images": shape((count, *image_shape)), **decoder}


@cache
def _truth(dataset: str) -> Truth:
    """What is known of a data set, by its name; a set that a run has generated keeps its decoder among the arrays."""
    # A set may be drawn when it is loaded, and a manifold made of its arrays while a program is traced.
    with jax.ensure_compile_time_eval():
        truth = load(dataset).truth
    assert truth is not None, dataset
    return truth


def _exact(image_shape: Sequence[int], arrays, key: Array | None, settings: Settings) -> Manifold:
    del key
    bank = Bank(arrays["labels"], arrays["codes"], arrays["images"])
    if "decoder" not in arrays:
        truth = _truth(settings["dataset"])
        return renderer(truth.decode, bank, truth.box)
    decoder = vae_gan_for(image_shape).decoder
    return renderer(lambda label, code: decoder.apply(arrays["decoder"], code[None])[0], bank, np.inf)


_PLANE = {"pca_dimensions": Setting("Dimensions of PCA, of all images or of neighbours.", 10)}
VAE_GAN = Kind(
    "VAE-GAN",
    {
        "vae_gan_epochs": Setting("Epochs of the VAE-GAN.", 20),
        "vae_gan_batch_size": Setting("Batch of the VAE-GAN.", 100),
        "vae_gan_learning_rate": Setting("Learning rate of the three Adams of the VAE-GAN.", 5e-4),
        "reconstruction_weight": Setting("Weight lambda of the reconstruction in the decoder's loss.", 0.005),
        "discriminator_steps": Setting("Discriminator steps a step of the VAE-GAN.", 1),
    },
    _vae_gan_fitting,
    None,
    _vae_gan_shapes,
    lambda image_shape, variables, key, settings: from_vae_gan(vae_gan_for(image_shape), variables, key),
    _vae_gan_samples,
)
PCA = Kind(
    "PCA",
    _PLANE,
    None,
    lambda dataset, settings: fit_pca(dataset.train.images, settings["pca_dimensions"]),
    _plane_shapes,
    lambda image_shape, plane, key, settings: pca(Plane(*plane)),
    limits=_plane_limits,
)
LOCAL_PCA = Kind(
    "PCA of neighbours",
    {**_PLANE, "neighbours": Setting("Neighbours that make a plane.", 50)},
    None,
    lambda dataset, settings: scale(jnp.asarray(dataset.train.images[:_COMPARED])),
    lambda image_shape, settings: jax.ShapeDtypeStruct(
        (min(settings["train_examples"], _COMPARED), *image_shape), jnp.float32
    ),
    lambda image_shape, images, key, settings: local_pca(images, settings["neighbours"], settings["pca_dimensions"]),
    limits=_neighbour_limits,
)
DENOISER = Kind(
    "denoiser",
    {
        "denoiser_epochs": Setting("Epochs of the denoiser.", 30),
        "denoiser_batch_size": Setting("Batch of the denoiser.", 100),
        "denoiser_learning_rate": Setting("Learning rate of the denoiser's Adam.", 2e-3),
        "denoiser_noise": Setting("Noise that the denoiser's projection starts at, a standard deviation.", 0.3),
        "denoiser_dimensions": Setting("Most dimensions of the denoiser's tangent spaces.", 16),
    },
    _denoiser_fitting,
    None,
    _denoiser_shapes,
    _denoiser,
)
# Of a data set that was generated from codes; it is no estimate.
EXACT = Kind("exact", {}, None, _bank, _bank_shapes, _exact, needs_truth=True)
KINDS: dict[str, Kind] = {
    "vae-gan": VAE_GAN,
    "pca": PCA,
    "local-pca": LOCAL_PCA,
    "denoiser": DENOISER,
    "exact": EXACT,
}
