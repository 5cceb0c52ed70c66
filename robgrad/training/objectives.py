"""What training descends, and the step that does so: attack, objective, update, each by itself.

An objective says what becomes of one device's share of a batch; the attack is handed to it, so that standard and
adversarial training, TRADES and whatever comes next differ in a few lines. To add one is to write such a function
and name it in `named.OBJECTIVES`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from robgrad import stacking
from robgrad.attacks import Attack, Loss, cross_entropy
from robgrad.data import PIXEL_RANGE, scale
from robgrad.networks import Network, Variables, logits_fn, of_module, predicted
from robgrad.training.augmentation import Augmentation
from robgrad.training.averaging import Averaging, averaged
from robgrad.training.labelling import Labelling, labelled
from robgrad.training.optimizers import Optimizer, plain_adam, updated
from robgrad.training.state import TrainState

# Folded into an image's key, so that augmentations draw other numbers than attacks and objectives.
AUGMENTED = 2**31 - 1


class StepSizes(NamedTuple):
    """Numbers of a classifier's step; scalars, or `[S]` for a stack. Radii are in units of the pixel range [-1, 1].

    Attributes:
      epsilon, step_size: of the attack.
      learning_rate: of the optimizer, 1e-3 where None; an optimizer of Optax's own has its rate itself.
      weight: of an objective's second term, for instance TRADES' beta.
      weight_decay: of the optimizer, 0 where None; an optimizer of Optax's own has its decay itself.
    """

    epsilon: Array | float = 0.0
    step_size: Array | float = 0.0
    learning_rate: Array | float | None = None
    weight: Array | float = 0.0
    weight_decay: Array | float | None = None


class Batch(NamedTuple):
    """One device's share of a batch.

    Attributes:
      examples: the data's rows, as given to `fit`.
      weights: 1 for each example, 0 for padding; they sum to the batch size over the data axis.
      keys: a random key for each example, the same however the batch is split.
    """

    examples: Any
    weights: Array
    keys: Array


class Outcome(NamedTuple):
    """What an objective makes of a batch: each example's loss `[B]`, logits `[B, C]` to count hits by, variables.

    The variables are those given, with what the network's training mode has moved.
    """

    losses: Array
    logits: Array
    variables: Variables


class Passes(NamedTuple):
    """What an objective may use of the network as it is before the step.

    Attributes:
      train: `(variables, images)` to logits and moved variables, in training mode; differentiable.
      evaluate: images to logits in evaluation mode; differentiable by the images, not by the variables.
      perturb: `(images, labels)` to attacked images, by the network in evaluation mode, not differentiated. Labels
        are whatever the attack's loss understands; those that the objective was given, smoothed or mixed, stand for the
        class of the greatest probability.
      batch: what the step was given: the examples with all they carry, and a random key for each.
    """

    train: Callable[[Variables, Array], tuple[Array, Variables]]
    evaluate: Callable[[Array], Array]
    perturb: Callable[[Array, Any], Array]
    batch: Batch


# `(variables, passes, images, labels, numbers)`; labels are classes `[B]`, smoothed or mixed probabilities `[B, C]`.
Objective = Callable[[Variables, Passes, Array, Array, StepSizes], Outcome]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def adversarial(loss: Loss = cross_entropy) -> Objective:
    """The loss of the attacked batch in place of the batch (Madry et al., 2018); with `no_attack` standard training."""

    def objective(variables, passes: Passes, images, labels, numbers):
        logits, variables = passes.train(variables, passes.perturb(images, labels))
        return Outcome(jax.vmap(loss)(logits, labels), logits, variables)

    return objective


def trades() -> Objective:
    """TRADES (Zhang et al., 2019): CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')), beta = `numbers.weight`.

    The attack finds x' by ascending the second term from near x: build it with `attacks.kl_divergence` and a
    `random_start`, since its gradient is zero at x itself (its authors add normal noise of deviation 0.001 in pixels
    of [0, 1]); it is handed the clean probabilities for a label.
    Hits are counted on the attacked batch.
    """

    def objective(variables, passes: Passes, images, labels, numbers):
        attacked = passes.perturb(images, jax.nn.softmax(passes.evaluate(images)))
        clean, variables = passes.train(variables, images)
        logits, variables = passes.train(variables, attacked)
        # From logarithms, since a probability may round to 0, where x log x has no derivative.
        own, theirs = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
        divergence = jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)
        return Outcome(jax.vmap(cross_entropy)(clean, labels) + numbers.weight * divergence, logits, variables)

    return objective


def init_classifier(
    network: nn.Module | Network,
    image_shape: Sequence[int],
    key: Array,
    optimizer: Optimizer | optax.GradientTransformation | None = None,
) -> TrainState:
    """A fresh classifier for images `[H, W, C]`: initial variables, and the optimizer's state, Adam's where None."""
    init_key, run_key = jax.random.split(key)
    variables = of_module(network).init(init_key, image_shape)
    moments = _zeroed(optimizer or ADAM, variables["params"])
    return TrainState(variables, moments, run_key, jnp.zeros((), jnp.int32))


ADAM = plain_adam()
_plainly = jax.jit(ADAM.init)


def _zeroed(optimizer: Optimizer | optax.GradientTransformation, params: Any) -> Any:
    """The state that an optimizer starts from; one program for that of every network."""
    return _plainly(params) if optimizer is ADAM else jax.jit(optimizer.init)(params)


def classifier_step(
    network: nn.Module | Network,
    attack: Attack,
    objective: Objective | None = None,
    *,
    optimizer: Optimizer | optax.GradientTransformation | None = None,
    augmentation: Augmentation | None = None,
    labelling: Labelling | None = None,
    averaging: Averaging | None = None,
    ramp: optax.Schedule | None = None,
) -> Step:
    """One step of an optimizer on the mean of an objective, by default of Adam and of `adversarial()`.

    The attack sees the variables before the step in evaluation mode, one image at a time. With
    `attacks.no_attack` this is standard training. Metrics: `loss` and `accuracy`, of what the objective counts.
    Needs a mapped axis `stacking.DATA`, over which gradients and metrics are summed.

    Args:
      network: what is trained.
      attack: on the network before the step.
      objective: what is descended.
      optimizer: `optimizer_named(...)`, whose rate and decay are the step's numbers, or any of Optax's. States are to
        come from `init_classifier` with the same.
      augmentation: `(key, image) -> image`, before the attack, with a key of each image.
      labelling: smoothed, mixed or weighted labels.
      averaging: of the variables over steps, kept in `TrainState.average`; see `averaging.averaged`.
      ramp: steps to a multiple of the attack's radius and step size, a curriculum, for instance
        `optax.linear_schedule(0.0, 1.0, 500)`.

    Raises:
      ValueError: if the attack is of another pixel range than [-1, 1].
    """
    network, objective, optimizer = of_module(network), objective or adversarial(), optimizer or ADAM
    check_range_of(attack)

    def step(state: TrainState, numbers: StepSizes, batch: Batch):
        if not (hasattr(batch.examples, "images") and hasattr(batch.examples, "labels")):
            raise ValueError("expected data with images and labels: give data.Split(images, labels)")
        images, classes = scale(batch.examples.images), batch.examples.labels
        # Of the images' type, where JAX makes float64 of a Python number.
        numbers = jax.tree.map(lambda number: jnp.asarray(number, images.dtype), numbers)
        if ramp is not None:
            part = jnp.asarray(ramp(state.step), images.dtype)
            numbers = numbers._replace(epsilon=part * numbers.epsilon, step_size=part * numbers.step_size)
        share = batch.weights / stacking.summed(batch.weights.sum())
        sizes = jnp.asarray(numbers.epsilon), jnp.asarray(numbers.step_size)
        if augmentation is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, AUGMENTED))(batch.keys)
            images = jax.vmap(augmentation)(keys, images).astype(images.dtype)
        count = _classes_of(network, state.variables, images)
        labels, each = classes, jnp.ones((), images.dtype)
        if labelling is not None:
            key = jax.random.fold_in(state.key, ~state.step)
            images, labels, each = labelled(labelling, key, images, classes, count, batch.weights)
        hardest = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)

        def perturb(images, goals):
            own = logits_fn(network, state.variables)
            one = jax.vmap(lambda key, image, label: attack(key, own, image, label, *sizes))
            return lax.stop_gradient(one(batch.keys, images, hardest if goals is labels else goals))

        passes = Passes(
            lambda variables, images: network.train(variables, images, batch.weights),
            partial(network.evaluate, state.variables),
            perturb,
            batch,
        )

        # On the whole batch, since `vmap` over examples would form one kernel gradient for each.
        def mean_loss(params):
            outcome = objective({**state.variables, "params": params}, passes, images, labels, numbers)
            hits = predicted(outcome.logits) == hardest
            # A label beyond the logits would be clamped in silence.
            losses = jnp.where(classes < count, each * outcome.losses, jnp.nan)
            total = jnp.sum(share * losses)
            return total, ({"loss": total, "accuracy": jnp.sum(share * hits)}, outcome.variables)

        params = state.variables["params"]
        gradients, (metrics, moved) = jax.grad(mean_loss, has_aux=True)(params)
        gradients, metrics = stacking.summed((gradients, metrics))
        rates = {"learning_rate": numbers.learning_rate, "weight_decay": numbers.weight_decay}
        params, opt_state = updated(optimizer, gradients, state.opt_state, params, **rates, loss=metrics["loss"])
        variables = typed_as(state.variables, {**moved, "params": params})
        state = state._replace(variables=variables, opt_state=opt_state, step=state.step + 1)
        return state._replace(average=averaged(averaging, state)), metrics

    step.attack = attack  # type: ignore[attr-defined]
    return scheduled(step, optimizer)


def check_range_of(attack: Any) -> None:
    """Refuses an attack that would clip the images of training, which are in [-1, 1].

    Raises:
      ValueError: if its pixel range does not hold that.
    """
    low, high = getattr(attack, "pixel_range", PIXEL_RANGE)
    if np.any(np.asarray(low) > PIXEL_RANGE[0]) or np.any(np.asarray(high) < PIXEL_RANGE[1]):
        raise ValueError(
            f"expected an attack of pixels in {list(PIXEL_RANGE)}, to which training maps images, got one in "
            f"{[low, high]}; leave pixel_range out, and give radii in those units"
        )


def _classes_of(network: Network, variables: Variables, images: Array) -> int:
    """How many logits a network of batches has, if it is one.

    Raises:
      ValueError: if it is not.
    """
    made = jax.eval_shape(network.evaluate, variables, images)
    shape = getattr(made, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
        got = type(made).__name__ if shape is None else list(shape)
        raise ValueError(
            "expected a network of batches of images to logits [B, classes], two classes or more, got "
            f"{got} of images {list(images.shape)}"
        )
    return shape[1]


def scheduled(step: Step, optimizer: Any) -> Step:
    """A step that says for how many steps its optimizer's schedule is made, where it has one: `fit` refuses more."""
    if getattr(optimizer, "steps", None) is not None:
        step.schedule_steps = optimizer.steps  # type: ignore[attr-defined]
    return step


def typed_as(old: Any, new: Any) -> Any:
    """New values of a tree in the old one's types, which with JAX's float64 on a step's statistics may outgrow."""
    return jax.tree.map(lambda before, after: after.astype(before.dtype), old, new)
