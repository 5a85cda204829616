"""The cost of pooling by the number of devices: the times of the links against published ones, and the page."""

import re
from pathlib import Path

import pytest

from experiments import _files
from experiments.benchmarking.topology import pods, table
from experiments.benchmarking.topology.interconnect import INTERCONNECTS
from experiments.compiled.speeds import SPEEDS
from experiments.records.benchmarks.topology import Figures, TopologyFile

ROOT = Path(__file__).parent.parent
US = 1e-6


@pytest.mark.parametrize(
    ("chip", "devices", "size", "seconds"),
    [
        # "How to Scale Your Model", part 3: a gather takes half the sum of the sides, in hops, where they are rings;
        # an all-reduce twice that.
        ("v5e", 256, 4, 2 * (16 + 16) / 2 * US),
        ("v5p", 4096, 4, 2 * (16 + 16 + 16) / 2 * US),
        # Without rings, from one end to the other: 2 x 4 chips, and 4 x 4.
        ("v5e", 8, 4, 2 * (1 + 3) * US),
        ("v5e", 16, 4, 2 * (3 + 3) * US),
        # Large arrays by bandwidth: there, 2 V / (bidirectional bandwidth x axes).
        ("v5p", 64, 1e9, 2 * 1e9 / (1.8e11 * 3)),
        ("v5e", 256, 1e9, 2 * 1e9 / (9e10 * 2)),
        # NCCL's tree, LL: 6.8 us, twice seven steps of 0.6 us, and twice log2(nodes) of 5 us.
        ("h100", 8, 0, (6.8 + 2 * 7 * 0.6) * US),
        ("h100", 16, 0, (6.8 + 2 * (7 * 0.6 + 5)) * US),
        ("h100", 4096, 0, (6.8 + 2 * (7 * 0.6 + 9 * 5)) * US),
        ("h100", 1, 4, 0),
        ("v5e", 1, 4, 0),
    ],
)
def test_an_all_reduce_takes_what_is_published(chip, devices, size, seconds):
    assert INTERCONNECTS[chip].all_reduce_seconds(devices, size) == pytest.approx(seconds)


@pytest.mark.parametrize("devices", [0, 3, 512])
def test_numbers_of_chips_that_there_are_not(devices):
    with pytest.raises(ValueError, match="power of two up to 256"):
        INTERCONNECTS["v5e"].all_reduce_seconds(devices, 1)


def figures(**changes):
    nothing = {
        "passes": None,
        "cycles_usually": None,
        "temporary": 0,
        "total": 0,
        "collective_elements": 0,
        "seconds": 0,
    }
    given = {"cycles": 3_000_000, "collectives": 10, "collective_bytes": 1000, "bytes": 10**9}
    return Figures(**nothing, **{**given, **changes})


@pytest.mark.parametrize("chip", SPEEDS)
def test_more_devices_cost_more_and_a_span_the_same(chip):
    found = pods.costs(chip, figures(), figures(collectives=4, collective_bytes=400))
    assert [cost.devices for cost in found] == [8 * 2**i for i in range(len(found))]
    assert found[-1].devices == INTERCONNECTS[chip].largest
    whole = [cost.whole_seconds for cost in found]
    assert whole[0] == min(whole) and whole[-1] > 2 * whole[0]
    assert {cost.span_seconds for cost in found} == {whole[0]}
    assert found[0].all_reduces == 6 and found[0].bytes == 600
    expected = 10**9 / 3.35e12 if chip == "h100" else 3e6 / {"v5e": 1.5e9, "v5p": 1.75e9}[chip]
    assert found[0].step_seconds == pytest.approx(expected, rel=0.01)


def test_pooling_that_adds_nothing_costs_nothing():
    found = pods.costs("v5e", figures(), figures())
    assert {cost.whole_seconds for cost in found} == {0} and pods.first_noticeable(found) is None


def test_the_page_says_what_the_rows_say():
    """Each table of the page is what the benchmark prints of the rows beside it."""
    page = (ROOT / "docs" / "guide" / "pods.md").read_text()
    blocks = re.findall(r"```text\n(What pooling adds.*?)\n```", page, flags=re.DOTALL)
    printed = []
    for path in sorted((ROOT / "docs" / "results" / "topology" / "pods").glob("*.json")):
        results = _files.read_json(path, TopologyFile).rows
        chip = results.topology.partition(":")[0]
        rows = {row.job.variant: row.figures for row in results.resnet50}
        found = pods.costs(chip, rows["plain"], rows["local"])
        assert found == results.pods
        printed.append("\n".join(table.pods_lines(chip, found)).strip())
    assert printed and sorted(blocks) == sorted(printed)
