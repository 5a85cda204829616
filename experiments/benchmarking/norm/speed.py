"""Times one layer, forward and backward, beside its peers, and on a GPU also relative to the memory bandwidth."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ...records.benchmarks.norm import OURS, Speed, SpeedRow
from ...training.machine import devices
from .. import timing
from ..suite import Chosen, Keep, forget
from . import layers
from .layers import Case

CPU_CASES = (
    Case((64, 32, 32, 64), "float32"),
    Case((256, 14, 14, 256), "float32"),
    Case((32, 56, 56, 64), "float32"),
    Case((128, 7, 7, 512), "float32"),
    Case((64, 32, 32, 64), "bfloat16"),
)
GPU_CASES = tuple(
    Case(shape, "bfloat16", fusion)
    for shape in ((64, 56, 56, 256), (256, 28, 28, 512), (256, 14, 14, 1024))
    for fusion in layers.FUSIONS
)
# The least number of passes over arrays of the input's size, by fusion. Forward: one read for the sums, one read and
# one write for the result. Backward: two reads for the sums, two reads and one write for the gradient. A residual adds
# one read, and one write and one read of another array.
PASSES = {"": 8, "relu": 8, "residual": 11}


NO_CPU, NO_GPU = "not measured: this is not a CPU", "not measured: no GPU here"


def on_cpu(chosen: Chosen, keep: Keep = forget) -> Speed:
    """Measures the cases for a CPU; on another platform, returns a note that they were not measured."""
    if jax.default_backend() != "cpu":
        return _not_measured(CPU_CASES, NO_CPU)
    rows = run(CPU_CASES, chosen, devices.cpu_cores(), keep)
    return Speed(rows=rows, geometric_mean_of_ratios=geometric_means(rows))


def on_gpu(chosen: Chosen, keep: Keep = forget) -> Speed:
    """Measures the cases for a GPU; on another platform, returns a note that they were not measured."""
    if jax.default_backend() != "gpu":
        return _not_measured(GPU_CASES, NO_GPU)
    rows = run(GPU_CASES, chosen, devices.cpu_cores(), keep)
    return Speed(rows=rows, geometric_mean_of_ratios=geometric_means(rows))


def _not_measured(cases: Sequence[Case], note: str) -> Speed:
    return Speed(rows=[SpeedRow(case=str(case)) for case in cases], note=note)


def run(cases: Sequence[Case], chosen: Chosen, threads: int, keep: Keep = forget) -> list[SpeedRow]:
    """Measures every case; this library and its peers take turns.

    Args:
      cases: the cases to measure.
      chosen: the peers, names from `layers.PEERS`, and the timing; a peer that is not installed is left out.
      threads: the number of threads that PyTorch may use.
      keep: a function that is given a `Speed` of the rows so far after each case.

    Returns:
      One row per case.
    """
    names = [OURS, *(peer for peer in chosen.peers if layers.available(peer))]
    rows = []
    for case in cases:
        rows.append(_row(case, names, chosen, threads))
        keep(Speed(rows=rows))
    return rows


def _row(case: Case, names: Sequence[str], chosen: Chosen, threads: int) -> SpeedRow:
    steps = {name: layers.steps(name, case, threads) for name in names}
    variants = {name: measured.run for name, measured in steps.items()}
    measured = timing.in_turn(variants, rounds=chosen.rounds, seconds=chosen.seconds)
    of_floor = None
    if jax.default_backend() == "gpu":
        floor = PASSES[case.fusion] * _pass_seconds(case)
        of_floor = {name: timing.spread(floor / seconds for seconds in values) for name, values in measured.items()}
    return SpeedRow(
        case=str(case),
        milliseconds=timing.milliseconds(measured),
        ratio={peer: timing.ratios(measured, OURS, peer) for peer in names[1:]},
        passes_by_xlas_count={name: one.passes for name, one in steps.items() if one.passes is not None},
        of_floor=of_floor,
    )


def geometric_means(rows: Sequence[SpeedRow]) -> dict[str, float]:
    """Returns the geometric mean of the median ratio over the rows, by peer."""
    peers = rows[0].ratio if rows else []
    return {peer: float(np.exp(np.mean([np.log(row.ratio[peer].median) for row in rows]))) for peer in peers}


def _pass_seconds(case: Case) -> float:
    """Measures the seconds of one read or write of the input, as half the time of a copy."""
    x = jnp.asarray(layers.draw(case).x, case.dtype)
    copy = jax.jit(lambda x: x + jnp.ones((), x.dtype))

    def copies(number: int) -> None:
        for _ in range(number):
            y = copy(x)
        jax.block_until_ready(y)

    return float(np.median(timing.in_turn({"copy": copies}, rounds=5, seconds=0.2)["copy"])) / 2
