"""The benchmark: turns that rotate, ratios round by round, and a peer that is the same model."""

import json
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _files, data, models
from experiments._errors import UsageError
from experiments.benchmarking import noise_suite, result, suites, timing, torch_peer, train_suite
from experiments.benchmarking.norm import accuracy, collectives, layers, memory, speed, suite
from experiments.benchmarking.suite import Chosen
from experiments.compiled import hlo
from experiments.models.resnet import resnet18, resnet50
from experiments.records.benchmarks.norm import Collective, NormRows
from experiments.records.benchmarks.topology import TopologyRows
from experiments.records.benchmarks.train import TrainRows
from experiments.reporting import norm_figure

# Work for the noise suite whose steps take no time to compile.
SMALL_WORK = noise_suite.Work(
    np.zeros(3, np.float32),
    lambda w, x: jnp.mean((x @ w - 1) ** 2),
    jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32),
)


def test_variants_are_timed_in_turn_and_the_order_rotates():
    calls = []

    def variant(name):
        def steps(number):
            calls.append(name)
            time.sleep(0.001 * number)

        return steps

    measured = timing.in_turn({"a": variant("a"), "b": variant("b")}, rounds=3, seconds=0.01)
    assert calls[4:] == ["a", "b", "b", "a", "a", "b"]
    assert all(len(values) == 3 and min(values) >= 0.001 for values in measured.values())


def test_a_suite_reports_a_row_per_batch_size_and_says_what_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch_peer, "available", lambda: False)
    chosen = Chosen(("steps",), train_suite.PEERS, rounds=2, seconds=0.01)
    (row,) = train_suite.run(chosen, [512], train_suite.Data("digits", None))
    assert row.batch_size == 512 and row.updates_per_epoch == 117
    assert row.ratio == {"torch": None} and "not measured" in train_suite.describe(row)
    assert row.seconds_per_epoch["batchnorm_jax"].median > 0


def test_the_peer_is_the_same_model():
    """With our parameters, PyTorch's model gives our logits."""
    torch = pytest.importorskip("torch", reason="the peer is an extra: pip install -e '.[benchmark]'")
    images = data.load("digits").test["originals"].images[:8].astype(np.float32) / 255
    model = models.create("simple_cnn", num_classes=10, norm=None)
    variables = model.init(jax.random.key(0), images, train=False)
    peer = torch_peer.simple_cnn(10)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.size for p in jax.tree.leaves(variables))
    params = variables["params"]
    with torch.no_grad():
        for index, name in ((0, "ConvMaxPool_0"), (3, "ConvMaxPool_1"), (6, "ConvMaxPool_2"), (10, "Dense_0")):
            kernel = np.array(params[name]["kernel"])
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            peer[index].weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
            peer[index].bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
        theirs = peer(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, images, train=False), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", layers.PEERS)
@pytest.mark.parametrize("fusion", layers.FUSIONS)
def test_every_peer_computes_the_same(name, fusion):
    """The result and the gradient of the input, so that what is timed is the same work."""
    if not layers.available(name):
        pytest.skip(f"{name} is an extra: pip install -e '.[benchmark]'")
    case = layers.Case((8, 4, 4, 16), "float32", fusion)
    if isinstance(layers.LAYERS[name], layers.TorchLayer):
        layers.steps(name, case, 1).run(2)
        return

    def run(name):
        step, arguments = layers.jax_program(name, case)
        y, (dx, *_), _ = step(*arguments)
        return [np.moveaxis(a, 1, -1) if name == "equinox" else a for a in (y, dx)]

    for got, want in zip(run(layers.OURS), run(name), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_the_norm_suite_reports_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "CPU_CASES", (layers.Case((8, 4, 4, 16), "float32"),))
    monkeypatch.setattr(accuracy, "RATIOS", (1.0, 1e4))
    rows = suite.run(Chosen(("accuracy", "speed", "gpu"), ("flax",), rounds=2, seconds=0.01))
    assert rows.speed and rows.gpu and rows.accuracy
    assert rows.gpu.note == speed.NO_GPU and len(rows.gpu.rows) == 9
    assert rows.speed.geometric_mean_of_ratios["flax"] > 0
    errors = {(row.what, row.name): row.y for row in rows.accuracy}
    assert errors["mean/std 10000, no shift", "all_gather"] < 1e-5 < errors["mean/std 10000, no shift", "flax"]
    path = result.write(rows, tmp_path / "norm.json", [])
    assert _files.read_json(path, suite.SUITE.file).rows == rows
    norm_figure(path).savefig(tmp_path / "norm.svg")
    text = (tmp_path / "norm.svg").read_text()
    assert text.count('<g id="axes_') == 2


def test_every_part_of_a_suite_is_a_field_of_its_rows():
    for declared, rows in ((suite.SUITE, NormRows), (train_suite.SUITE, TrainRows)):
        assert declared.parts == rows.__struct_fields__ or set(declared.parts) == set(rows.__struct_fields__)
    # The largest batch is a field of the rows of networks.
    parts = set(suite.COMPILED.parts) - {"largest_batch"}
    assert parts < set(TopologyRows.__struct_fields__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ("steps", "speed")}, "unknown part 'speed'; there are: overhead, start, steps.*It is --parts"),
        ({"peers": ("torche",)}, "unknown peer 'torche'; there are: torch. Did you mean 'torch'.*It is --peers"),
        ({"suite": "fold", "parts": ("steps",)}, "unknown part 'steps'; there are: resnet18, simple_cnn"),
        ({"topology": "v5e:2x2"}, "--topology applies to --suite=norm; got --suite=train"),
        ({"suite": "norm", "parallel": 2}, "--executor and --parallel are for the grids of --suite=recommend"),
    ],
)
def test_what_a_suite_does_not_have_is_refused_before_it_is_measured(monkeypatch, given, message):
    monkeypatch.setattr(suites, "measure", None)
    with pytest.raises(UsageError, match=message):
        suites.run(suites.Request(**given), [])


def test_a_suite_is_given_what_was_chosen_and_writes_its_file(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(suites, "measure", lambda suite, chosen, *_: asked.append((suite.name, chosen)) or [])
    suites.run(suites.Request(suite="fold", workdir=str(tmp_path)), ["--suite=fold"])
    suites.run(suites.Request(peers=("torch",), parts=("steps",), seconds=0.25, rounds=3, workdir=str(tmp_path)), [])
    assert asked == [
        ("fold", Chosen(("resnet18", "simple_cnn"), (), 7, 1.0)),
        ("train", Chosen(("steps",), ("torch",), 3, 0.25)),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold.json", "train.json"]
    written = json.loads((tmp_path / "fold.json").read_text())
    assert written["rows"] == [] and written["made_by"]["command"] == "python -m experiments.benchmark --suite=fold"


@pytest.mark.parametrize(
    ("name", "part", "options"),
    [
        ("norm", "speed", {}),
        ("fold", "simple_cnn", {}),
        ("train", "steps", {"batch_sizes": (512, 256)}),
        ("noise", "transformer", {}),
    ],
)
def test_what_was_measured_before_a_suite_fails_is_kept(name, part, options, tmp_path, monkeypatch):
    measured = []

    def in_turn(variants, **_):
        measured.append(variants)
        if len(measured) > 1:
            raise MemoryError
        return {variant: [1.0, 2.0] for variant in variants}

    monkeypatch.setattr(timing, "in_turn", in_turn)
    monkeypatch.setattr(torch_peer, "available", lambda: False)
    monkeypatch.setattr(speed, "CPU_CASES", 2 * (layers.Case((8, 4, 4, 16), "float32"),))
    monkeypatch.setattr(noise_suite, "CASES", {"transformer": lambda _: SMALL_WORK})
    peers = None if suites.SUITES[name].peers else ()
    request = suites.Request(suite=name, parts=(part,), peers=peers, **options)
    with pytest.raises(MemoryError):
        suites.run(replace(request, workdir=str(tmp_path)), [])
    rows = _files.read_json(tmp_path / f"{name}.json", suites.SUITES[name].file).rows
    kept = {"norm": lambda: rows.speed.rows, "train": lambda: rows.steps}.get(name, lambda: rows)()
    assert len(kept) == 1


def test_the_noise_suite_reports_a_row_per_way_of_cutting_the_batch(monkeypatch):
    monkeypatch.setattr(noise_suite, "CASES", {"transformer": lambda _: SMALL_WORK})
    monkeypatch.setattr(noise_suite.devices, "set_up", lambda _: jax.devices()[:2])
    rows = noise_suite.run(Chosen(("transformer",), rounds=2, seconds=0.01))
    assert [(row.way, row.devices, row.parameters, row.batch_size) for row in rows] == [
        ("4 micro-batches", 1, 3, 16),
        ("2 devices", 2, 3, 16),
    ]
    for row in rows:
        line = noise_suite.describe(row)
        assert row.ratio.median > 0 and row.sparing is not None and row.sparing.median > 0
        assert "ratio with noise " in line and "ratio in each 10th step " in line


@pytest.mark.parametrize(
    "make", [noise_suite.accumulating_steps, lambda *a, **k: noise_suite.sharded_steps(*a, **k, used=jax.devices()[:4])]
)
def test_with_and_without_the_noise_the_same_step_is_timed(make, monkeypatch):
    """Otherwise the ratio would be that of two trainings."""
    after, measured = [], []

    def steps(programs, params, batch, every):
        # The step gives its state away.
        state = noise_suite.init_state(params)
        for count in range(11):
            state, loss = programs[noise_suite.measures(count, every)](state, batch)
        params, _, noise = state
        after.append((params, loss))
        measured.append(int(noise.ema.count))

    monkeypatch.setattr(noise_suite, "_steps", steps)
    for every in noise_suite.EVERY.values():
        make(SMALL_WORK._replace(params=jnp.zeros(3)), every=every)
    for other in after[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after[0], other)
    assert np.all(np.asarray(after[0][0]) != 0)
    assert measured == [11, 2, 0]


@pytest.mark.parametrize("transform", ["pmap", "shard_map", "shard_map, check_vma=False", "jit"])
def test_one_collective_each_way_where_the_plain_way_takes_two(transform):
    for norm, each in (("batchnorm_jax", 1), ("mean then variance", 2)):
        found = hlo.collectives(collectives.layer_step(transform, norm)[0])
        assert [sum(c.backward == way for c in found) for way in (False, True)] == [each, each]


def test_what_synchronising_costs_is_timed_beside_twice_and_not_at_all():
    time = collectives.synchronising_time(rounds=2, seconds=0.01)
    assert list(time.milliseconds) == [collectives.ONCE, collectives.TWICE, collectives.ALONE]
    assert list(time.ratio_to_once) == [collectives.TWICE, collectives.ALONE]
    assert all(value.low > 0 for value in time.ratio_to_once.values())
    alone, _ = collectives.layer_step("shard_map", collectives.ALONE)
    assert all(c.backward for c in hlo.collectives(alone)), "what is left is the parameters' gradients"


@pytest.mark.slow
def test_a_resnet50_step_takes_one_collective_a_norm_and_less_memory():
    lowered = collectives.resnet50_step("batchnorm_jax", 32, reduce_gradients=False)
    assert lowered.as_text().count("stablehlo.all_reduce") == 2 * 53
    ours, theirs = (memory.resnet50_bytes(name, 32, 224).temporary for name in ("batchnorm_jax", "flax"))
    assert ours <= 0.80 * theirs


@pytest.mark.parametrize(("make", "parameters", "norms"), [(resnet18, 11_689_512, 20), (resnet50, 25_557_032, 53)])
def test_the_residual_networks_have_the_published_sizes(make, parameters, norms):
    model = make(num_classes=1000, norm=memory.BatchNorm)
    variables = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(variables["params"])) == parameters
    assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * norms


def test_a_fused_residual_network_is_the_plain_one():
    """The norm with activation and residual in it, and the same outside: the same outputs and gradients."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)

    def run(norm):
        model = resnet18(num_classes=5, norm=norm, width=8, small_images=True)
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
        # The last scales start at zero; with ones the blocks count.
        params = jax.tree.map(lambda a: jnp.where(a == 0, 0.5, a) if a.ndim == 1 else a, variables["params"])

        def loss(params):
            variables_ = {**variables, "params": params}
            return jnp.sum(model.apply(variables_, images, train=True, mutable=["batch_stats"])[0] ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    fused, outside = run(memory.NORMS["batchnorm_jax"]), run(memory.NORMS["batchnorm_jax, not fused"])
    assert len(jax.tree.leaves(fused)) == len(jax.tree.leaves(outside))
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * float(jnp.max(jnp.abs(b))))


def test_an_asynchronous_gather_is_counted_by_its_result():
    """Its start returns what goes in as well; that of an all-reduce does not."""

    class Compiled:
        def as_text(self):
            return (
                "  %a = (f32[48]{0}, f32[384]{0}) all-gather-start(%x), dimensions={0}\n"
                '  %b = (f32[5]{0}, f32[7]{0}) all-reduce-start(%x, %y), metadata={op_name="transpose(g)"}\n'
                "  %c = f32[384]{0} all-gather-done(%a)\n"
            )

    assert hlo.collectives(Compiled()) == [
        Collective(kind="all-gather", elements=384, backward=False),
        Collective(kind="all-reduce", elements=12, backward=True),
    ]
    assert hlo.collective_bytes(Compiled()) == 4 * (384 + 12)
