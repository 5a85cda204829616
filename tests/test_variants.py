"""Declared variants: every record of every register is complete and works, and no code compares a variant's name."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, models
from experiments._errors import UsageError
from experiments._variants import Register
from experiments.data.domains import DOMAINS
from experiments.training.config.options import TrainConfig
from experiments.training.recipe import optimizers
from experiments.training.recipe.augmentation import AUGMENTATIONS, augment
from experiments.training.recipe.norms import NORMS
from experiments.training.recipe.optimizers import OPTIMIZERS
from experiments.training.recipe.schedules import SCHEDULES, Timing
from tests import rig
from tests.variants import comparisons

ROOT = Path(__file__).parents[1]
# The options of `TrainConfig` that choose by name, and where their variants are declared.
REGISTERS = {
    "norm": (NORMS, "training/recipe/norms.py"),
    "optimizer": (OPTIMIZERS, "training/recipe/optimizers.py"),
    "schedule": (SCHEDULES, "training/recipe/schedules.py"),
    "augmentation": (AUGMENTATIONS, "training/recipe/augmentation.py"),
    "model": (models.MODELS, "models/"),
    "dataset": (data.DATASETS, "data/"),
}
EVERY = [(option, name) for option, (register, _) in REGISTERS.items() for name in register.names]
# Comparisons with a text that happens to be a variant's name and means something else, or with the one constant of a
# file that must not import the registers.
OTHERWISE = {
    "'digits' in str(error)": "a word of an error of Python's",
    "instruction.opcode in _FREE": "an instruction of a compiled program",
    "name not in NOT_CURVES": "a column of metrics",
    "AXIS in jax.typeof(a).manual_axis_type.varying": "an axis of the mesh",
    "AXIS in jax.typeof(leaf).manual_axis_type.varying": "an axis of the mesh",
    "norm == SPANNED_NORM": "reporting reads result files and imports no training",
}


@pytest.mark.parametrize(("option", "name"), EVERY)
def test_the_help_of_a_flag_describes_every_variant(option, name):
    (field,) = (field for field in dataclasses.fields(TrainConfig) if field.name == option)
    register, _ = REGISTERS[option]
    assert f"'{name}' ({register[name].help})" in field.metadata["help"]
    # `--help` shows the first sentence of it.
    assert name in field.metadata["help"].split(". ")[0]


@pytest.mark.parametrize("option", REGISTERS)
def test_a_default_is_declared_and_another_name_is_refused(option):
    register, _ = REGISTERS[option]
    assert getattr(TrainConfig(), option) in register
    with pytest.raises(UsageError, match=rf"unknown {option} '{register.names[0]}x'; there are: .*{register.names[0]}"):
        register[f"{register.names[0]}x"]


def config_of(option, name):
    """A configuration with one variant, and 64 examples or all that there are."""
    whole = option == "optimizer" and OPTIMIZERS[name].full_batch
    common = {"model": "tests.own:model", "epochs": 9, "warmup_epochs": 0, "learning_rate": 0.05}
    if option == "optimizer" and OPTIMIZERS[name].averages:
        common["schedule"] = "constant"
    return TrainConfig(**common | {"batch_size": 64 if whole else 32, option: name})


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_every_optimizer_trains_two_steps(name):
    """The other tests train with every norm and every schedule."""
    state, rows = rig.first_steps(config_of("optimizer", name), rig.tiny(), 2, 2)
    assert int(state.step) == 2 and all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("norm", list(NORMS), ids=NORMS.names)
def test_what_a_norm_declares_is_what_it_does(norm):
    """Its statistics depend on the devices, and change in training, as its record says."""
    config = config_of("norm", norm.name)
    (one, _), (two, _) = (rig.first_steps(config, rig.tiny(), 1, devices) for devices in (1, 2))
    run = rig.run_of(config, rig.tiny(), 1)
    before = jax.tree.leaves(jax.device_get(run.state.batch_stats))
    changed = any((a != b).any() for a, b in zip(before, jax.tree.leaves(one.batch_stats), strict=True))
    assert changed == norm.updates_running_statistics
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in pairs) == norm.depends_on_devices
    assert not (norm.fixes_statistics and norm.updates_running_statistics)


@pytest.mark.parametrize("norm", list(NORMS), ids=NORMS.names)
def test_a_span_is_taken_by_the_norms_that_say_so(norm):
    if norm.takes_span:
        assert TrainConfig(norm=norm.name, span=8).span == 8
    else:
        with pytest.raises(UsageError, match=rf"--span groups the examples of --norm=batch, not of --norm={norm.name}"):
            TrainConfig(norm=norm.name, span=8)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS), ids=OPTIMIZERS.names)
def test_what_an_optimizer_declares_is_what_it_does(optimizer):
    """A trust ratio makes the update of a kernel as long as the kernel is, and only that of a kernel."""
    schedule = "constant" if optimizer.averages else "cosine"
    at_reference = TrainConfig(optimizer=optimizer.name, batch_size=256, schedule=schedule)
    assert at_reference.lr_scaling is None and at_reference.evaluates_average == optimizer.averages
    assert at_reference.peak_learning_rate == optimizer.base_rate > 0
    assert not (optimizer.momentum_based and optimizer.adaptive)
    if optimizer.full_batch:
        return
    momentum = 0.5 if optimizer.averages else 0.0
    made = optimizers.make(optimizer.name, optax.constant_schedule(1.0), momentum=momentum, weight_decay=0.0)
    ratios = {}
    for name in ("kernel", "bias"):
        lengths = []
        for length in (1.0, 100.0):
            params = {name: jnp.full(4, length)}
            updates, _ = made.update({name: jnp.ones(4)}, made.init(params), params)
            lengths.append(float(jnp.abs(updates[name]).max()))
        ratios[name] = lengths[1] / lengths[0]
    # Those that average give the difference of two weights, which has five digits at a weight of 100.
    assert ratios["bias"] == pytest.approx(1, rel=1e-5)
    assert ratios["kernel"] == pytest.approx(100 if optimizer.trust_ratio else 1, rel=1e-5)
    other = optimizers.make(optimizer.name, optax.constant_schedule(1.0), momentum=momentum, weight_decay=0.0, b2=0.5)
    states = [jax.tree.leaves(one.update(params, one.init(params), params)) for one in (made, other)]
    assert any((a != b).any() for a, b in zip(*states, strict=True)) == optimizer.second_moment


@pytest.mark.parametrize("schedule", list(SCHEDULES), ids=SCHEDULES.names)
def test_what_a_schedule_declares_is_what_it_does(schedule):
    config = TrainConfig(schedule=schedule.name)
    assert all(hasattr(config, option) for option in schedule.options)
    decay = schedule.decay(2.0, Timing(steps=90, start=10, boundaries={40: 0.1}, cycle=20.0))
    rates = np.array([float(decay(step)) for step in range(90)])
    assert rates[0] == pytest.approx(2.0) and (rates >= 0).all() and (rates <= 2.0 + 1e-6).all()
    assert (rates == rates[0]).all() == schedule.is_constant
    assert (len(np.unique(rates)) == 2) == schedule.has_milestones
    assert np.allclose(rates[20:40], rates[:20]) == (schedule.has_cycles or schedule.is_constant)


@pytest.mark.parametrize("chosen", list(AUGMENTATIONS), ids=AUGMENTATIONS.names)
def test_what_an_augmentation_declares_is_what_it_does(chosen):
    """In images without a zero: the padding of a crop brings zeros in, and a flip mirrors whole images or none."""
    images = jnp.asarray(np.random.default_rng(0).integers(1, 256, (64, 8, 8, 1)), jnp.uint8)
    changed = augment(chosen.name, images, jax.random.key(0), 0, 64)
    assert bool((changed == 0).any()) == chosen.crops
    # With this key some images are cropped in the middle, where the crop changes nothing.
    assert bool((changed == images[:, :, ::-1]).all((1, 2, 3)).any()) == chosen.flips
    assert bool((changed == images).all()) == (not chosen.crops and not chosen.flips)
    assert changed.shape == images.shape and changed.dtype == images.dtype


@pytest.mark.parametrize("model", list(models.MODELS), ids=models.MODELS.names)
def test_what_a_model_declares_is_what_it_does(model):
    assert models.is_residual(model.name) == model.residual
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    made = models.create(model.name, num_classes=5, norm=None, dtype=jnp.dtype("float32"))
    logits, _ = jax.eval_shape(lambda x: made.init_with_output(jax.random.key(0), x, train=False), images)
    assert logits.shape == ((2, 64, 64, 5) if model.per_pixel else (2, 5))
    assert hasattr(made, "zero_last_scale") == model.residual


def test_a_register_refuses_records_that_are_not_complete():
    norm = NORMS["none"]
    with pytest.raises(ValueError, match="each norm must have its own name"):
        Register("norm", norm, norm)
    for said in ("", "ends.", "two. Sentences"):
        with pytest.raises(ValueError, match="must be a phrase"):
            Register("norm", dataclasses.replace(norm, help=said))


def test_no_name_of_a_variant_is_compared_outside_its_own_file():
    found = [
        place
        for register, own in [*REGISTERS.values(), (DOMAINS, "data/")]
        for place in comparisons(ROOT / "experiments", register.names, [own])
        if place.text not in OTHERWISE
    ]
    assert not found, "\n".join(f"{place.file}:{place.line}: {place.text}" for place in found)


@pytest.mark.parametrize(
    "source",
    [
        'config.norm == "frozen"',
        'config.norm in ("none", "frozen")',
        "config.norm not in PER_DEVICE",
        "config.norm in (*norms.PER_DEVICE, 'batch')",
        '{"frozen"} <= set(norms)',
        "match config.norm:\n    case 'frozen':\n        pass",
    ],
)
def test_a_comparison_is_found(source, tmp_path):
    (tmp_path / "norms.py").write_text('PER_DEVICE = ("local", "renorm")')
    (tmp_path / "asks.py").write_text(source)
    assert [place.file for place in comparisons(tmp_path, NORMS.names)] == ["asks.py"]
    assert not comparisons(tmp_path, NORMS.names, ["asks.py"])


def test_a_choice_is_no_comparison(tmp_path):
    (tmp_path / "presets.py").write_text('OPTIONS = {"norm": "frozen"}\nrows["step"] == 3\nname == "cosin"')
    assert not comparisons(tmp_path, [*NORMS.names, *SCHEDULES.names])
