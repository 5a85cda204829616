"""Named options are typed once, and what repeats their names for an editor has all of them."""

import dataclasses
import inspect
import warnings
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import batchnorm_jax
from batchnorm_jax import NormWarning, UnchangedNormWarning, batch_norm, linen, torch_interop
from batchnorm_jax import nnx as ours_nnx
from batchnorm_jax._operands import Operands, as_operands
from batchnorm_jax._options import NormKeywords, NormOptions, SharedKeywords
from batchnorm_jax._recalibrate import MODES
from batchnorm_jax._saving import SAVINGS
from batchnorm_jax._statistics import EXACT, POOLINGS
from batchnorm_jax._synchronize import SynchronizeOptions
from batchnorm_jax.nnx._renorm import BatchNormOptions
from batchnorm_jax.torch_interop._layers import KINDS
from batchnorm_jax.typing import Collective, RecalibrationMode, SaveForBackward

FIELDS = {field.name: field.default for field in dataclasses.fields(NormOptions) if field.name != "caller"}


def keywords(function):
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("names", "register"),
    [
        (Collective, POOLINGS),
        (SaveForBackward, SAVINGS),
        (RecalibrationMode, MODES),
        (torch_interop.LayerKind, KINDS),
    ],
)
def test_every_name_has_one_declaration(names, register):
    assert get_args(names) == tuple(register)


def test_the_exact_collective_is_exact():
    assert POOLINGS[EXACT].is_exact


def test_the_record_has_the_options_of_the_function():
    """And the modules have every field, under the same name and with the same default."""
    given = keywords(batch_norm)
    assert {name: default for name, default in given.items() if name not in Operands._fields} == FIELDS
    assert NormKeywords.__annotations__.keys() == given.keys()
    assert SharedKeywords.__annotations__.keys() | {"axis"} == FIELDS.keys()
    of_linen = {field.name: field.default for field in dataclasses.fields(linen.BatchNorm)}
    of_nnx = keywords(ours_nnx.BatchNorm.__init__)
    assert FIELDS.items() <= of_linen.items() and FIELDS.items() <= of_nnx.items()


def test_the_keywords_for_editors_are_complete():
    assert BatchNormOptions.__annotations__.keys() == keywords(ours_nnx.BatchNorm.__init__).keys()
    assert SynchronizeOptions.__annotations__.keys() <= keywords(ours_nnx.BatchNorm.__init__).keys()


def test_resolved_options_are_a_static_argument():
    """Hashable, whatever was given, and the same for calls of another name."""
    operands = as_operands(jnp.ones((4, 3, 2)), caller="test")
    given = {"axis": [2, -2], "epsilon": jnp.float32(0.5), "axis_name": None, "activation": lambda x: jax.nn.relu(x)}
    one, other = (NormOptions(**given, caller=caller).resolved((1, 2), operands) for caller in ("this", "that"))
    assert one == other and hash(one) == hash(other) and one.activation is jax.nn.relu
    assert one.features == (1, 2) and one.dtype == jnp.float32 and isinstance(one.epsilon, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.epsilon = 0.1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_warning_is_of_one_public_category():
    public = [getattr(batchnorm_jax, name) for name in batchnorm_jax.__all__]
    kinds = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Warning)]
    assert len(kinds) == 4 and all(issubclass(kind, NormWarning) and kind.__doc__ for kind in kinds)


class Lookalike(nn.Module):
    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        return x - mean.value[None]


class NnxLookalike(nnx.Module):
    def __init__(self):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))

    def __call__(self, x):
        return x - self.mean[...][None]


@pytest.mark.parametrize("change", ["synchronize", "recalibrate", "fold"])
@pytest.mark.parametrize("family", ["linen", "nnx"])
def test_a_norm_that_stays_is_warned_of_in_a_category(family, change):
    x = jnp.ones((8, 3))
    if family == "linen":
        model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), Lookalike()])
        variables = model.init(jax.random.key(0), x)

        def synchronize():
            with linen.synchronize(None):
                model.apply(variables, x)

        calls = {
            "synchronize": synchronize,
            "recalibrate": lambda: linen.recalibrate(model, variables, [x]),
            "fold": lambda: linen.fold(model, variables, None, x),
        }
    else:
        rngs = nnx.Rngs(0)
        of_nnx = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), NnxLookalike())
        calls = {
            "synchronize": lambda: ours_nnx.synchronize(of_nnx, axis_name=None),
            "recalibrate": lambda: ours_nnx.recalibrate(of_nnx, [x]),
            "fold": lambda: ours_nnx.fold(of_nnx, None, x),
        }
    with pytest.warns(UnchangedNormWarning, match=f"^{change}: .*Lookalike") as told:
        calls[change]()
    # It points at the call, not into the library; but inside a jitted function JAX is the caller.
    assert (family, change) == ("linen", "recalibrate") or [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NormWarning)
        calls[change]() if (family, change) != ("nnx", "synchronize") else None
