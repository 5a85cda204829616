"""What may be given to the norm, checked before anything is computed."""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from batchnorm_jax._activations import inverse, recognised
from batchnorm_jax._moments import feature_axes, is_number

COLLECTIVES = ("psum", "all_gather")
SAVED = ("input", "output", "nothing")
# Who is pooled with whom, and not how.
OF_POOLING = ("axis_name", "axis_index_groups", "span")
# What `synchronize` may give to a norm that exists: how it pools and averages, not what the model computes or keeps.
OF_SYNCHRONIZE = (
    "axis_index_groups",
    "span",
    "collective",
    "use_fast_variance",
    "unbiased_running_var",
    "skip_nonfinite",
    "check_conditioning",
    "momentum",
)


def check_synchronize(options: Iterable[str]) -> None:
    """Raises a ValueError for an option that `synchronize` does not take."""
    for name in options:
        if name not in OF_SYNCHRONIZE:
            close = difflib.get_close_matches(name, OF_SYNCHRONIZE, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(
                f"synchronize: {name!r} is not an option here{hint} Options are {', '.join(OF_SYNCHRONIZE)}"
            )


def check_input(x: jax.Array, axis, *, caller: str, may_be_empty: bool = False) -> tuple[int, ...]:
    """Returns the feature axes of an input that can be normalised; by known statistics an empty one can be, too."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(
            f"{caller}: the input must have a floating point or complex dtype, not {x.dtype}; "
            "convert it, for example with x.astype(jnp.float32)"
        )
    features = feature_axes(axis, x.ndim, caller=caller)
    if 0 in (x.shape[i] for i in features):
        raise ValueError(f"{caller}: the input of shape {x.shape} has no features on axis {axis}")
    if x.size == 0 and not may_be_empty:
        raise ValueError(
            f"{caller}: the input of shape {x.shape} has no positions to take statistics of; give at least one example"
        )
    return features


def check_real(scale, bias, x: jax.Array, *, caller: str) -> None:
    """Raises a ValueError for a complex scale, and for a complex bias of a real input."""
    for name, value, allowed in (("scale", scale, False), ("bias", bias, jnp.iscomplexobj(x))):
        if value is not None and jnp.iscomplexobj(value) and not allowed:
            raise ValueError(f"{caller}: {name} is {value.dtype} for an input of {x.dtype}; give it a real dtype")


# What other libraries call it, and what it is here.
_PEERS = {
    "eps": "epsilon",
    "decay": "momentum, the share that is kept",
    "decay_rate": "momentum, the share that is kept",
    "affine": "use_scale and use_bias",
    "create_scale": "use_scale",
    "create_offset": "use_bias",
    "scale": "use_scale",
    "center": "use_bias",
    "track_running_stats": "use_running_average=False with update_stats=False",
    "process_group": "axis_index_groups",
    "cross_replica_axis": "axis_name",
    "group_size": "span, a number of examples",
    "virtual_batch_size": "span, a number of examples",
    "train": "use_running_average, its opposite",
    "training": "use_running_average, its opposite",
    "is_training": "use_running_average, its opposite",
    "inference": "use_running_average",
    "frozen": "use_running_average=True",
    "rmax": "r_max of BatchRenorm",
    "dmax": "d_max of BatchRenorm",
    "warmup_steps": "r_max and d_max of BatchRenorm, which may be functions of the number of updates: "
    "r_max=lambda step: jnp.where(step < 1000, 1.0, 3.0)",
    "renorm": "the class BatchRenorm",
    "renorm_clipping": "r_max and d_max of BatchRenorm",
    "renorm_momentum": "momentum",
}


def check_names(given: Iterable[str], known: Iterable[str], *, caller: str) -> None:
    """Raises a TypeError for an option that there is not; where another library has it, it says ours."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f"here it is {_PEERS[name]}" if name in _PEERS else f"did you mean {close[0]}?" if close else ""
        raise TypeError(f"{caller}: there is no option {name!r}; {hint or 'options are ' + ', '.join(known)}")


def check_epsilon(epsilon: Any, *, caller: str) -> None:
    """Raises a ValueError for an epsilon that is no number, or negative; a traced one is a number when it runs."""
    if isinstance(epsilon, Tracer):
        return
    if not is_number(epsilon) or not epsilon >= 0:
        raise ValueError(f"{caller}: epsilon={epsilon!r} must be a number of at least 0; the usual one is 1e-5")


def check_activation(activation: Any, *, caller: str) -> None:
    """Raises a ValueError for what is no function."""
    if activation is not None and not callable(activation):
        raise ValueError(f"{caller}: activation={activation!r} is not a function; give one, for example jax.nn.relu")


def as_flag(value: Any, name: str, *, caller: str) -> bool:
    """Returns a flag as a bool.

    Raises:
      ValueError: it is neither true nor false, such as a text, or known only when the program runs.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{caller}: {name} decides which program is traced, and must be known then; mark it as static, as in "
            "jax.jit(step, static_argnames='train')"
        )
    single = isinstance(value, np.ndarray | jax.Array) and np.shape(value) == () and value.dtype == bool
    if single or isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ValueError(f"{caller}: {name}={value!r} must be True or False")


def check_dtype(dtype: Any, name: str = "dtype", *, caller: str) -> None:
    """Raises a ValueError for what is no dtype of floating point or complex numbers; None is one that is not given."""
    if dtype is None:
        return
    try:
        # An array has a dtype, and is none.
        known = not isinstance(dtype, jax.Array | np.ndarray) and jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"{caller}: {name}={dtype!r} must be a floating point or complex dtype, for example jnp.float32"
        )


def check_options(*, collective, activation: Any, save_for_backward, has_residual: bool, caller: str) -> None:
    """Raises a ValueError where options are unknown or conflict."""
    check_activation(activation, caller=caller)
    for name, value, known in (
        ("collective", collective, COLLECTIVES),
        ("save_for_backward", save_for_backward, SAVED),
    ):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{caller}: {name}={value!r} is not known; give one of {', '.join(map(repr, known))}")
    if save_for_backward != "output":
        return
    function: Any = activation
    if inverse(recognised(function)) is None:
        name = getattr(activation, "__name__", activation)
        raise ValueError(
            f"{caller}: save_for_backward='output' undoes the activation, which {name} does not allow; use none, "
            "jax.nn.leaky_relu or jax.nn.elu, or save_for_backward='input'"
        )
    if has_residual:
        raise ValueError(
            f"{caller}: save_for_backward='output' cannot tell the residual from the rest of y; add it outside, or use "
            "save_for_backward='input'"
        )


def check_scale(scale: Any, save_for_backward: str, *, caller: str) -> None:
    """Raises a ValueError for a scale with zeros, where the backward pass would divide by it and its value is known."""
    known = save_for_backward == "output" and scale is not None and not isinstance(scale, Tracer)
    if known and np.any(np.asarray(scale) == 0):
        raise ValueError(
            f"{caller}: save_for_backward='output' divides by the scale, and some of it is zero; initialise it with "
            "other values, or use save_for_backward='input'"
        )
