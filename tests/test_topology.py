"""Programs for accelerators that are not here: their text is read right, and a small layer is compiled for them."""

import json
import os
import subprocess
import sys

import jax
import msgspec
import pytest

from experiments import _commands, _files
from experiments._errors import UsageError
from experiments.benchmarking import result
from experiments.benchmarking.topology import compiler, jobs, layers, messages, network, suite
from experiments.benchmarking.topology.rows import on_line, ratio
from experiments.compiled import hlo, targets
from experiments.compiled.program import Program
from experiments.records.benchmarks.topology import FUSIONS, Figures, LargestBatch, LayerJob, NetworkJob, Ratio
from experiments.reporting import topology, topology_figure

X = 1000
# x is read from the main memory twice (a sum, and the copy to the chip), and from there; y is written once.
ON_CHIP = """HloModule jit_step, is_scheduled=true

%fused_sum (p: bf16[10,100]) -> f32[100] {
  %p = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %r = f32[100]{0} reduce(%p), metadata={}, backend_config={"estimated_cycles":"999"}
}

ENTRY %main (x: bf16[10,100]) -> bf16[10,100] {
  %x = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(0)
  %alias = bf16[10,100]{1,0:T(8,128)(2,1)} bitcast(%x)
  %kept = bf16[10,100]{1,0:T(8,128)(2,1)} opt-barrier(%alias)
  %sum = f32[100]{0:T(128)S(1)} fusion(%kept), kind=kLoop, calls=%fused_sum, backend_config={"estimated_cycles":"70"}
  %copy-start = (bf16[10,100]{1,0:T(8,128)(2,1)S(1)}, bf16[10,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %all-reduce = f32[100]{0:T(128)S(1)} all-reduce(%sum), replica_groups={{0,1}}, to_apply=%add
  %copy-done = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %view = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} bitcast(%copy-done)
  ROOT %y = bf16[10,100]{1,0:T(8,128)(2,1)} fusion(%view, %all-reduce), kind=kLoop, calls=%f, \
backend_config={"window":["1"],"estimated_cycles":"30"}
}
"""
# A loop of three, and a conditional with a branch that reads x and one that does not.
NESTED = """HloModule jit_step

%body (b: (f32[1000])) -> (f32[1000]) {
  %b = (f32[1000]{0}) parameter(0)
  %g = f32[1000]{0} get-tuple-element(%b), index=0
  %n = f32[1000]{0} negate(%g), backend_config={"estimated_cycles":"5"}
  ROOT %t = (f32[1000]{0}) tuple(%n)
}

%condition (c: (f32[1000])) -> pred[] {
  %c = (f32[1000]{0}) parameter(0)
  ROOT %k = pred[] constant(true)
}

%cheap (d: f32[1000]) -> f32[] {
  %d = f32[1000]{0} parameter(0)
  ROOT %z = f32[] constant(0)
}

%dear (e: f32[1000]) -> f32[] {
  %e = f32[1000]{0} parameter(0)
  ROOT %s = f32[] reduce(%e), to_apply=%add, backend_config={"estimated_cycles":"40"}
}

%called (h: f32[1000]) -> f32[1000] {
  %h = f32[1000]{0} parameter(0)
  ROOT %i = f32[1000]{0} copy(%h), backend_config={"estimated_cycles":"2"}
}

ENTRY %main (x: f32[1000], p: pred[]) -> f32[] {
  %x = f32[1000]{0} parameter(0)
  %p = pred[] parameter(1)
  %in = (f32[1000]{0}) tuple(%x)
  %w = (f32[1000]{0}) while(%in), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %o = f32[1000]{0} get-tuple-element(%w), index=0
  %q = f32[1000]{0} call(%o), to_apply=%called
  ROOT %a = f32[] conditional(%p, %q, %q), true_computation=%dear, false_computation=%cheap
}
"""


def test_passes_count_the_main_memory_alone():
    program = Program(ON_CHIP)
    assert program.passes(X, 16) == 3
    # The statistics are on the chip, too: 2 bytes of each of the three.
    assert program.bytes() == 3 * 2 * X
    assert program.passes(X + 1, 16) == 0


def test_cycles_are_those_of_the_instructions_that_run_and_not_of_what_is_fused_in_them():
    assert Program(ON_CHIP).cycles() == 100


def test_loops_count_as_often_as_they_run_and_of_a_conditional_one_branch():
    program = Program(NESTED)
    assert (program.cycles(max), program.cycles(min)) == (3 * 5 + 2 + 40, 3 * 5 + 2)
    # Three times read and written, once copied, once read.
    assert program.passes(X, 32) == 3 * 2 + 2 + 1


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="entry computation"):
        Program("nothing")


def test_collectives_have_elements_and_bytes():
    class Compiled:
        def as_text(self):
            return (
                "  %a = (f32[256]{0:T(256)}, bf16[1,1,1,256]{3,2,1,0:T(1,128)S(1)}) all-reduce(%x, %y), to_apply=%add\n"
                "  %b = (f32[48]{0}, f32[384]{0}) all-gather-start(%x), dimensions={0}\n"
                "  %c = f32[384]{0} all-gather-done(%b)\n"
            )

    assert [c.elements for c in hlo.collectives(Compiled())] == [512, 384]
    assert hlo.collective_bytes(Compiled()) == 256 * 4 + 256 * 2 + 4 * 384


@pytest.mark.parametrize(
    ("name", "message"),
    [("v5:2x2", "there are: h100"), ("v5e", "v5e:2x2"), ("v6e:2", "chips along"), ("h100:12", "multiple of it")],
)
def test_a_topology_that_cannot_be_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        targets.parse(name)


def figures_of(**changes):
    given = {"passes": 8.0, "bytes": 100, "cycles": 10, "cycles_usually": 10, "temporary": 5, "total": 50}
    given |= {"collectives": 2, "collective_elements": 4, "collective_bytes": 16, "seconds": 1.0}
    return Figures(**{**given, **changes})


def layer_job(variant="flax", fusion="", shape=(2, 4, 4, 16), topology="cpu"):
    return LayerJob(topology=topology, variant=variant, shape=shape, fusion=fusion)


def network_job(variant, remat="parts"):
    return NetworkJob(topology="cpu", variant=variant, batch_size=1, image_size=32, remat=remat)


def test_ratios_and_the_line_through_two_batches():
    flax = figures_of(cycles=None, temporary=2, total=1000, collectives=4)
    ours = msgspec.structs.replace(flax, bytes=50, temporary=1, collectives=2)
    assert ratio(ours, flax) == Ratio(cycles=None, bytes=0.5, temporary=None, total=1.0, collectives=0.5)
    assert ratio(ours, msgspec.structs.replace(flax, temporary=10)).temporary == 0.1
    assert on_line((10, 300), (20, 500), memory=1000).examples == 45
    assert on_line((10, 300), (20, 300), memory=1000).examples is None


def test_every_variant_has_a_colour_and_every_job_its_message():
    assert set(topology.COLOURS) == set(jobs.VARIANTS)
    for job in (layer_job(), network_job("plain")):
        assert messages.job_of(messages.asked(job)) == job


def test_without_the_compiler_rows_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda name: False)
    results = suite.run("v5e:2x2")
    assert results.layers is not None and results.resnet50 is not None
    assert len(results.layers) == 2 * (2 + 2 * 4) and len(results.resnet50) == len(jobs.VARIANTS)
    for row in results.layers + results.resnet50:
        assert row.figures is None and row.note is not None
        assert targets.EXTRA in row.note or jobs.POLICY in row.note
    path = result.write(results, tmp_path / "norm.json", [])
    topology_figure(path).savefig(tmp_path / "norm.svg")
    assert topology_figure(path).axes[0].texts


def test_a_picture_has_a_panel_for_what_was_compiled(tmp_path, monkeypatch):
    """The second batch of the largest one is refused above 256 images, so that the half is compiled."""

    def figures(self, job):
        if isinstance(job, LayerJob):
            return figures_of()
        if job.batch_size > 256:
            return "not compiled: RESOURCE_EXHAUSTED"
        return figures_of(passes=None, temporary=50, total=100 * job.batch_size)

    monkeypatch.setattr(compiler.Compiler, "figures", figures)
    monkeypatch.setattr(jobs, "policy", lambda: jax.checkpoint_policies.nothing_saveable)
    results = suite.run("v5e:2x2", networks=suite.Networks(batch_size=200))
    room = int(15.75 * 2**30 / 100)
    line = LargestBatch(examples=room, how="line through batches of 200 and 100")
    assert [row.largest for row in results.resnet50] == [line] * len(jobs.VARIANTS)
    path = result.write(results, tmp_path / "norm.json", [])
    assert _files.read_json(path, suite.SUITE.file).rows == results
    figure = topology_figure(path)
    figure.savefig(tmp_path / "norm.svg")
    assert [len(axes.patches) for axes in figure.axes] == [20, 7, 7, 0]
    # Every compiled program is the same here: pooling adds nothing.
    assert {row.whole_seconds for row in results.pods} == {0.0}


def test_where_a_compiler_ends_its_process_that_job_alone_fails(monkeypatch):
    target = targets.parse("h100")
    monkeypatch.setattr(targets, "missing", lambda target: None)
    answers = [
        "import sys; sys.stderr.write('out of luck'); sys.exit(3)",
        'input(); print(\'{"error": "E: no\\\\n"}\')',
    ]

    def start(self):
        return subprocess.Popen(
            [sys.executable, "-c", answers.pop(0)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    monkeypatch.setattr(compiler.Compiler, "_start", start)
    job = layer_job(shape=(1, 1, 1, 8), topology="h100")
    with compiler.Compiler(target) as c:
        assert c.figures(job) == "not compiled: its process ended with exit status 3 out of luck"
        assert c.figures(job) == "not compiled: E: no"


def mesh():
    return jax.make_mesh((8,), (jobs.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("variant", [name for name, variant in jobs.VARIANTS.items() if variant.is_sensible("relu")])
def test_every_layer_lowers_under_checked_shard_map_with_a_collective_each_way(variant, fusion):
    job = layer_job(variant, fusion)
    found = hlo.collectives(layers.lower(job, mesh()).compile())
    if fusion:
        assert [c.backward for c in found] == ([False, True] if jobs.VARIANTS[variant].has_norm else [])
    else:
        # With nothing between forward and backward XLA on a CPU may combine the two.
        assert bool(found) == jobs.VARIANTS[variant].has_norm and len(found) <= 2


@pytest.mark.parametrize("remat", jobs.REMAT)
def test_the_policy_is_applied_to_the_model_or_to_its_parts(remat, monkeypatch):
    def saves_nothing(*_, **__):
        return False

    monkeypatch.setattr(network, "policy", lambda: saves_nothing)
    step, arguments = network.train_step(network_job("policy", remat), mesh())
    # In the backward pass each region that is computed again is an equation with its policy.
    again = str(step.trace(*arguments).jaxpr).count(saves_nothing.__name__)
    assert again == {"whole": 1, "parts": 5}[remat]


def count_psums(jaxpr):
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name.startswith("psum")
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            count += count_psums(getattr(value, "jaxpr", value)) if hasattr(value, "eqns") else 0
    return count


def test_norms_of_each_device_alone_reduce_nothing():
    """The gradient of each parameter and the loss alone are reduced; pooled norms add at least one sum each."""
    eight = mesh()
    reduced = {}
    for variant in ("plain", "span", "local"):
        step, arguments = network.train_step(network_job(variant), eight)
        reduced[variant] = count_psums(step.trace(*arguments).jaxpr.jaxpr)
        parameters = len(jax.tree.leaves(arguments[0][0]))
    assert reduced["local"] == parameters + 1
    assert reduced["plain"] == reduced["span"] >= reduced["local"] + 53


def compiled_or_skipped(topology):
    target = targets.parse(topology)
    if reason := targets.missing(target):
        pytest.skip(reason)
    before, platform = dict(os.environ), jax.default_backend()
    results = suite.run(topology, ["layers"], shapes=[(64, 28, 28, 128)])
    assert dict(os.environ) == before and jax.default_backend() == platform == "cpu"
    return {(row.job.variant, row.job.fusion): row for row in results.layers}


@pytest.mark.parametrize("topology", ["h100:4", "v5e:2x2"])
def test_a_small_layer_is_compiled_for_devices_that_are_not_here(topology):
    rows = compiled_or_skipped(topology)
    assert len(rows) == 2 + 2 * 4
    assert [row.note for row in rows.values()] == [None] * len(rows)
    figures = {key: row.figures for key, row in rows.items()}
    # x read, y written; dy read, the sign of x or y read, dx written.
    expected = 5 if topology.startswith("h100") else pytest.approx(5, abs=2)
    assert figures["none", "relu"].passes == expected
    assert figures["none", "relu"].collectives == 0
    for (variant, _), row in figures.items():
        if variant != "none":
            assert row.collectives == 2 and row.passes >= 5
            assert (row.cycles is None) == topology.startswith("h100")
        if variant in ("plain", "fused"):
            # Sums of each feature in float32: two to four forward, two backward.
            assert 4 * 128 <= row.collective_elements <= 6 * 128
            assert row.collective_bytes == 4 * row.collective_elements
    assert rows["flax", ""].ratio.bytes == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite=norm", "--topology=h100:12"], "or a multiple of it; got '12'"),
        (["--suite=norm", "--topology=h100", "--parts=speed"], "unknown part 'speed'"),
        (["--suite=fold", "--topology=h100"], "--topology applies to --suite=norm"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(flags, message, tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--workdir={tmp_path}", *flags]
    ended = subprocess.run(command, text=True, capture_output=True, check=False)
    assert (ended.returncode, list(tmp_path.iterdir())) == (2, [])
    assert message in ended.stderr


def test_the_command_writes_what_it_compiled_and_draws_it(tmp_path):
    """The policy is of networks, so that of the layers there is no row to compile."""
    flags = ["--suite=norm", "--topology=h100:8", "--parts=layers", "--peers=policy", f"--workdir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "experiments.benchmark", *flags], check=True, capture_output=True)
    written = json.loads((tmp_path / "norm-h100-8.json").read_text())
    assert written["made_by"]["command"].endswith(_commands.shareable_command(flags)) and "jax" in written["made_by"]
    assert written["rows"]["topology"] == "h100:8" and written["rows"]["layers"] == []
    assert "<svg" in (tmp_path / "norm-h100-8.svg").read_text()
