"""linen.fold looks at the program: what is between a layer and its norm, who else reads it, and what encloses both."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from batchnorm_jax.linen import BatchNorm, fold
from tests.library.test_fold_linen import check, draw, drawn
from tests.reference import normwise_error


class Standardized(nn.Dense):
    """Not what its base is: as of a layer that is normalised, a scale of the kernel changes nothing."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return value / jnp.linalg.norm(value) if name == "kernel" else value


MADE_BY = {"derived class": partial(Standardized, 4), "einsum": partial(nn.Einsum, (4, 4), "bi,oi->bo")}


class Net(nn.Module):
    """A dense layer "a" and a norm "n" in the way that the case says, and a sound pair "b" and "m" behind them."""

    case: str

    @nn.compact
    def __call__(self, x, train=False):
        options = {"another axis": {"axis": 0}, "updates": {"update_stats": True}}.get(self.case, {})
        n = BatchNorm(use_running_average=not train, name="n", **options)
        a = MADE_BY.get(self.case, partial(nn.Dense, 4))(name="a")
        match self.case:
            case "named by the user":
                y = n(checkpoint_name(a(x), "saved"))
            case "something between":
                y = n(nn.relu(a(x)))
            case "read elsewhere":
                y = a(x)
                y = n(y) + y
            case "returned":
                y = a(x)
                return nn.Dense(4, name="b")(n(y)), y
            case "read in a loop":
                y = a(x)
                y = n(y) + jax.lax.fori_loop(0, 2, lambda _, s: s + y, jnp.zeros_like(y))
            case "layer twice":
                y = n(a(a(x)))
            case "norm twice":
                y = n(n(a(x)))
            case "two norms":
                y = a(x)
                y = n(y) + BatchNorm(use_running_average=True, name="o")(y)
            case "weight norm":
                y = n(nn.WeightNorm(a)(x))
            case "spectral norm":
                y = n(nn.SpectralNorm(a)(x, update_stats=False))
            case _:
                y = n(a(x))
        return BatchNorm(use_running_average=True, name="m")(nn.Dense(4, name="b")(y))


# Cases of the net, and why "a" is not folded there.
REFUSED = {
    "something between": "'n' is not given the output of layer 'a' as it is, but something else",
    "read elsewhere": "the output of layer 'a' goes to other places than norm 'n'",
    "returned": "the output of layer 'a' goes to other places than norm 'n'",
    "read in a loop": "the output of layer 'a' goes to other places than norm 'n'",
    "layer twice": "layer 'a' is called 2 times",
    "norm twice": "norm 'n' is called 2 times",
    "two norms": "the output of layer 'a' goes to other places than norm 'n'",
    "another axis": "norm 'n': its feature axis is 0, and the features of a layer are on the last of 2 axes",
    "updates": "norm 'n': it updates its statistics in evaluation too",
    "derived class": "no layer 'a' can be folded; there are: b; did you mean 'b'?",
    "einsum": "layer 'a': 'bi,oi->bo' does not have the kernel's last axis last",
    "weight norm": "layer 'a' does not compute with its variables as they are stored",
    "spectral norm": "layer 'a' does not compute with its variables as they are stored",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_is_refused_and_left_out(case):
    model, x = Net(case), draw((4, 4))
    variables = drawn(model.init(jax.random.key(0), x))
    with pytest.raises(ValueError, match=re.escape(REFUSED[case])):
        fold(model, variables, [("a", "n")], x, **({"mutable": ["batch_stats"]} if case == "updates" else {}))
    if case not in ("returned", "updates"):
        with pytest.warns(UserWarning, match="fold: . norms? of the model .*'[nm]'"):
            folded = check(model, variables, None, x)
        assert "m" not in folded["batch_stats"] and "n" in folded["batch_stats"]


@pytest.mark.parametrize("case", ["sound", "named by the user"])
def test_a_sound_pair_is_found(case):
    model, x = Net(case), draw((4, 4))
    folded = check(model, drawn(model.init(jax.random.key(0), x)), None, x)
    assert folded.keys() == {"params"} and folded["params"].keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("aa", "n")], "no layer 'aa' can be folded; there are: a, b; did you mean 'a'?"),
        ([("a", "a")], "no norm 'a' can be folded; there are: m, n"),
        ([("a", "n"), ("b", "n")], "norm 'n' is in several pairs"),
        ([("a", "m")], "norm 'm' is not given the output of layer 'a' as it is, but that of layer 'b'"),
        ([], "pairs is empty"),
    ],
)
def test_wrong_pairs(pairs, message):
    model, x = Net("sound"), draw((4, 4))
    with pytest.raises(ValueError, match=re.escape(message)):
        fold(model, model.init(jax.random.key(0), x), pairs, x)


def test_nothing_to_fold():
    x = draw((4, 4))
    for model, why in (
        (nn.Dense(4), "the model called no BatchNorm"),
        (nn.Sequential([nn.relu, BatchNorm(use_running_average=True)]), "'layers_1' is given does not come straight"),
        (nn.Sequential([nn.Dense(4), BatchNorm(use_running_average=False)]), "for example train=False"),
    ):
        variables = model.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=f"fold: there is nothing to fold: .*{why}"):
            fold(model, variables, None, x, mutable=["batch_stats"])


def test_missing_statistics_are_the_models_own_error():
    model, x = Net("sound"), draw((4, 4))
    with pytest.raises(Exception, match="batch_stats"):
        fold(model, {"params": model.init(jax.random.key(0), x)["params"]}, None, x)


class Body(nn.Module):
    """One step: of a scan it gives a pair."""

    use_bias: bool = True
    pair: bool = False
    norm: type[nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm(use_running_average=True)(nn.Dense(4, use_bias=self.use_bias)(x)))
        return (y, None) if self.pair else y


def scanned(params=0, batch_stats=0, body=Body):
    def make(use_bias):
        return nn.scan(
            body, variable_axes={"params": params, "batch_stats": batch_stats}, split_rngs={"params": True}, length=3
        )(use_bias, pair=True)

    return make


def shared_by_a_scan(use_bias):
    return nn.scan(Body, variable_broadcast=("params", "batch_stats"), split_rngs={"params": False}, length=3)(
        use_bias, pair=True
    )


def mapped(axis=0):
    axes = {"params": axis, "batch_stats": axis}
    return lambda use_bias: nn.vmap(Body, variable_axes=axes, split_rngs={"params": True}, axis_size=3, in_axes=None)(
        use_bias
    )


def lifted(transform):
    class Lifted(nn.Module):
        use_bias: bool

        @nn.compact
        def __call__(self, x):
            return transform(BatchNorm)(use_running_average=True)(transform(nn.Dense)(4, use_bias=self.use_bias)(x))

    return Lifted


ENCLOSED = {
    "remat": lambda use_bias: nn.remat(Body)(use_bias),
    "jit": lambda use_bias: nn.jit(Body)(use_bias),
    "remat of each": lifted(nn.remat),
    "jit of each": lifted(nn.jit),
    "scan": scanned(),
    "scan of remat": scanned(body=nn.remat(Body, prevent_cse=False)),
    "scan that shares": shared_by_a_scan,
    "vmap": mapped(),
}


class Outer(nn.Module):
    make: object
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        y = self.make(self.use_bias)(x)
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("enclosed", ENCLOSED)
def test_inside_of_transforms(enclosed, use_bias):
    model, x = Outer(ENCLOSED[enclosed], use_bias), draw((5, 4))
    variables = drawn(model.init(jax.random.key(0), x))
    # It is traced before, so that there are cached programs of what is inside.
    want = model.apply(variables, x)
    folded = check(model, variables, None, x)
    assert list(folded) == ["params"] and len(jax.tree.leaves(folded)) == 2
    assert normwise_error(model.apply(variables, x), want) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scanned(params=1), "does not compute with its variables as they are stored"),
        (scanned(batch_stats=1), "norm .* does not compute with its variables as they are stored"),
        (mapped(axis=1), "are not stacked alike along the axes 0"),
    ],
)
def test_other_axes_of_scans_are_refused(make, message):
    model, x = Outer(make, True), draw((5, 4))
    with pytest.raises(ValueError, match=message):
        fold(model, model.init(jax.random.key(0), x), None, x)


def test_a_method_that_is_not_call():
    class Encoder(nn.Module):
        def setup(self):
            self.layer, self.norm = nn.Dense(4), nn.BatchNorm(use_running_average=True)

        def encode(self, x):
            return self.norm(self.layer(x))

    model, x = Encoder(), draw((5, 4))
    variables = drawn(model.init(jax.random.key(0), x, method="encode"))
    check(model, variables, [("layer", "norm")], x, method="encode")
