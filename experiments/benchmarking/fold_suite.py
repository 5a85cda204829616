"""The fold suite: inference before and after the norms of a model are folded into its convolutions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax import fold, linen

from .. import models
from ..records.benchmarks.fold import FoldFile, FoldRow
from ..training.machine import devices
from . import timing
from .suite import Chosen, Keep, Suite, forget

BEFORE, AFTER = "before", "after"
# The number of drawn examples that the running statistics are computed from.
STATISTICS_EXAMPLES = 16


class Case(NamedTuple):
    """A model, and the shape of the batch of images that it classifies."""

    model: str
    images: tuple[int, ...]


CASES = (
    Case("resnet18", (1, 224, 224, 3)),
    Case("resnet18", (16, 224, 224, 3)),
    Case("simple_cnn", (1, 28, 28, 1)),
    Case("simple_cnn", (600, 28, 28, 1)),
)


PARTS = tuple(dict.fromkeys(case.model for case in CASES))


def run(chosen: Chosen, keep: Keep = forget) -> list[FoldRow]:
    """Measures the cases of the chosen models; the times before and after folding alternate.

    Args:
      chosen: the models, names from `PARTS`, and the timing.
      keep: a function that is given the rows so far after each case.

    Returns:
      One row per case.
    """
    devices.keep_freed_memory()
    rows = []
    for case in CASES:
        if case.model not in chosen.parts:
            continue
        images = jnp.asarray(np.random.default_rng(0).normal(size=case.images), jnp.float32)
        programs = folded_model(case.model, images)
        logits = {name: np.asarray(program(images), np.float64) for name, program in programs.items()}
        variants = {name: partial(_steps, program, images) for name, program in programs.items()}
        measured = timing.in_turn(variants, rounds=chosen.rounds, seconds=chosen.seconds)
        row = FoldRow(
            model=case.model,
            images=case.images,
            platform=jax.default_backend(),
            milliseconds=timing.milliseconds(measured),
            ratio=timing.ratios(measured, AFTER, BEFORE),
            difference=float(np.max(np.abs(logits[AFTER] - logits[BEFORE])) / np.max(np.abs(logits[BEFORE]))),
        )
        rows.append(row)
        print(describe(row), flush=True)
        keep(rows)
    return rows


def describe(row: FoldRow) -> str:
    """Returns the line of the printed table."""
    texts = [f"{row.model:12}{'x'.join(map(str, row.images)):16}"]
    texts += [f"{name} {spread} ms" for name, spread in row.milliseconds.items()]
    texts += [f"ratio {row.ratio}", f"difference of the logits {row.difference:.0e}"]
    return "   ".join(texts)


SUITE = Suite(
    name="fold",
    help="inference before and after norms are folded",
    parts=PARTS,
    measure=lambda chosen, _, keep: run(chosen, keep),
    file=FoldFile,
)


def folded_model(name: str, images: jax.Array) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Returns jitted functions from images to logits, one for the model before folding and one for it after."""
    model = models.create(name, num_classes=10, norm=partial(linen.BatchNorm, momentum=0.0), zero_last_scale=False)
    drawn = jnp.asarray(np.random.default_rng(1).normal(size=(STATISTICS_EXAMPLES, *images.shape[1:])), jnp.float32)
    variables: Any = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    updates: Any = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, drawn)[1]
    variables = {**variables, **updates}
    if models.MODELS[name].pools_before_norm:
        # A max-pool stands between each convolution and its norm. It commutes with a positive scale, and the bias is
        # added after it, so the folded kernels fit this model without norms. `linen.fold` cannot know that all scales
        # are positive.
        apply, folded = models.create(name, num_classes=10, norm=None).apply, {"params": _without_norms(variables)}
    else:
        apply, folded = linen.fold(model, variables, None, images, train=False)
    evaluations = {BEFORE: (model.apply, variables), AFTER: (apply, folded)}
    # The variables are arguments, as in a server: XLA would evaluate constants while it compiles.
    return {kind: partial(jax.jit(partial(f, train=False)), v) for kind, (f, v) in evaluations.items()}


def _without_norms(variables: dict[str, Any]) -> dict[str, Any]:
    params, stats = variables["params"], variables["batch_stats"]
    new = {name: value for name, value in params.items() if not name.startswith("BatchNorm")}
    for name, mean_and_var in stats.items():
        norm, layer = params[name], name.replace("BatchNorm", "ConvMaxPool")
        kernel, bias = fold(new[layer]["kernel"], None, **mean_and_var, scale=norm["scale"], beta=norm["bias"])
        new[layer] = {"kernel": kernel, "bias": bias}
    return new


def _steps(program: Callable[[jax.Array], jax.Array], images: jax.Array, number: int) -> None:
    for _ in range(number):
        logits = program(images)
    jax.block_until_ready(logits)
