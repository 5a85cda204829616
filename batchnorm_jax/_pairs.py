"""Finds the layers of a model that can be folded with its norms, from a record of one run of the model."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from batchnorm_jax._flow import Flow, follow
from batchnorm_jax._warnings import warn_of_unchanged
from batchnorm_jax.typing import Axes

_traces = itertools.count()


class Seen(NamedTuple):
    """A layer or a norm, as the model called it.

    Attributes:
      path: the names from the outermost module inward, with slashes between.
      module: the module, of which only the options are read.
      shape: the shape of the layer's kernel or the norm's mean, inside whatever scan or vmap encloses it.
      objection: the reason why it cannot be folded, whatever its partner; "" where it can.
    """

    path: str
    module: Any
    shape: tuple[int, ...]
    objection: str


class Trace(NamedTuple):
    """The layers and norms that a model called, by path, and the values that go from one to another.

    Attributes:
      layers: the layers of a class that can be folded.
      norms: the norms of a class that can be folded.
      flow: the values that go from one to another.
    """

    layers: dict[str, Seen]
    norms: dict[str, Seen]
    flow: Flow


def traced(run: Callable[..., Any], variables: Any, args: tuple, kwargs: Mapping[str, Any]) -> Flow:
    """Follows the values that `run(variables, *args, **kwargs)` marks; nothing is computed.

    Args:
      run: the function to trace. It returns every value that leaves the model: a value that is neither returned nor
        marked is lost.
      variables: nested dictionaries, with the names that `follow` knows.
      args: the example; arrays may be `jax.ShapeDtypeStruct`s, and the rest, such as train=False, stays as it is.
      kwargs: the example's keyword arguments.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {
        i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    }

    def with_arrays(variables, arrays):
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return run(variables, *args, **kwargs)

    # Metadata of its own makes JAX trace everything anew: for a jit inside the model that ran before, JAX would reuse
    # the program that it has, and no module would be called.
    with set_xla_metadata(batchnorm_jax_fold=next(_traces)):
        program = jax.make_jaxpr(with_arrays)(variables, arrays).jaxpr
    return follow(program, variables)


def every_pair(seen: Trace) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the paths of every layer that can be folded and its norm, and the reason for each norm that stays."""
    found, reasons = [], []
    for path in seen.norms:
        source = next(iter(seen.flow.sources[path]), None)
        if source is None:
            reasons.append(f"what norm {path!r} is given does not come straight from a convolution or dense layer")
        elif reason := objection(seen, source, path):
            reasons.append(reason if repr(path) in reason else f"norm {path!r}: {reason}")
        else:
            found.append((source, path))
    return found, reasons


def say_what_stays(
    found: Sequence[Any], number: int, reasons: Sequence[str], *, advice: str = "Give pairs to fold these alone"
) -> None:
    """Warns of the norms that stay in a call that is to fold every norm that can be folded.

    Args:
      found: the pairs that can be folded.
      number: the number of norms that stay.
      reasons: the reasons why they stay.
      advice: the end of the message: what the user can do.

    Raises:
      ValueError: no norm can be folded; the message gives the reasons.
    """
    if not found:
        why = "; ".join(reasons[:3]) or "the model called no BatchNorm of Flax or of batchnorm_jax"
        raise ValueError(f"fold: there is nothing to fold: {why}. {advice}")
    if number:
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        warn_of_unchanged(
            f"fold: {number} norm{'s' if number > 1 else ''} of the model stay{'' if number > 1 else 's'} as "
            f"{'they are' if number > 1 else 'it is'}: {'; '.join(reasons[:5])}{more}. {advice}",
            stacklevel=4,
        )


def check_paths(pairs: Any, layers: Iterable[str], norms: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the pairs as they were given, if each path exists and is given once.

    Raises:
      ValueError: a path does not exist or is given twice, or there are no pairs.
    """
    known = {"layer": list(layers), "norm": list(norms)}
    if isinstance(pairs, str) or hasattr(pairs, "shape") or not isinstance(pairs, Iterable):
        raise ValueError(f"fold: pairs must be a list of (layer, norm) paths, or None, not {pairs!r}")
    pairs = list(pairs)
    if not pairs:
        raise ValueError(
            "fold: there is nothing to fold: pairs is empty; give (layer, norm) paths, or None for every pair that "
            "there is"
        )
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or [type(path) for path in pair] != [str, str]:
            raise ValueError(f"fold: pairs holds {pair!r}; each must be two paths, (layer, norm)")
        for kind, path in zip(known, pair, strict=True):
            if path not in known[kind]:
                raise _unknown_path(kind, path, known[kind])
            if sum(path in other for other in pairs) > 1:
                raise ValueError(f"fold: {kind} {path!r} is in several pairs; a layer is folded with one norm, once")
    return pairs


def objection(seen: Trace, layer: str, norm: str) -> str:
    """Returns the reason why the pair cannot be folded; "" where it can."""
    flow = seen.flow
    for kind, path, found in (("layer", layer, seen.layers), ("norm", norm, seen.norms)):
        if found[path].objection:
            return f"{kind} {path!r}: {found[path].objection}"
        if flow.calls[path] != 1:
            return f"{kind} {path!r} is called {flow.calls[path]} times; what is shared cannot be folded"
    if flow.sources[norm] != [layer]:
        given = flow.sources[norm][0]
        return f"norm {norm!r} is not given the output of layer {layer!r} as it is, but " + (
            "something else: nothing may be in between" if given is None else f"that of layer {given!r}"
        )
    if flow.readers[layer] != [norm]:
        return f"the output of layer {layer!r} goes to other places than norm {norm!r}, which need it as it is"
    for kind, path in (("layer", layer), ("norm", norm)):
        if path not in flow.stored:
            return (
                f"{kind} {path!r} does not compute with its variables as they are stored, whole or along the axes 0 of "
                "its scans: a spectral or weight norm, another map of variables or another axis comes first"
            )
    return ""


def objection_to_norm(axes: tuple[int, ...], axis: Axes, ndim: int, *, running: bool, updates: bool | None) -> str:
    """Returns the reason why a norm cannot be folded, by its call; "" where it can.

    Args:
      axes: the resolved feature axes.
      axis: the feature axis or axes as given, for the message.
      ndim: the rank of the input.
      running: the norm normalises by the running statistics.
      updates: the norm updates them in this call.
    """
    if axes != (ndim - 1,):
        return f"its feature axis is {axis}, and the features of a layer are on the last of {ndim} axes"
    if not running:
        return "it normalises by the batch; give the arguments that evaluate, for example train=False"
    if updates:
        return "it updates its statistics in evaluation too (update_stats=True)"
    return ""


def objection_to_equation(equation: str) -> str:
    """Returns the reason why an einsum cannot be folded; "" where it can."""
    operands, result = equation.replace(" ", "").split("->")
    last = operands[-1:]
    return "" if last == result[-1:] and last.isalpha() else f"{equation!r} does not have the kernel's last axis last"


def _unknown_path(kind: str, path: str, known: Iterable[str]) -> ValueError:
    """Returns an error that lists the existing paths and names the one closest to the path that was given."""
    known = sorted(known)
    closest = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    hint = f"; did you mean {closest[0]!r}?" if closest else ""
    return ValueError(f"fold: no {kind} {path!r} can be folded; there are: {', '.join(known) or 'none'}{hint}")
