"""All that is said of the norm, measured: what is exact, what devices exchange, what is kept, how long it takes."""

from collections.abc import Sequence
from typing import Any

import jax

from experiments.benchmarking.norm import accuracy, collectives, layers, memory, speed
from experiments.benchmarking.timing import Spread
from experiments.training.machine import devices

PARTS = ("accuracy", "collectives", "memory", "speed", "gpu")
NOT_MEASURED = "not measured: no GPU here"


def run(
    parts: Sequence[str] = PARTS, *, peers: Sequence[str] = layers.PEERS, rounds: int = 9, seconds: float = 0.5
) -> dict:
    """Measures the parts, prints each as it is done.

    Args:
      parts: names from `PARTS`.
      peers: names from `layers.PEERS`, for the speed.
      rounds: timings of each layer.
      seconds: about how long one timing takes.

    Returns:
      The figures by part. Where there is no GPU, `gpu` has the cases and says that they are not measured.
    """
    # What every library frees, the C library keeps: else a fresh page for each result is what is timed.
    devices.keep_freed_memory()
    timed: dict[str, Any] = {"peers": peers, "rounds": rounds, "seconds": seconds, "threads": devices.cpu_cores()}
    results: dict[str, Any] = {}
    for part in parts:
        if part == "accuracy":
            results[part] = accuracy.run()
        elif part == "collectives":
            results[part] = collectives.run(rounds=rounds, seconds=seconds)
        elif part == "memory":
            results[part] = memory.run()
        elif part == "speed" and jax.default_backend() == "cpu":
            rows = speed.run(speed.CPU_CASES, **timed)
            results[part] = {"rows": rows, "geometric_mean_of_ratios": speed.geometric_means(rows)}
        elif part == "gpu" and jax.default_backend() == "gpu":
            results[part] = {"rows": speed.run(speed.GPU_CASES, **timed)}
        else:
            cases = speed.GPU_CASES if part == "gpu" else speed.CPU_CASES
            results[part] = {"rows": [{"case": str(case)} for case in cases], "note": NOT_MEASURED}
            if part == "speed":
                results[part]["note"] = "not measured: this is not a CPU"
        print("\n".join(_DESCRIBE[part](results[part])), end="\n\n", flush=True)
    return results


def _describe_accuracy(rows) -> list[str]:
    lines = ["Greatest normwise error over 256 features, float32", f"{'':34}{'':14}{'variance':>10}{'y':>10}"]
    return lines + [f"{r['what']:34}{r['name']:14}{r['var']:10.1e}{r['y']:10.1e}" for r in rows]


def _describe_collectives(result) -> list[str]:
    lines = [f"Collectives of one layer's train step, {result['features']} features, {result['devices']} devices"]
    for row in result["layer"]:
        ways = []
        for backward in (False, True):
            chosen = [c for c in row["collectives"] if c["backward"] == backward]
            ways.append(f"{len(chosen)} of {' and '.join(str(c['elements']) for c in chosen) or 0} floats")
        lines.append(f"  {row['transform']:28}{row['name']:22}forward {ways[0]}, backward {ways[1]}")
    lines.append("  The step's time under shard_map, milliseconds: median (least to greatest)")
    for name, value in result["time"]["milliseconds"].items():
        text = f"    {name:22}{Spread(**value)}"
        if name in result["time"]["ratio_to_once"]:
            text = f"{text:52}{Spread(**result['time']['ratio_to_once'][name])} of batchnorm_jax"
        lines.append(text)
    lines.append("ResNet-50 train step under shard_map")
    for row in result["resnet50"]:
        lines.append(
            f"  {row['name']:16}{row['of_norms_as_written']} all-reduces of the norms as written; "
            f"{row['all_as_compiled']} in all, gradients too, as XLA combined them"
        )
    return lines


def _describe_memory(result) -> list[str]:
    lines = ["Bytes an element that one layer keeps for its backward pass, bfloat16"]
    for row in result["layer"]:
        lines.append(f"  {row['name']:16}{row['fusion'] or 'plain':10}{row['bytes_an_element']:6.2f}")
    net = result["resnet50"]
    lines.append(f"ResNet-50 train step, batch {net['batch_size']}, {net['image_size']} px, bfloat16: temporary memory")
    for row in net["rows"]:
        lines.append(
            f"  {row['name']:26}{row['temporary'] / 2**20:8.0f} MiB  {row['ratio_to_flax']:.2f} of flax   "
            f"largest batch in {net['memory_gib']:g} GiB: {row['largest_batch']}"
        )
    return lines


def _describe_speed(result) -> list[str]:
    if "note" in result:
        return [f"Forward and backward: {result['note']}", *(f"  {row['case']}" for row in result["rows"])]
    lines = ["Forward and backward of one layer, milliseconds: median (least to greatest)"]
    for row in result["rows"]:
        lines.append(f"  {row['case']}")
        for name, value in row["milliseconds"].items():
            text = f"    {name:16}{Spread(**value)}"
            if name in row["ratio"]:
                text = f"{text:50}ratio {Spread(**row['ratio'][name])}"
            if "of_floor" in row:
                text = f"{text:85}{Spread(**row['of_floor'][name])} of the floor"
            lines.append(text)
    for name, value in result.get("geometric_mean_of_ratios", {}).items():
        lines.append(f"  geometric mean of the ratios to {name}: {value:.2f}")
    return lines


_DESCRIBE = {
    "accuracy": _describe_accuracy,
    "collectives": _describe_collectives,
    "memory": _describe_memory,
    "speed": _describe_speed,
    "gpu": _describe_speed,
}
