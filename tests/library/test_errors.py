"""Errors of batch_norm for arguments that it does not accept."""

import jax
import jax.numpy as jnp
import pytest

from batchnorm_jax import batch_norm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: batch_norm(x.astype(jnp.int32)), r"batch_norm: .*floating point.*int32.*astype"),
        (lambda x: batch_norm(x[:0]), r"batch_norm: .*\(0, 3\).*no positions"),
        (lambda x: batch_norm(x, axis=2), r"batch_norm: feature axis 2 is out of range .* rank 2; give one of -2 to 1"),
        (lambda x: batch_norm(x, jnp.ones(4)), r"batch_norm: scale has shape \(4,\).*shape \(3,\)"),
        (lambda x: batch_norm(x, residual=x[:2]), r"batch_norm: residual has shape \(2, 3\)"),
        (lambda x: batch_norm(x, mask=jnp.ones(4)), r"batch_norm: the mask has shape \(4,\).*give it shape \(4, 1\)"),
        (lambda x: batch_norm(x, axis_name="nowhere"), r"batch_norm: axis_name='nowhere' is not bound.*shard_map"),
        (
            lambda x: batch_norm(x, collective="pmean"),
            r"collective='pmean' is not known; give one of 'psum', 'all_gather'",
        ),
        (lambda x: batch_norm(x, save_for_backward="x"), r"save_for_backward='x' is not known"),
        (
            lambda x: batch_norm(x, activation=jax.nn.relu, save_for_backward="output"),
            r"save_for_backward='output' undoes the activation.*relu.*leaky_relu or jax.nn.elu",
        ),
        (lambda x: batch_norm(x, residual=x, save_for_backward="output"), r"cannot tell the residual"),
        (lambda x: batch_norm(x, jnp.zeros(3), save_for_backward="output"), r"divides by the scale"),
        (lambda x: batch_norm(x, span=3), r"span=3 does not divide the 4 examples \(1 device x 4\).*: 1, 2, 4\."),
        (lambda x: batch_norm(x, axis_index_groups=[[0], [1]]), r"axis_index_groups=.*give axis_name too"),
        (lambda x: batch_norm(x, span=2.0), r"span=2.0 must be a whole number of examples"),
        (lambda x: batch_norm(x, axis=1.0), r"axis must be an integer or several, not 1.0"),
        (lambda x: batch_norm(x, axis=(1, -1)), r"axis=\(1, -1\) names an axis .* twice"),
        (lambda x: batch_norm(x[0, 0]), r"single number"),
        (lambda x: batch_norm(x[:, :0]), r"\(4, 0\) has no features"),
        (lambda x: batch_norm(x, activation="relu"), r"activation='relu' is not a function; .*jax.nn.relu"),
        (lambda x: batch_norm(x, jnp.ones(3) * 1j), r"scale is complex64 for an input of float32"),
        (lambda x: jax.grad(lambda e: batch_norm(x, epsilon=e)[0].sum())(1e-5), r"epsilon must be a number"),
        (
            lambda x: jax.vmap(lambda x: batch_norm(x, axis_name="i", axis_index_groups=[0])[0], axis_name="i")(
                x[None]
            ),
            r"list of lists",
        ),
    ],
)
def test_an_error_says_what_was_required_and_how_to_fix_it(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 3)))


def test_an_unhashable_activation_and_an_array_epsilon_are_accepted():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return jnp.tanh(x)

    x = jnp.arange(6.0).reshape(3, 2)
    got, _ = batch_norm(x, activation=Unhashable(), epsilon=jnp.float32(0.5))
    want, _ = batch_norm(x, activation=jnp.tanh, epsilon=0.5)
    assert jnp.array_equal(got, want)
