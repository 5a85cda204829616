"""Inference before and after the norms of a model are folded into its convolutions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax import fold, linen
from experiments import models
from experiments.benchmarking import timing
from experiments.training.machine import devices

BEFORE, AFTER = "before", "after"
PARTS = ("resnet18", "simple_cnn")
PEERS = ()
# That the running statistics are made of.
EXAMPLES = 16


class Case(NamedTuple):
    """A model, and the shape of the images that it is given."""

    model: str
    images: tuple[int, ...]


CASES = (
    Case("resnet18", (1, 224, 224, 3)),
    Case("resnet18", (16, 224, 224, 3)),
    Case("simple_cnn", (1, 28, 28, 1)),
    Case("simple_cnn", (600, 28, 28, 1)),
)


def run(parts: Sequence[str] = PARTS, *, rounds: int = 9, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Measures the cases of these models, before and after in turn.

    Args:
      parts: names from `PARTS`.
      rounds: timings of each.
      seconds: about how long one timing takes.

    Returns:
      A row a case: the milliseconds that a batch takes (median, least, greatest), the ratio of after to before, taken
      round by round, and the normwise difference of the logits.
    """
    devices.keep_freed_memory()
    rows = []
    for case in CASES:
        if case.model not in parts:
            continue
        images = jnp.asarray(np.random.default_rng(0).normal(size=case.images), jnp.float32)
        programs = folded_model(case.model, images)
        logits = {name: np.asarray(program(images), np.float64) for name, program in programs.items()}
        variants = {name: partial(_steps, program, images) for name, program in programs.items()}
        measured = timing.in_turn(variants, rounds=rounds, seconds=seconds)
        row: dict[str, Any] = {
            "model": case.model,
            "images": list(case.images),
            "platform": jax.default_backend(),
            "milliseconds": {n: timing.spread([1e3 * s for s in v])._asdict() for n, v in measured.items()},
            "ratio": timing.spread(
                [after / before for after, before in zip(measured[AFTER], measured[BEFORE], strict=True)]
            )._asdict(),
            "difference": float(np.max(np.abs(logits[AFTER] - logits[BEFORE])) / np.max(np.abs(logits[BEFORE]))),
        }
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    """One line for a person."""
    texts = [f"{row['model']:12}{'x'.join(map(str, row['images'])):16}"]
    texts += [f"{name} {timing.Spread(**spread)} ms" for name, spread in row["milliseconds"].items()]
    texts += [f"ratio {timing.Spread(**row['ratio'])}", f"difference of the logits {row['difference']:.0e}"]
    return "   ".join(texts)


def folded_model(name: str, images: jax.Array) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The logits of a model for images such as these, before and after folding, each a jitted function."""
    model = models.create(name, num_classes=10, norm=partial(linen.BatchNorm, momentum=0.0), zero_last_scale=False)
    drawn = jnp.asarray(np.random.default_rng(1).normal(size=(EXAMPLES, *images.shape[1:])), jnp.float32)
    variables: Any = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    updates: Any = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, drawn)[1]
    variables = {**variables, **updates}
    if models.MODELS[name].pools_before_norm:
        # Its convolutions end with a max-pool, which a positive scale passes unchanged, and add their bias behind it:
        # the same model without norms reads what the function gives. (`linen.fold` cannot know the scales' signs.)
        apply, folded = models.create(name, num_classes=10, norm=None).apply, {"params": _without_norms(variables)}
    else:
        apply, folded = linen.fold(model, variables, None, images, train=False)
    evaluations = {BEFORE: (model.apply, variables), AFTER: (apply, folded)}
    # The variables are an argument, as in a server: of constants XLA would compute what it can while compiling.
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
