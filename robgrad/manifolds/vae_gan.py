"""Training of the VAE-GAN whose decoder estimates the image manifold (Larsen et al., 2016), as the paper has it.

`vae_gan_step` makes the step of `training.fit`: three losses, each with its own Adam, stepped in the order
encoder, decoder, discriminator.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from robgrad import stacking
from robgrad.data import scale
from robgrad.manifolds.generators import VaeGan
from robgrad.manifolds.geometry import Manifold, autoencoder
from robgrad.training import Batch, Optimizer, Step, TrainState, plain_adam, typed_as, updated


class VaeGanSizes(NamedTuple):
    """Numbers of a step: the weight `lambda` of the decoder's reconstruction loss, and the learning rate."""

    reconstruction_weight: Array | float
    learning_rate: Array | float | None


def init_vae_gan(
    model: VaeGan,
    image_shape: Sequence[int],
    key: Array,
    optimizer: Optimizer | optax.GradientTransformation | None = None,
) -> TrainState:
    """Fresh variables and three optimizers' states, by default Adam's; both are dicts by network.

    Attributes of the networks must have a hash: tuples, not lists.
    """
    return _initial(model, tuple(image_shape), optimizer or plain_adam(), key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _initial(
    model: VaeGan, image_shape: tuple[int, ...], optimizer: Optimizer | optax.GradientTransformation, key: Array
) -> TrainState:
    keys = jax.random.split(key, 4)
    image, code, weights = jnp.zeros((1, *image_shape)), jnp.zeros((1, model.latent)), jnp.ones(1)
    variables = {
        "encoder": model.encoder.init(keys[0], image, weights),
        "decoder": model.decoder.init(keys[1], code, weights),
        "discriminator": model.discriminator.init(keys[2], image, weights),
    }
    opt_state = {name: optimizer.init(value["params"]) for name, value in variables.items()}
    return TrainState(variables, opt_state, keys[3], jnp.zeros((), jnp.int32))


def vae_gan_step(model: VaeGan, optimizer: Optimizer | optax.GradientTransformation | None = None) -> Step:
    """The step of `training.fit` for a VAE-GAN; data with a leaf `images`, numbers as in `VaeGanSizes`.

    With R = sum over pixels of |x - x~|, x~ decoded from a sample of the code, x_p decoded from a sample
    of the prior and D the discriminator's probability, each network descends its own loss in turn:

      encoder        mean(R + KL(N(mean, variance) || N(0, I)))
      decoder        mean(lambda R - log D(x~) - log D(x_p))
      discriminator  -mean(log D(x) + log(1 - D(x~)) + log(1 - D(x_p)))

    Running statistics of the encoder and the decoder follow the reconstructions of their own steps.
    Metrics: `reconstruction` (R), `divergence` (KL), `decoder` and `discriminator` (their losses). Each has an
    optimizer as in `training.classifier_step`, the same as the states began with; by default Adam of `model.betas`.
    """
    own = optimizer or plain_adam(*model.betas)

    def step(state: TrainState, numbers: VaeGanSizes, batch: Batch):
        images = scale(batch.examples.images)
        share = batch.weights / stacking.summed(batch.weights.sum())

        def noise(stage: int) -> Array:
            return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stage), (model.latent,)))(batch.keys)

        def mean(values: Array) -> Array:
            return jnp.sum(share * values)

        def run(network: nn.Module, variables, inputs):
            statistics = [name for name in variables if name != "params"]
            return network.apply(variables, inputs, batch.weights, mutable=statistics)

        def reconstruct(variables, stage: int):
            (centre, log_variance), encoder = run(model.encoder, variables["encoder"], images)
            code = centre + jnp.exp(0.5 * log_variance) * noise(stage)
            reconstructed, decoder = run(model.decoder, variables["decoder"], code)
            divergence = 0.5 * jnp.sum(jnp.exp(log_variance) + centre**2 - 1.0 - log_variance, axis=-1)
            return reconstructed, divergence, encoder, decoder

        def error(reconstructed: Array) -> Array:
            return jnp.abs(images - reconstructed).sum((1, 2, 3))

        def encoder_loss(variables):
            reconstructed, divergence, statistics, _ = reconstruct(variables, 0)
            parts = {"reconstruction": mean(error(reconstructed)), "divergence": mean(divergence)}
            return parts["reconstruction"] + parts["divergence"], (parts, statistics)

        def decoder_loss(variables):
            reconstructed, _, _, statistics = reconstruct(variables, 0)
            sampled, _ = run(model.decoder, variables["decoder"], noise(1))
            real = [run(model.discriminator, variables["discriminator"], fake)[0] for fake in (reconstructed, sampled)]
            fooled = sum(jax.nn.softplus(-logit) for logit in real)
            total = mean(numbers.reconstruction_weight * error(reconstructed) + fooled)
            return total, ({"decoder": total}, statistics)

        def discriminator_loss(variables, stage: int):
            reconstructed, *_ = reconstruct(variables, stage)
            sampled, _ = run(model.decoder, variables["decoder"], noise(stage + 1))
            real, statistics = run(model.discriminator, variables["discriminator"], images)
            fakes = [run(model.discriminator, variables["discriminator"], fake)[0] for fake in (reconstructed, sampled)]
            total = mean(jax.nn.softplus(-real) + sum(jax.nn.softplus(logit) for logit in fakes))
            return total, ({"discriminator": total}, statistics)

        def descend(variables, opt_state, name: str, loss, *arguments):
            """One step of one network, all others held."""

            def of_params(params):
                return loss(variables | {name: variables[name] | {"params": params}}, *arguments)

            params = variables[name]["params"]
            gradients, (metrics, statistics) = jax.grad(of_params, has_aux=True)(params)
            gradients, metrics = stacking.summed((gradients, metrics))
            params, moments = updated(own, gradients, opt_state[name], params, learning_rate=numbers.learning_rate)
            moved = typed_as(variables[name], {"params": params, **statistics})
            return variables | {name: moved}, opt_state | {name: moments}, metrics

        variables, opt_state, first = descend(state.variables, state.opt_state, "encoder", encoder_loss)
        variables, opt_state, second = descend(variables, opt_state, "decoder", decoder_loss)
        for turn in range(model.discriminator_steps):
            variables, opt_state, third = descend(
                variables, opt_state, "discriminator", discriminator_loss, 2 * turn + 2
            )
        return state._replace(variables=variables, opt_state=opt_state, step=state.step + 1), first | second | third

    return step


def from_vae_gan(model: VaeGan, variables, sampling_key: Array | None = None) -> Manifold:
    """The manifold of a trained VAE-GAN: the encoder's mean and the decoder, at running statistics.

    Args:
      model: its networks.
      variables: `TrainState.variables` of one replica.
      sampling_key: if given, codes are sampled around the mean instead, as the paper's code did; the
        same key gives every image the same noise, so give each image its own.
    """

    def encode(image: Array) -> Array:
        mean, log_variance = cast(tuple[Array, Array], model.encoder.apply(variables["encoder"], image[None]))
        if sampling_key is None:
            return mean[0]
        return mean[0] + jnp.exp(0.5 * log_variance[0]) * jax.random.normal(sampling_key, mean[0].shape, image.dtype)

    def decode(code: Array) -> Array:
        return cast(Array, model.decoder.apply(variables["decoder"], code[None]))[0]

    return autoencoder(encode, decode)
