"""Free adversarial training: the gradient that moves the weights moves the images, too."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from robgrad import stacking
from robgrad.attacks import Loss, Norm, cross_entropy, norm_named
from robgrad.data import PIXEL_RANGE, scale
from robgrad.data.checks import checked_count
from robgrad.networks import Network, Variables, of_module, predicted
from robgrad.training.objectives import ADAM, Batch, Step, StepSizes, scheduled, typed_as
from robgrad.training.optimizers import Optimizer, updated
from robgrad.training.state import TrainState


def free_step(
    network: nn.Module | Network,
    norm: Norm | str,
    replays: int = 4,
    loss: Loss = cross_entropy,
    *,
    optimizer: Optimizer | optax.GradientTransformation | None = None,
) -> Step:
    """A step of free adversarial training (Shafahi et al., 2019): each batch is trained on `replays` times in a row.

    Each replay descends the loss of x + d by the weights and with the same backward pass ascends it by d, by a step of
    `numbers.epsilon` along the norm's steepest ascent, projected onto the ball; d starts from 0. Its authors go on
    from the last batch's d, and divide the epochs by the replays. The optimizer is updated at each replay.

    Raises:
      ValueError: if there are no replays, or the norm is unknown.
    """
    network, norm, optimizer = of_module(network), norm_named(norm), optimizer or ADAM
    checked_count("replay", replays)

    def step(state: TrainState, numbers: StepSizes, batch: Batch):
        images, labels = scale(batch.examples.images), batch.examples.labels
        numbers = jax.tree.map(lambda number: jnp.asarray(number, images.dtype), numbers)
        radius = jnp.asarray(numbers.epsilon)
        share = batch.weights / stacking.summed(batch.weights.sum())

        def mean_loss(params: Any, moves: Array, variables: Variables):
            logits, moved = network.train({**variables, "params": params}, images + moves, batch.weights)
            losses = jnp.where(labels < logits.shape[-1], jax.vmap(loss)(logits, labels), jnp.nan)
            total = jnp.sum(share * losses)
            return total, ({"loss": total, "accuracy": jnp.sum(share * (predicted(logits) == labels))}, moved)

        def replay(carry, _):
            variables, opt_state, moves = carry
            both = jax.grad(mean_loss, (0, 1), has_aux=True)
            (slopes, uphill), (metrics, moved) = both(variables["params"], moves, variables)
            slopes, metrics = stacking.summed((slopes, metrics))
            rates = {"learning_rate": numbers.learning_rate, "weight_decay": numbers.weight_decay}
            params, opt_state = updated(
                optimizer, slopes, opt_state, variables["params"], **rates, loss=metrics["loss"]
            )
            further = moves + radius * jax.vmap(norm.ascent)(uphill)
            further = jax.vmap(lambda move: norm.project(move, radius))(further)
            further = jnp.clip(images + further, *PIXEL_RANGE) - images
            return (typed_as(variables, {**moved, "params": params}), opt_state, further), metrics

        start = (state.variables, state.opt_state, jnp.zeros_like(images))
        (variables, opt_state, _), metrics = lax.scan(replay, start, length=replays)
        metrics = jax.tree.map(jnp.mean, metrics)
        return state._replace(variables=variables, opt_state=opt_state, step=state.step + 1), metrics

    return scheduled(step, optimizer)
