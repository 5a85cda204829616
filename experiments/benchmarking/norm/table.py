"""The printed tables of the norm suite."""

from collections.abc import Sequence

from ...records.benchmarks.norm import AccuracyRow, Collectives, Memory, Speed, SpeedRow


def accuracy_lines(rows: Sequence[AccuracyRow]) -> list[str]:
    """Returns the lines on exactness."""
    lines = ["Greatest normwise error over 256 features, float32", f"{'':34}{'':14}{'variance':>10}{'y':>10}"]
    return lines + [f"{row.what:34}{row.name:14}{row.var:10.1e}{row.y:10.1e}" for row in rows]


def collectives_lines(result: Collectives) -> list[str]:
    """Returns the lines on collectives and their cost."""
    lines = [f"Collectives of one layer's train step, {result.features} features, {result.devices} devices"]
    for row in result.layer:
        ways = []
        for backward in (False, True):
            chosen = [c for c in row.collectives if c.backward == backward]
            ways.append(f"{len(chosen)} of {' and '.join(str(c.elements) for c in chosen) or 0} floats")
        lines.append(f"  {row.transform:28}{row.name:22}forward {ways[0]}, backward {ways[1]}")
    lines.append("  The step's time under shard_map, milliseconds: median (least to greatest)")
    for name, spread in result.time.milliseconds.items():
        text = f"    {name:22}{spread}"
        if name in result.time.ratio_to_once:
            text = f"{text:52}{result.time.ratio_to_once[name]} of batchnorm_jax"
        lines.append(text)
    lines.append("ResNet-50 train step under shard_map")
    for row in result.resnet50:
        lines.append(
            f"  {row.name:16}{row.of_norms_as_written} all-reduces of the norms as written; "
            f"{row.all_as_compiled} in total with the gradients, as XLA combined them"
        )
    return lines


def memory_lines(result: Memory) -> list[str]:
    """Returns the lines on kept bytes and on the memory of a network."""
    lines = ["Bytes per element that one layer keeps for its backward pass, bfloat16"]
    lines += [f"  {row.name:16}{row.fusion or 'plain':10}{row.bytes_an_element:6.2f}" for row in result.layer]
    network = result.resnet50
    lines.append(
        f"ResNet-50 train step, batch {network.batch_size}, {network.image_size} px, bfloat16: temporary memory"
    )
    for row in network.rows:
        lines.append(
            f"  {row.name:26}{row.temporary / 2**20:8.0f} MiB  {row.ratio_to_flax:.2f} of flax   "
            f"largest batch in {network.memory_gib:g} GiB: {row.largest_batch}"
        )
    return lines


def speed_lines(result: Speed) -> list[str]:
    """Returns the lines on time."""
    if result.note is not None:
        return [f"Forward and backward: {result.note}", *(f"  {row.case}" for row in result.rows)]
    lines = ["Forward and backward of one layer, milliseconds: median (least to greatest)"]
    lines += [line for row in result.rows for line in _case(row)]
    means = result.geometric_mean_of_ratios.items()
    return lines + [f"  geometric mean of the ratios to {name}: {value:.2f}" for name, value in means]


def _case(row: SpeedRow) -> list[str]:
    lines = [f"  {row.case}"]
    for name, spread in row.milliseconds.items():
        text = f"    {name:16}{spread}"
        if name in row.ratio:
            text = f"{text:50}ratio {row.ratio[name]}"
        if row.of_floor is not None:
            text = f"{text:85}{row.of_floor[name]} of the floor"
        lines.append(text)
    return lines
