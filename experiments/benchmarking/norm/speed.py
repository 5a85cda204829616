"""Forward and backward time of one layer beside its peers, and on a GPU beside what the memory allows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarking import timing
from experiments.benchmarking.norm import layers
from experiments.benchmarking.norm.layers import OURS, Case

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
# Passes over the input that a layer cannot do without: forward it is read for the sums, read and written; backward
# two arrays are read for the sums, two read and one written; a residual is read once and two more are written and read.
PASSES = {"": 8, "relu": 8, "residual": 11}


def run(
    cases: Sequence[Case], *, peers: Sequence[str], rounds: int, seconds: float, threads: int
) -> list[dict[str, Any]]:
    """Measures every case, ours and the peers in turn.

    Args:
      cases: what is measured.
      peers: names from `layers.PEERS`; one that is not installed is left out.
      rounds: timings of each.
      seconds: about how long one timing takes.
      threads: of PyTorch.

    Returns:
      A row a case: milliseconds of each library, and the ratio of ours to each, round by round.
    """
    names = [OURS, *(p for p in peers if layers.available(p))]
    rows = []
    for case in cases:
        variants, passes = {}, {}
        for name in names:
            if name in layers.TORCH_LAYERS:
                variants[name] = layers.torch_steps(case, threads, channels_last=name == "torch")
            else:
                variants[name], passes[name] = layers.jax_steps(name, case)
        measured = timing.in_turn(variants, rounds=rounds, seconds=seconds)
        row: dict[str, Any] = {
            "case": str(case),
            "milliseconds": {n: timing.spread([1e3 * s for s in v])._asdict() for n, v in measured.items()},
            "ratio": {
                peer: timing.spread([a / b for a, b in zip(measured[OURS], measured[peer], strict=True)])._asdict()
                for peer in names[1:]
            },
        }
        row["passes_by_xlas_count"] = passes
        if jax.default_backend() == "gpu":
            floor = PASSES[case.fusion] * _pass_seconds(case)
            row["of_floor"] = {n: timing.spread([floor / s for s in v])._asdict() for n, v in measured.items()}
        rows.append(row)
    return rows


def geometric_means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each peer the geometric mean over the rows of the median ratio."""
    peers = rows[0]["ratio"] if rows else []
    return {p: float(np.exp(np.mean([np.log(row["ratio"][p]["median"]) for row in rows]))) for p in peers}


def _pass_seconds(case: Case) -> float:
    """How long it takes to read or write the input once, as a copy of it does at the bandwidth measured here."""
    x = jnp.asarray(layers.draw(case).x, case.dtype)
    copy = jax.jit(lambda x: x + jnp.ones((), x.dtype))

    def copies(number: int) -> None:
        for _ in range(number):
            y = copy(x)
        jax.block_until_ready(y)

    return float(np.median(timing.in_turn({"copy": copies}, rounds=5, seconds=0.2)["copy"])) / 2
