"""A dry run compiles the update of a run from shapes alone, here or for a topology, and says what it takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from experiments import _flags, data, train
from experiments._errors import UsageError
from experiments.compiled import targets
from experiments.compiled.arithmetic import flop
from experiments.compiled.targets import CHIPS
from experiments.models import layout
from experiments.records.runs import StepMemory
from experiments.training import dry_run, estimate
from experiments.training.config import plan as plans
from experiments.training.config import presets
from experiments.training.config.options import TrainConfig
from experiments.training.machine import devices
from experiments.training.step import feeding, updates
from tests.programs import use_own_flags
from tests.test_data import make_tfds

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes an empty folder the working directory, the cache and the TFDS directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHNORM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def quick(**options):
    """A configuration whose update compiles in a second."""
    return TrainConfig(**{"model": "tests.own:model", "num_devices": 2, **options})


def printed(config, capsys, name=dry_run.HERE):
    """The exit status, and the lines by their labels."""
    status = dry_run.run(config, name)
    lines = capsys.readouterr().out.splitlines()
    return status, {line[:10].strip(): line[10:] for line in lines}


def test_a_run_is_compiled_here_and_nothing_is_written(place, capsys):
    status, lines = printed(TrainConfig(batch_size=64, num_devices=8), capsys)
    assert status == 0 and list(place.iterdir()) == []
    assert lines["dry run"].startswith("here, 8 x cpu")
    assert lines["batch"] == "global 64 = 8 cpu devices x 8 per device x 1 accumulation"
    assert lines["updates"].startswith("18,740 in 20 epochs of 937")
    assert lines["model"] == "simple_cnn in float32: 13,000 parameters"
    assert "28x28x1, 10 classes" in lines["images"] and "kept on every device" in lines["images"]
    assert "GiB on all devices together, of " in lines["memory"]
    assert "collectives of 0.1 MiB in all for an update" in lines["network"]
    assert "not estimated" in lines["step"] and "run" not in lines


def test_a_preset_of_imagenet_is_compiled_without_imagenet(place, capsys):
    """At a tiny size: the data set is known by name, and streamed as it would be."""
    tiny = {"image_size": 8, "model": "tests.own:model", "batch_size": 128, "num_devices": 8}
    status, lines = printed(presets.configure("mlperf_lars", tiny), capsys)
    assert status == 0 and list(place.iterdir()) == []
    assert lines["data"] == "imagenet2012: 1,281,167 training examples"
    assert lines["images"] == (
        "8x8x3, 1,000 classes, assumed as published, since it is not prepared here; read by the hosts while they train"
    )
    assert lines["norm"] == "batch, statistics over spans of 64 examples"
    assert lines["updates"].startswith("420,378 in 42 epochs of 10,009")


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"batch_size": 60}, "here", "--batch_size=60 is not divisible by 8 devices; .* 56 and 64"),
        ({"image_size": 8}, "here", "--image_size is for TFDS data sets"),
        ({"dataset": "stl10"}, "here", "'stl10' are not known: .* none of cifar10, .*imagenet2012"),
        ({"dataset": "imagenet2012"}, "here", "several sizes .* give --image_size"),
        ({"num_devices": None, "distributed": True}, "h100:16", "is one process; .* --dry_run=h100:16"),
        ({"num_devices": None, "problem": "mine:problem"}, "here", "--problem=mine:problem is a program of its own"),
    ],
)
def test_a_run_that_cannot_be_is_refused(place, options, name, message):
    with pytest.raises(UsageError, match=message):
        dry_run.run(TrainConfig(**{"batch_size": 64, "num_devices": 8, **options}), name)


def test_a_topology_is_taken_whole():
    for whole, advice in ((False, "112. Or give --num_devices=1."), (True, "112.")):
        with pytest.raises(UsageError) as refused:
            plans.check_divisible(TrainConfig(batch_size=100), 100, 16, 4, all_devices=whole)
        assert str(refused.value).endswith(f"96 and {advice}")


def test_without_the_compiler_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda name: False)
    for name, package in (("v5e:4x4", "libtpu"), ("h100:8", "jax-cuda12-plugin")):
        with pytest.raises(UsageError, match=f"--dry_run={name}: {package} is not installed; .*topology"):
            dry_run.run(TrainConfig(), name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("h200:8", "--dry_run: unknown topology 'h200'; there are: h100, .*--dry_run=here"),
        ("v5e", "--dry_run: topology 'v5e': chips along each axis are needed"),
        ("", "--dry_run is empty"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_before_any_work(value, message, monkeypatch):
    use_own_flags(train, monkeypatch)
    with pytest.raises(UsageError, match=message):
        _flags.parse(["train", f"--dry_run={value}"])


def test_a_dry_run_does_not_need_its_workdir(place, monkeypatch):
    use_own_flags(train, monkeypatch)
    (place / "file").write_text("in the way")
    _flags.parse(["train", "--dry_run=here", "--workdir=file/run"])


@pytest.mark.parametrize("name", data.DATASETS.names)
def test_an_outline_is_that_of_the_data_set(name):
    loaded, (outlined, _) = data.load(name), data.outlined(name)
    assert (loaded.num_classes, loaded.independent) == (outlined.num_classes, outlined.independent)
    assert [*loaded.test] == [*outlined.test]
    for a, b in zip([loaded.train, *loaded.test.values()], [outlined.train, *outlined.test.values()], strict=True):
        assert (a.size, a.image_shape, a.labels.shape, a.labels.dtype) == (b.size, b.image_shape, *_of(b.labels))
        assert a.images.nbytes == b.images.nbytes


def _of(array):
    return array.shape, array.dtype


def test_an_outline_of_a_prepared_data_set_is_its_description(place):
    make_tfds(place / "tfds", "tiny")
    loaded, (outlined, source) = data.load("tiny"), data.outlined("tiny")
    assert "description" in source and outlined.num_classes == 3
    assert (loaded.train.size, loaded.train.image_shape) == (outlined.train.size, outlined.train.image_shape)
    resized, _ = data.outlined("tiny", image_size=6)
    assert data.is_streamed(resized.train) and resized.train.read(np.arange(2)).images.shape == (2, 6, 6, 1)
    held_out, _ = data.outlined("cifar10", validation_examples=1000)
    assert held_out.train.size == 49_000 and held_out.test["validation"].size == 1000


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_shapes_are_those_of_the_first_update(resident, micro):
    config = TrainConfig(batch_size=32, accumulation_steps=micro)
    dataset, _ = data.outlined("cifar10")
    split = data.Examples(*(a[:100] for a in dataset.train))
    mesh = devices.make_mesh(jax.devices())
    feed = feeding.Feed(config, split, mesh, resident=resident)
    sources = next(feed.updates(plans.make(config, 100, 8).locate(0), 0))
    shapes = feeding.shapes(config, split, mesh, resident=resident)
    assert len(shapes) == len(sources) == micro
    for shaped, source in zip(shapes, sources, strict=True):
        assert feed.signature([shaped]) == feed.signature([source])
        assert [a.sharding for a in jax.tree.leaves(shaped)] == [a.sharding for a in jax.tree.leaves(source)]


def test_what_does_not_fit_is_said_with_what_helps(place, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_host_memory", lambda: 2**20)
    status, lines = printed(quick(batch_size=512, input="streamed"), capsys)
    assert status == 1
    helps = r"what helps: --accumulation_steps=\d+, more devices, --dtype=bfloat16"
    assert re.fullmatch(f"an update does not fit in the memory; {helps}", lines["warning"])


def test_a_suggested_accumulation_is_one_that_works():
    config = TrainConfig(batch_size=96, span=8, dtype="bfloat16")
    plan = plans.make(config, 60_000, 4)
    lines = estimate.memory_lines(config, plan, 4, StepMemory(needed=70, limit=60), "gpu")
    # Half of the 24 examples per device are not cut into spans of 8, a third of them is.
    assert lines[1].endswith(
        "--accumulation_steps=3, more devices, XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment"
    )


def test_a_refusal_of_a_compiler_tells_the_memory():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used {} of 15.75G"
    )
    assert estimate.refused_memory(said.format("512.00M"), 10).needed == 2**29
    assert estimate.refused_memory("RESOURCE_EXHAUSTED: no more", 10) == StepMemory(limit=10)
    assert estimate.refused_memory("INTERNAL: Used 3G of 2G", 10) is None


def test_the_arithmetic_of_a_program_is_counted():
    def loop(x):
        return lax.scan(lambda c, _: (c @ x, None), x, None, length=5)[0]

    x = jnp.ones((4, 4))
    assert flop(jax.make_jaxpr(loop)(x)) == 5 * 2 * 4**3
    either = jax.make_jaxpr(lambda x: lax.cond(x[0, 0] > 0, loop, lambda x: x @ x, x))(x)
    assert flop(either) == 5 * 2 * 4**3
    # Inside shard_map, those of one device.
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("batch")
    shared = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert flop(jax.make_jaxpr(jax.jit(shared))(jnp.ones((64, 3)), jnp.ones((3, 5)))) == 2 * 8 * 3 * 5


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_the_gradients_of_a_convolution_take_as_much_as_itself(stride, groups):
    def convolved(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))
    forward = flop(jax.make_jaxpr(convolved)(x, w))
    assert forward == 2 * (2 * 6 * (8 // stride) ** 2) * 9 * 4 // groups
    both = flop(jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(convolved(x, w) ** 2), (0, 1)))(x, w))
    assert both == pytest.approx(3 * forward, rel=0.01)


def test_accumulation_takes_the_arithmetic_of_the_whole_batch(place, monkeypatch):
    found = []
    monkeypatch.setattr(estimate, "of_program", lambda config, plan, program, kind: found.append(program) or [])
    for micro in (1, 4):
        dry_run.run(quick(accumulation_steps=micro), dry_run.HERE)
    (whole,), parts = (program.parts for program in found)
    assert [part.runs for part in parts] == [1, 4, 1]
    one, four = (estimate.costs(program, "cpu", "float32") for program in found)
    assert one.flop == four.flop > 0 and one.seconds is None
    assert isinstance(whole, updates.Part)


def test_the_time_of_a_run_follows_from_its_updates(place, monkeypatch, capsys):
    """A device that is published to be slow: the bytes take longer, and two updates per forward pass half the time."""
    config = quick(steps=3_600, backwards_per_forward=2)
    monkeypatch.setattr(estimate, "_chip", lambda kind: "h100")
    slow = estimate.SPEEDS["h100"].__class__("", memory_bytes_per_second=1e9, flop_per_second={"float32": 1e30})
    monkeypatch.setitem(estimate.SPEEDS, "h100", slow)
    _, lines = printed(config, capsys)
    milliseconds = float(lines["step"].split()[2])
    assert lines["step"].startswith("at least") and "2 updates" in lines["step"]
    assert lines["run"].startswith(f"at least {estimate._time(1.8 * milliseconds)} for 3,600 updates")


def test_later_phases_of_a_ramp_take_as_long_per_example():
    config = TrainConfig(
        batch_size=100, batch_ramp=200, schedule="step", step_epochs="2", epochs=4, warmup_epochs=1, step_factor=2
    )
    plan = plans.make(config, 1000, 1)
    assert [phase.batch_size for phase in plan.phases] == [100, 200] and plan.total_steps == 30
    assert estimate._whole(plan, 1, 0.5) == 0.5 * 40


@pytest.mark.parametrize(("platform", "expected"), [("cpu", layout.CHWN), ("gpu", layout.NHWC), ("tpu", layout.NHWC)])
def test_the_layout_is_that_of_the_devices_that_a_program_is_for(platform, expected):
    there = jax.sharding.AbstractDevice(device_kind="", num_cores=None, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("batch",), abstract_device=there)):
        assert layout.preferred() == expected
    assert layout.preferred() == layout.CHWN


@pytest.mark.parametrize("topology", ["h100:2", "v5e:2x2"])
def test_an_update_is_compiled_for_devices_that_are_not_here(topology, tmp_path):
    target = targets.parse(topology)
    if reason := targets.missing(target):
        pytest.skip(reason)
    arguments = [f"--dry_run={topology}", "--batch_size=64", "--accumulation_steps=2", "--workdir=run"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "BATCHNORM_JAX_CACHE": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 0 and list(tmp_path.iterdir()) == [], ended.stderr
    lines = {line[:10].strip(): line[10:] for line in ended.stdout.splitlines()}
    count = int(np.prod(target.shape))
    assert lines["dry run"].startswith(f"{topology}, {count} x {CHIPS[target.chip].kind}")
    assert "computed, not measured" in lines["step"] and "for 18,740 updates" in lines["run"]
    assert "GiB per device, of" in lines["memory"]
