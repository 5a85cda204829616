"""How large the batch-size study is: presets, what a user changes of them, and what fits the data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.studies import convergence, generalisation, large_batch, smoothness, step_time
from experiments.studies import ramp as ramps
from experiments.studies.convergence import Data
from experiments.training.config import plan

# One in so many training examples is held out.
HELD_OUT = 12
# Of an epoch, at the very large batches of ladder and backwards.
FEWEST_UPDATES = 7
# A curve is fitted to the first; of the others a comparison is as large as one likes.
FEWEST_SIZES = {"convergence": 2, "grid": 1, "generalisation": 1}
# If no norm is asked for: batch statistics of one image are none, and the batch size should act by the gradient alone.
PLAIN = {"norm": "none"}


class Study(NamedTuple):
    """What to study.

    Attributes:
      options: of `TrainConfig`, of every run: data set, where it is, model.
      time: sizes to be timed.
      smoothness: runs whose losses and noise are looked at.
      convergence: runs to the target.
      backwards: one forward pass with several updates.
      ladder: a very large batch.
      generalisation: minima.
      search: run the search too.
      ramp: a batch that grows with the noise; run only where it is asked for.
    """

    options: dict[str, Any]
    time: step_time.Setting
    smoothness: smoothness.Setting
    convergence: convergence.Setting
    backwards: large_batch.Backwards
    ladder: large_batch.Ladder
    generalisation: generalisation.Setting
    search: bool = False
    ramp: ramps.Setting = ramps.Setting()


_MNIST_TIMED = (1, 6, 60, 250, 256, 264, 600, 1018, 1024, 1032, 4090, 4096, 4104, 6000)
PRESETS = {
    "quick": Study(
        {"dataset": "digits"},
        time=step_time.Setting((60, 256, 264, 1024), examples=8_000, rounds=2),
        smoothness=smoothness.Setting((6, 60, 240), 200, 64, 0.02, 320, 20),
        convergence=convergence.Setting(0.9, (30, 120), (32, 128, 512), (0.01, 0.02, 0.04), 2, (0, 1)),
        backwards=large_batch.Backwards(batch_size=2400, k=2, epochs=1, seeds=(0,), optimizers=("Nesterov",)),
        ladder=large_batch.Ladder(batch_size=2048, epochs=1, seeds=(0,), drop_remainder=True),
        generalisation=generalisation.Setting((64, 1024), epochs=1, steps=60, seeds=(0,)),
    ),
    "mnist": Study(
        {"dataset": "mnist"},
        time=step_time.Setting(_MNIST_TIMED, examples=30_000, rounds=5),
        smoothness=smoothness.Setting((1, 6, 60, 600), 1_000, 64, 0.01, 4_000, 80),
        convergence=convergence.Setting(
            0.98, (1, 6, 60, 600, 6000), (16, 64, 256, 1024), (0.0025, 0.005, 0.01), 20, (0, 1)
        ),
        backwards=large_batch.Backwards(epochs=3, seeds=(0,)),
        ladder=large_batch.Ladder(epochs=4, seeds=(0,)),
        generalisation=generalisation.Setting((64, 512, 4096), epochs=5, steps=250, seeds=(0, 1)),
    ),
    "mnist_full": Study(
        {"dataset": "mnist"},
        time=step_time.Setting(_MNIST_TIMED, examples=60_000, rounds=9),
        smoothness=smoothness.Setting((1, 6, 60, 600, 6000), 1_000, 64, 0.01, 8_000, 80),
        convergence=convergence.Setting(
            0.98,
            (1, 6, 60, 600, 6000),
            (4, 16, 64, 256, 1024, 4096, 16384),
            (0.0025, 0.005, 0.01),
            40,
            (0, 1, 2, 3, 4),
        ),
        backwards=large_batch.Backwards(),
        ladder=large_batch.Ladder(),
        generalisation=generalisation.Setting((16, 64, 512, 4096), epochs=12, steps=1_000, seeds=(0, 1, 2)),
        search=True,
    ),
}


def changed(
    study: Study,
    options: dict[str, Any],
    *,
    target: float | None = None,
    max_epochs: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> Study:
    """A study with what is given in place of what it has.

    Args:
      study: such as a preset.
      options: of every run; None: as it is.
      target: accuracy of the runs to a target.
      max_epochs: of those, after which one counts as not having reached it.
      batch_sizes: at which the rate is tuned and minima are compared; at the smallest, a ramp begins.
      rates: where the search begins, at the smallest of them; the least is that of a ramp.
      seeds: of every run that has several.

    Raises:
      UsageError: a value is out of range, or some do not rise.
    """
    for name, values, example in (
        ("batch_sizes", batch_sizes, "16,64,256"),
        ("learning_rates", rates, "0.01,0.02,0.04"),
        ("seeds", seeds, "0,1,2"),
    ):
        least = 0 if name == "seeds" else 1e-30
        given = list(values or ())
        if values is not None and not (given and least <= min(given) and max(given) < math.inf):
            raise UsageError(
                f"--{name} must be {'at least 0' if least == 0 else 'positive'}, as {example}, not {given}"
            )
        if given != sorted(set(given)):
            raise UsageError(f"--{name} must rise, as {example}, not {given}")
    if convergence.SEARCH_SEED in (seeds or ()):
        raise UsageError(f"--seeds: {convergence.SEARCH_SEED} is the seed of the search; take others")
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target}")
    runs, minima = study.convergence, study.generalisation
    if target is not None:
        runs = runs._replace(target=target)
    if max_epochs is not None:
        runs = runs._replace(max_epochs=max_epochs)
    if batch_sizes is not None:
        runs = runs._replace(fixed_sizes=tuple(batch_sizes), tuned_sizes=tuple(batch_sizes))
        minima = minima._replace(batch_sizes=tuple(batch_sizes))
        study = study._replace(ramp=study.ramp._replace(batch_size=batch_sizes[0]))
    if rates is not None:
        runs = runs._replace(rates=tuple(rates))
        study = study._replace(ramp=study.ramp._replace(learning_rate=rates[0]))
    study = study._replace(options={**study.options, **{k: v for k, v in options.items() if v is not None}})
    if seeds is not None:
        runs, minima = runs._replace(seeds=tuple(seeds)), minima._replace(seeds=tuple(seeds))
        study = study._replace(
            ladder=study.ladder._replace(seeds=tuple(seeds)),
            backwards=study.backwards._replace(seeds=tuple(seeds)),
            ramp=study.ramp._replace(seeds=tuple(seeds)),
        )
    return study._replace(convergence=runs, generalisation=minima)


def data_of(study: Study) -> Data:
    """The data set of a study, whose runs have no norm if none is asked for."""
    return with_held_out({**PLAIN, **study.options})


def with_held_out(options: dict[str, Any]) -> Data:
    """A data set, loaded to know its size. A twelfth is held out for a target, where that can be."""
    dataset = datasets.load(options["dataset"], options.get("data_dir"), image_size=options.get("image_size"))
    in_memory = isinstance(dataset.train, datasets.Examples)
    held_out = dataset.train.size // HELD_OUT if dataset.independent and in_memory else 0
    return Data(options, dataset.train.size - held_out, held_out)


def fitted(study: Study, examples: int, parts: Sequence[str]) -> Study:
    """The study without batch sizes that a training set does not have, or has in too few updates to tell anything.

    Raises:
      UsageError: too few are left for one of the parts.
    """
    runs, minima = study.convergence, study.generalisation

    def kept(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size for size in sizes if size <= examples)

    large = examples // FEWEST_UPDATES
    unit = 8 * study.backwards.k
    found = study._replace(
        time=study.time._replace(batch_sizes=kept(study.time.batch_sizes)),
        smoothness=study.smoothness._replace(
            batch_sizes=kept(study.smoothness.batch_sizes),
            noise_batch_size=min(study.smoothness.noise_batch_size, examples),
        ),
        convergence=runs._replace(fixed_sizes=kept(runs.fixed_sizes), tuned_sizes=kept(runs.tuned_sizes)),
        generalisation=minima._replace(batch_sizes=kept(minima.batch_sizes)),
        backwards=study.backwards._replace(batch_size=min(study.backwards.batch_size, max(unit, large // unit * unit))),
        ladder=study.ladder._replace(batch_size=min(study.ladder.batch_size, max(4, 2 ** (large.bit_length() - 1)))),
        # With room to grow once.
        ramp=study.ramp._replace(
            batch_size=min(
                study.ramp.batch_size, examples // (plan.RAMP_FACTOR * plan.MIN_UPDATES_PER_EPOCH) // 8 * 8 or 1
            )
        ),
    )
    tuned = found.convergence.tuned_sizes
    left = {"convergence": tuned, "grid": tuned, "generalisation": found.generalisation.batch_sizes}
    for part in parts:
        if part in left and len(left[part]) < FEWEST_SIZES[part]:
            raise UsageError(
                f"of the batch sizes of {part} at least {FEWEST_SIZES[part]} must be no larger than the {examples} "
                f"examples that are left to train on, and are {list(left[part])}; give --batch_sizes, or leave it out "
                "by --parts"
            )
    return found
