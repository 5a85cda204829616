"""The noise suite: what an estimate of the gradient noise adds to a training step that cuts its batch anyway."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from batchnorm_jax.batch_size import init_noise, update_noise, value_and_grad_with_noise

from .. import models
from ..problems import transformer
from ..records.benchmarks.noise import NoiseCostFile, NoiseCostRow
from ..training.machine import devices
from . import timing
from .suite import Chosen, Keep, Suite, forget

# How often the noise is measured, by the name of the variant: in every so many steps, or never.
SPARING_STEPS = 10
WITH, SPARING, WITHOUT = "with noise", f"in each {SPARING_STEPS}th step", "without"
EVERY = {WITH: 1, SPARING: SPARING_STEPS, WITHOUT: None}
MICRO_BATCHES = 4
AXIS = "batch"
OPTIMIZER = optax.adamw(1e-4)


class Work(NamedTuple):
    """A model to train, and a batch.

    Attributes:
      params: the parameters.
      loss_fn: (params, batch) -> the loss.
      batch: the batch, a tree of arrays whose first axis counts the examples.
    """

    params: Any
    loss_fn: Callable[[Any, Any], jax.Array]
    batch: Any


def _transformer(size: transformer.Size, examples: int) -> Work:
    init, loss_fn = transformer.model(size)
    characters = np.random.default_rng(0).integers(0, transformer.text()[1], (examples, size.length + 1))
    return Work(init(jax.random.key(0)), loss_fn, jnp.asarray(characters, jnp.int32))


def _resnet(width: int, examples: int) -> Work:
    model = models.create("resnet18", num_classes=10, norm=None).clone(width=width)
    r = np.random.default_rng(0)
    images, labels = r.normal(size=(examples, 32, 32, 3)).astype(np.float32), r.integers(0, 10, examples)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits: Any = model.apply(params, batch[0], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:2])
    return Work(params, loss_fn, (jnp.asarray(images), jnp.asarray(labels)))


# By whether the machine has an accelerator: sizes whose steps take some tens of milliseconds.
CASES: dict[str, Callable[[bool], Work]] = {
    "transformer": lambda large: _transformer(
        transformer.Size(512, 6, 8, 256) if large else transformer.Size(128, 2, 4, 64), 64 if large else 32
    ),
    "resnet18": lambda large: _resnet(64 if large else 16, 512 if large else 32),
}
PARTS = tuple(CASES)


def run(chosen: Chosen, keep: Keep = forget) -> list[NoiseCostRow]:
    """Measures training steps with Adam; with the estimate, with it now and then, and without it take turns.

    A step of micro-batches has gradient accumulation either way. On several devices the gradient is averaged over them
    either way, under `shard_map`.

    Args:
      chosen: the models, names from `PARTS`, and the timing.
      keep: a function that is given the rows so far after each row.

    Returns:
      One row per model and way of cutting the batch.
    """
    used = devices.set_up(None)
    rows = []
    for name in chosen.parts:
        work = CASES[name](used[0].platform != "cpu")
        examples = jax.tree.leaves(work.batch)[0].shape[0]
        ways: dict[str, tuple[Callable[..., Callable[[int], None]], int]] = {
            f"{MICRO_BATCHES} micro-batches": (accumulating_steps, 1)
        }
        if len(used) > 1 and examples % len(used) == 0:
            ways[f"{len(used)} devices"] = (partial(sharded_steps, used=used), len(used))
        for way, (make, number) in ways.items():
            variants = {kind: make(work, every=every) for kind, every in EVERY.items()}
            measured = timing.in_turn(variants, rounds=chosen.rounds, seconds=chosen.seconds)
            row = NoiseCostRow(
                model=name,
                parameters=sum(leaf.size for leaf in jax.tree.leaves(work.params)),
                batch_size=examples,
                way=way,
                platform=used[0].platform,
                devices=number,
                milliseconds=timing.milliseconds(measured),
                ratio=timing.ratios(measured, WITH, WITHOUT),
                sparing=timing.ratios(measured, SPARING, WITHOUT),
            )
            rows.append(row)
            print(describe(row), flush=True)
            keep(rows)
    return rows


def describe(row: NoiseCostRow) -> str:
    """Returns the line of the printed table."""
    texts = [f"{row.model:12}{row.parameters:>11,} parameters", f"batch {row.batch_size}", row.way]
    texts += [f"{name} {spread} ms" for name, spread in row.milliseconds.items()]
    for name, ratio in ((WITH, row.ratio), (SPARING, row.sparing)):
        if ratio is not None:
            texts.append(f"ratio {name} {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
    return "   ".join(texts)


SUITE = Suite(
    name="noise",
    help="what an estimate of the gradient noise adds to a step",
    parts=PARTS,
    measure=lambda chosen, _, keep: run(chosen, keep),
    file=NoiseCostFile,
)


def accumulating_steps(work: Work, *, every: int | None) -> Callable[[int], None]:
    """Returns a function that runs steps with gradient accumulation."""
    if every:
        grad_fn: Any = value_and_grad_with_noise(work.loss_fn, micro_batches=MICRO_BATCHES)
    else:
        grad_fn = partial(_accumulated, jax.value_and_grad(work.loss_fn))
    programs = [jax.jit(step, donate_argnums=0) for step in _of_both(grad_fn, every)]
    return _steps(programs, work.params, work.batch, every)


def _accumulated(grad_fn: Callable[..., Any], params: Any, batch: Any) -> tuple[jax.Array, Any, None]:
    """Accumulates gradients the same way, without an estimate."""
    parts = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(a.shape[0] // MICRO_BATCHES, MICRO_BATCHES, *a.shape[1:]), 1, 0), batch
    )

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, grad_fn(params, part)), None

    sums, _ = lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), parts)
    loss, gradient = jax.tree.map(lambda a: a / MICRO_BATCHES, sums)
    return loss, gradient, None


def sharded_steps(work: Work, *, every: int | None, used: Sequence[devices.Device]) -> Callable[[int], None]:
    """Returns a function that runs steps under `shard_map` on some devices."""
    mesh = jax.make_mesh((len(used),), (AXIS,), devices=used)

    def plain(params: Any, batch: Any) -> tuple[jax.Array, Any, None]:
        local = lax.pcast(params, AXIS, to="varying")
        loss, gradient = lax.pmean(jax.value_and_grad(work.loss_fn)(local, batch), AXIS)
        return loss, gradient, None

    grad_fn: Any = value_and_grad_with_noise(work.loss_fn, axis_name=AXIS) if every else plain
    programs = [
        jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P())),
            donate_argnums=0,
        )
        for step in _of_both(grad_fn, every)
    ]
    place = NamedSharding(mesh, P())
    batch = jax.device_put(work.batch, NamedSharding(mesh, P(AXIS)))
    return _steps(programs, jax.device_put(work.params, place), batch, every)


def _of_both(grad_fn: Callable[..., Any], every: int | None) -> list[Callable[..., Any]]:
    """Returns two steps of Adam: one without an estimate, and one that keeps the running average of its own."""

    def step(state: Any, batch: Any, *, when: bool) -> tuple[Any, jax.Array]:
        params, opt_state, noise = state
        loss, gradient, estimate = grad_fn(params, batch, when=when) if every else grad_fn(params, batch)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
        noise = update_noise(noise, estimate) if when else noise
        return (optax.apply_updates(params, updates), opt_state, noise), loss

    return [partial(step, when=when) for when in (False, True)]


def init_state(params: Any) -> tuple[Any, ...]:
    """Returns the state of a step at its start."""
    return params, OPTIMIZER.init(params), init_noise()


def _steps(programs: Sequence[Callable[..., Any]], params: Any, batch: Any, every: int | None) -> Callable[[int], None]:
    # Each variant gives its state away to the step, and so begins with its own copy.
    state, count = init_state(jax.tree.map(jnp.copy, params)), 0

    def run(number: int) -> None:
        nonlocal state, count
        for _ in range(number):
            state, loss = programs[measures(count, every)](state, batch)
            count += 1
            if jax.default_backend() == "cpu":
                jax.block_until_ready(loss)
        jax.block_until_ready(state)

    # Both programs are compiled before the time is taken.
    for _ in range(every or 0):
        run(1)
    return run


def measures(count: int, every: int | None) -> bool:
    """Returns whether the noise is measured in a step, by the number of steps before it."""
    return every is not None and count % every == 0
