"""nnx.fold with an example finds the pairs in the program, and says of each norm that stays why."""

import re

import jax
import pytest
from flax import linen as nn
from flax import nnx

from batchnorm_jax.nnx import BatchNorm, fold
from tests.compat import view
from tests.library.test_fold_linen import TOLERANCE, draw
from tests.library.test_fold_nnx import drawn
from tests.reference import normwise_error


class Own(nnx.BatchNorm):
    """A class derived from a norm."""


class Net(nnx.Module):
    """A layer "a" and a norm "n" in the way that the case says, and a sound pair "b" and "m" behind them."""

    def __init__(self, case):
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(4, 4, use_bias=False, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.n = (Own if case == "derived" else BatchNorm)(4, rngs=rngs)
        self.m = nnx.BatchNorm(4, rngs=rngs)
        self.case = case

    def __call__(self, x, train=False):
        running = not train
        match self.case:
            case "sound" | "derived":
                y = self.n(self.a(x), running)
            case "jit":
                y = nnx.jit(lambda a, n, x: n(a(x), True))(self.a, self.n, x)
            case "remat":
                y = nnx.remat(lambda a, n, x: n(a(x), True))(self.a, self.n, x)
            case "between":
                y = self.n(nnx.relu(self.a(x)), running)
            case "elsewhere":
                y = self.a(x)
                y = y + self.n(y, running)
            case "kept":
                y = self.a(x)
                self.hidden = nnx.Intermediate(y)
                y = self.n(y, running)
            case "twice":
                y = self.n(self.n(self.a(x), running), running)
            case "changed":
                self.a.kernel[...] = self.a.kernel[...] / 2
                y = self.n(self.a(x), running)
            case "of the batch":
                y = self.n(self.a(x), False, update_stats=False)
            case _:
                y = self.a(x)
        return self.m(self.b(y), running)


STAYS = {
    "between": "what norm 'n' is given does not come straight from",
    "elsewhere": "the output of layer 'a' goes to other places than norm 'n'",
    "kept": "the output of layer 'a' goes to other places than norm 'n'",
    "twice": "norm 'n' is called 2 times",
    "changed": "layer 'a' does not compute with its variables as they are stored",
    "of the batch": "norm 'n': it normalises by the batch",
    "not called": "norm 'n' is not called with this example",
    "derived": "norm 'n' is of the class Own, which may do more",
}


@pytest.mark.parametrize("case", ["sound", "jit", "remat", *STAYS])
def test_what_can_be_folded_is_found_and_what_stays_is_said(case):
    model, x = drawn(Net(case)), draw((8, 4))
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    if case in STAYS:
        with pytest.warns(UserWarning, match=rf"fold: 1 norm of the model stays as it is: .*{re.escape(STAYS[case])}"):
            folded = fold(model, None, example, train=False)
        if case != "derived":
            with pytest.raises(ValueError, match=r"norm 'n'|layer 'a'"):
                fold(model, [("a", "n")], x)
    else:
        folded = fold(model, None, example, train=False)
    left = {path[0] for path, _ in nnx.to_flat_state(nnx.state(folded, nnx.BatchStat))}
    assert left == ({"n"} if case in STAYS else set())
    want = view(model, use_running_average=True)(x)
    assert normwise_error(folded(x), want) < TOLERANCE
    # The model is what it was, and nothing of the trace is left in either.
    assert type(model.a) is type(folded.a) is nnx.Linear and not hasattr(folded.a, "path_in_trace")


def test_of_a_model_that_is_none_of_nnx():
    with pytest.raises(ValueError, match=r"fold: Dense is a flax.linen module, .*batchnorm_jax.linen.fold"):
        fold(nn.Dense(3))
