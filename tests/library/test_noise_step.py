"""The noise beside the gradient of a training step: the same loss, gradient and estimate however the batch is cut."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from batchnorm_jax import batch_size
from batchnorm_jax.batch_size import value_and_grad_with_noise

DEVICES, EXAMPLES = 8, 32
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec("devices")


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2) / 2


def problem():
    r = np.random.default_rng(0)
    params = {"w": r.normal(size=3).astype(np.float32), "b": np.float32(0.5)}
    batch = {"x": r.normal(size=(EXAMPLES, 3)).astype(np.float32), "y": r.normal(size=EXAMPLES).astype(np.float32)}
    return params, batch


def reference(params, batch, parts, weights=None):
    """Loss, gradient and estimate in float64, by the formulas of the appendix; the batch is cut as the list says."""
    x, y = (np.asarray(batch[name], np.float64) for name in ("x", "y"))
    error = x @ params["w"].astype(np.float64) + params["b"] - y
    per_example = np.column_stack([x * error[:, None], error])
    count, size = len(parts), len(parts[0])
    gradients = np.stack([per_example[part].mean(0) for part in parts])
    mean = gradients.mean(0)
    weights = np.ones(4) if weights is None else np.append(weights["w"], weights["b"])
    q, square = np.mean(gradients**2 @ weights), mean**2 @ weights
    estimate = (count * square - q) / (count - 1), size * count / (count - 1) * (q - square)
    return np.mean(error**2) / 2, {"w": mean[:3], "b": mean[3]}, estimate


def parts_of(devices=1, micro_batches=1, shards=1):
    """The examples of each part: contiguous on a device, dealt out to micro-batches in turn, contiguous in a shard."""
    own = np.arange(EXAMPLES).reshape(devices, -1, micro_batches)
    return np.moveaxis(own, 2, 1).reshape(devices * micro_batches * shards, -1)


def mesh():
    return jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))


def in_jit(params, batch, **options):
    return jax.jit(value_and_grad_with_noise(loss_fn, **options))(params, batch)


def in_sharded_jit(params, batch, **options):
    batch = jax.device_put(batch, NamedSharding(mesh(), SHARDED))
    return in_jit(params, batch, **options)


def in_explicit_jit(params, batch, **options):
    explicit = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        batch = jax.device_put(batch, NamedSharding(explicit, SHARDED))
        return in_jit(jax.device_put(params, NamedSharding(explicit, REPLICATED)), batch, **options)


def in_shard_map(params, batch, *, check_vma, **options):
    step = value_and_grad_with_noise(loss_fn, axis_name="devices", **options)
    specs = {"in_specs": (REPLICATED, SHARDED), "out_specs": REPLICATED}
    return jax.jit(jax.shard_map(step, mesh=mesh(), check_vma=check_vma, **specs))(params, batch)


def in_two_axes(params, batch, **options):
    two = jax.make_mesh((2, 4), ("hosts", "devices"), axis_types=(AxisType.Auto,) * 2)
    step = value_and_grad_with_noise(loss_fn, axis_name=("hosts", "devices"), **options)
    specs = {"in_specs": (REPLICATED, PartitionSpec(("hosts", "devices"))), "out_specs": REPLICATED}
    return jax.jit(jax.shard_map(step, mesh=two, **specs))(params, batch)


def divided(batch):
    return jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), batch)


def in_pmap(params, batch, **options):
    step = value_and_grad_with_noise(loss_fn, axis_name="devices", **options)
    out = jax.pmap(step, axis_name="devices", in_axes=(None, 0))(params, divided(batch))
    return jax.tree.map(lambda a: a[0], out)


def in_vmap(params, batch, **options):
    step = value_and_grad_with_noise(loss_fn, axis_name="devices", **options)
    return jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name="devices")(params, divided(batch))


CHECKED = functools.partial(in_shard_map, check_vma=True)
UNCHECKED = functools.partial(in_shard_map, check_vma=False)
WAYS = {
    "jit-micro_batches": (in_jit, {"micro_batches": 8}, 1),
    "jit-shards": (in_jit, {"shards": 4}, 1),
    "jit-both": (in_jit, {"micro_batches": 4, "shards": 4}, 1),
    "sharded_jit-shards": (in_sharded_jit, {"shards": 8}, 1),
    "sharded_jit-both": (in_sharded_jit, {"micro_batches": 2, "shards": 8}, 1),
    "explicit_jit-shards": (in_explicit_jit, {"shards": 8}, 1),
    "explicit_jit-both": (in_explicit_jit, {"micro_batches": 2, "shards": 8}, 1),
    "shard_map": (CHECKED, {}, 8),
    "shard_map-micro_batches": (CHECKED, {"micro_batches": 2}, 8),
    "shard_map-shards": (CHECKED, {"shards": 4}, 8),
    "shard_map_unchecked": (UNCHECKED, {}, 8),
    "shard_map_unchecked-micro_batches": (UNCHECKED, {"micro_batches": 2}, 8),
    "shard_map_two_axes-micro_batches": (in_two_axes, {"micro_batches": 2}, 8),
    "pmap": (in_pmap, {}, 8),
    "pmap-micro_batches": (in_pmap, {"micro_batches": 4}, 8),
    "vmap": (in_vmap, {}, 8),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_cut_a_batch_gives_its_loss_its_gradient_and_the_noise(way):
    run, options, devices = WAYS[way]
    params, batch = problem()
    loss, gradient, estimate = run(params, batch, **options)
    right_loss, right_gradient, right_estimate = reference(params, batch, parts_of(devices, **options))
    np.testing.assert_allclose(loss, right_loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, right_gradient)
    np.testing.assert_allclose(estimate, right_estimate, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_where_the_noise_is_not_measured_the_step_is_the_same_without_an_estimate(way, monkeypatch):
    """By a count of steps that is traced: one program does both."""
    every = value_and_grad_with_noise

    def sparing(loss_fn, **options):
        grad_fn = every(loss_fn, **options)
        return lambda given, batch: grad_fn(given["params"], batch, when=given["step"] % 10 == 0)

    monkeypatch.setitem(globals(), "value_and_grad_with_noise", sparing)
    run, options, devices = WAYS[way]
    params, batch = problem()
    right_loss, right_gradient, right_estimate = reference(params, batch, parts_of(devices, **options))
    for step in (20, 21):
        given = {"params": params, "step": np.int32(step)}
        loss, gradient, estimate = run(given, batch, **options)
        np.testing.assert_allclose(loss, right_loss, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, right_gradient)
        np.testing.assert_allclose(estimate, right_estimate if step == 20 else (np.nan, np.nan), rtol=1e-4)


def sums_in(jaxpr, *, branches):
    """Counts the sums of a program, with or without those inside a branch."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "reduce_sum"
        if eqn.primitive.name == "cond" and not branches:
            continue
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            count += sums_in(inner, branches=branches) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"shards": 4}, {"micro_batches": 2, "shards": 2}])
def test_where_the_noise_is_not_measured_no_squares_are_summed(options):
    """Nor under `vmap`, which makes a choice of a branch whose condition has an axis."""
    params, batch = problem()
    grad_fn = value_and_grad_with_noise(loss_fn, **options)
    always = jax.make_jaxpr(grad_fn)(params, batch).jaxpr
    sparing = jax.make_jaxpr(lambda *args: grad_fn(*args[:2], when=args[2] % 10 == 0))(params, batch, 0).jaxpr
    # One for each array, of the parts and of their mean.
    squares = 2 * len(params)
    assert sums_in(sparing, branches=True) == sums_in(always, branches=True)
    assert sums_in(sparing, branches=False) == sums_in(always, branches=False) - squares
    never = jax.make_jaxpr(functools.partial(grad_fn, when=False))(params, batch).jaxpr
    assert sums_in(never, branches=True) == sums_in(sparing, branches=False)
    assert "cond[" not in str(always) + str(never)


def test_the_estimate_has_the_known_gradient_and_covariance_as_its_mean():
    """A quadratic |params - z|^2 / 2, z of any covariance: the gradient is params - mean."""
    r = np.random.default_rng(1)
    mean, factor = r.normal(size=5), r.normal(size=(5, 5))
    z = (mean + r.normal(size=(4_000, 16, 5)) @ factor.T).astype(np.float32)

    def quadratic(params, z):
        return jnp.mean(jnp.sum((params[None] - z) ** 2, axis=-1)) / 2

    step = jax.jit(jax.vmap(value_and_grad_with_noise(quadratic, micro_batches=4), in_axes=(None, 0)))
    truth = np.sum((1 - mean) ** 2), np.sum(factor**2)
    for values, right in zip(step(jnp.ones(5), z)[2], truth, strict=True):
        values = np.asarray(values, np.float64)
        assert abs(values.mean() - right) < 4 * values.std(ddof=1) / np.sqrt(values.size)


def test_the_noise_adds_no_collective():
    """A step that averages its gradient and its loss has as many, of the same lengths but for one number more."""
    params, batch = problem()

    def plain(params, batch):
        return lax.pmean(jax.value_and_grad(loss_fn)(params, batch), "devices")

    def all_reduced(step):
        """The operands of each all-reduce, in numbers, as the program is handed to XLA."""
        specs = {"in_specs": (REPLICATED, SHARDED), "out_specs": REPLICATED}
        mapped = jax.jit(jax.shard_map(step, mesh=mesh(), check_vma=False, **specs))
        text = mapped.lower(params, batch).as_text()
        found = re.findall(r'"stablehlo.all_reduce".*?: \(tensor<(\d*)x?f32>\) -> ', text, re.DOTALL)
        return sorted(int(size or 1) for size in found)

    assert all_reduced(plain) == [1, 1, 3]
    assert all_reduced(value_and_grad_with_noise(loss_fn, axis_name="devices")) == [1, 2, 3]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_under_jit_every_device_computes_the_part_that_it_has(micro_batches):
    """Nothing of the batch moves: the only collectives are the sums over devices."""
    params, batch = problem()
    step = jax.jit(value_and_grad_with_noise(loss_fn, shards=DEVICES, micro_batches=micro_batches))
    sharded = jax.device_put(batch, NamedSharding(mesh(), SHARDED))
    text = step.lower(params, sharded).compile().as_text()
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)


def test_micro_batches_are_traced_once_for_their_shapes_and_once_for_the_loop():
    traced = []

    def counted(params, batch):
        traced.append(batch["y"].shape)
        return loss_fn(params, batch)

    jax.jit(value_and_grad_with_noise(counted, micro_batches=8))(*problem())
    assert traced == [(4,)] * 2


def test_what_the_loss_returns_beside_it():
    def with_aux(params, batch, factor):
        return factor * loss_fn(params, batch), {"first": batch["y"][0]}

    params, batch = problem()
    for options, right in {
        (4, 1): batch["y"][:4],
        (1, 4): batch["y"][::8],
        (4, 2): np.stack([batch["y"][:4], batch["y"][16:20]], axis=1),
    }.items():
        micro_batches, shards = options
        step = value_and_grad_with_noise(with_aux, has_aux=True, micro_batches=micro_batches, shards=shards)
        (loss, aux), gradient, _ = jax.jit(step)(params, batch, 2.0)
        np.testing.assert_array_equal(aux["first"], right)
        plain, plain_gradient = jax.value_and_grad(loss_fn)(params, batch)
        np.testing.assert_allclose(loss, 2 * plain, rtol=1e-6)
        np.testing.assert_allclose(gradient["w"], 2 * plain_gradient["w"], rtol=1e-5)

    def first(params, batch):
        step = value_and_grad_with_noise(with_aux, axis_name="devices", has_aux=True)
        return step(params, batch, 1.0)[0][1]["first"]

    mapped = jax.pmap(first, "devices", in_axes=(None, 0))
    np.testing.assert_array_equal(mapped(params, divided(batch)), batch["y"][::4])


def test_half_precision_is_summed_in_single():
    params, batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), problem())
    loss, gradient, estimate = in_jit(params, batch, micro_batches=4)
    assert {loss.dtype, *(a.dtype for a in jax.tree.leaves(gradient))} == {jnp.dtype(jnp.bfloat16)}
    assert {a.dtype for a in estimate} == {jnp.dtype(jnp.float32)}


def test_the_noise_as_adam_sees_it():
    """Weights of a state after three updates, within a chain; then the weighted estimate against its formula."""
    params, batch = problem()
    b2, epsilon = 0.9, 1e-3
    optimizer = optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(1e-2, b2=b2, eps=epsilon))
    state, second = optimizer.init(params), np.zeros(4)
    before = batch_size.adam_weights(state, b2, epsilon)
    assert jax.tree.all(jax.tree.map(lambda w, p: w.shape == p.shape and bool(jnp.all(w == 1)), before, params))
    for scale in (1.0, 2.0, 3.0):
        gradient = {"w": scale * np.array([1.0, -2.0, 0.1], np.float32), "b": np.float32(scale)}
        _, state = optimizer.update(gradient, state, params)
        second = b2 * second + (1 - b2) * np.append(gradient["w"], gradient["b"]).astype(np.float64) ** 2
    weights = batch_size.adam_weights(state, b2, epsilon)
    right = 1 / (np.sqrt(second / (1 - b2**3)) + epsilon)
    np.testing.assert_allclose(np.append(weights["w"], weights["b"]), right, rtol=1e-5)
    step = jax.jit(value_and_grad_with_noise(loss_fn, micro_batches=8))
    _, _, estimate = step(params, batch, weights=weights)
    expected = reference(params, batch, parts_of(micro_batches=8), {"w": right[:3], "b": right[3]})[2]
    np.testing.assert_allclose(estimate, expected, rtol=1e-4)


NO_PARTS = "there is one part"


@pytest.mark.parametrize(
    ("options", "examples", "message"),
    [
        ({}, 8, NO_PARTS),
        ({"micro_batches": 0}, 8, "micro_batches must be an integer, at least 1, not 0"),
        ({"shards": 2.0}, 8, "shards must be an integer"),
        ({"shards": True}, 8, "shards must be an integer"),
        ({"micro_batches": 3}, 8, r"a multiple of shards \* micro_batches = 3; the shapes are \[\(8, 3\), \(8,\)\]"),
        ({"micro_batches": 4, "shards": 4}, 8, "= 16"),
        ({"micro_batches": 2}, 0, "must have the same number of examples"),
        (
            {"axis_name": "devices"},
            8,
            "axis_name='devices' is not bound here.*gradient are those of the whole",
        ),
        ({"axis_name": jnp.ones(2)}, 8, "axis_name is a ArrayImpl; give the name"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, examples, message):
    params, batch = problem()
    with pytest.raises(ValueError, match=f"value_and_grad_with_noise: .*{message}"):
        value_and_grad_with_noise(loss_fn, **options)(params, jax.tree.map(lambda a: a[:examples], batch))


@pytest.mark.parametrize(
    ("when", "what"),
    [(3, "3"), (None, "None"), (np.ones(2, bool), r"of bool and shape \(2,\)"), (jnp.int32(0), "int32")],
)
def test_what_does_not_say_whether_the_noise_is_measured_is_refused(when, what):
    params, batch = problem()
    with pytest.raises(ValueError, match=f"value_and_grad_with_noise: when must be a bool .* it is .*{what}"):
        value_and_grad_with_noise(loss_fn, shards=2)(params, batch, when=when)


def test_leaves_with_other_numbers_of_examples_are_refused():
    params, batch = problem()
    with pytest.raises(ValueError, match="same number of examples"):
        value_and_grad_with_noise(loss_fn, shards=2)(params, batch | {"y": batch["y"][:8]})


@pytest.mark.parametrize(
    ("optimizer", "found"), [(optax.sgd(0.1), 0), (optax.chain(optax.scale_by_adam(), optax.scale_by_adam()), 2)]
)
def test_a_state_without_one_second_moment_is_refused(optimizer, found):
    with pytest.raises(ValueError, match=f"one state of scale_by_adam, and it holds {found}"):
        batch_size.adam_weights(optimizer.init(problem()[0]), 0.999)
