"""The state of a problem: how a session keeps it, whatever tree it is, and what an update may make of it."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _users
from ..problems.problem import Problem
from .config.options import TrainConfig
from .state import TrainState


@contextlib.contextmanager
def running(config: TrainConfig, name: str) -> Iterator[None]:
    """Turns an error of one of the five functions into a sentence that names it."""
    assert config.problem is not None
    with _users.running("problem", config.problem, f"its {name}"):
        yield


class _Leaf(NamedTuple):
    """How an array of a problem's state is kept: keys of random numbers as numbers, everything else as it is.

    Attributes:
      key: the implementation of a key; None: not a key.
    """

    key: str | None

    @classmethod
    def of(cls, leaf: Any) -> "_Leaf":
        return cls(str(jax.random.key_impl(leaf)) if is_key(leaf) else None)

    def plain(self, leaf: Any) -> jax.Array:
        """Returns an array of numbers."""
        if self.key is not None:
            return jax.random.key_data(leaf)
        array = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        # Numbers of Python's are of a weak type, which a checkpoint cannot hold: a run that resumes would round anew.
        return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array

    def own(self, array: jax.Array) -> jax.Array:
        """Returns what the problem knows."""
        return array if self.key is None else jax.random.wrap_key_data(array, impl=self.key)


class Structure(NamedTuple):
    """The tree of a problem's state, which is kept as a list, so that any class of tree can be stored."""

    tree: Any
    leaves: list[_Leaf]

    def own(self, state: TrainState) -> Any:
        """Returns the state as the problem knows it."""
        kept = zip(self.leaves, state.opt_state, strict=True)
        return jax.tree.unflatten(self.tree, [leaf.own(array) for leaf, array in kept])

    def plain(self, own: Any, step: Any) -> TrainState:
        """Returns a state of the problem's as the session keeps it; `check` has seen one like it."""
        leaves = jax.tree.leaves(own)
        return TrainState(step, {}, {}, [leaf.plain(a) for leaf, a in zip(self.leaves, leaves, strict=True)])

    def check(self, before: Any, after: Any, loss: Any) -> None:
        """Refuses what an update returns if it is not a state like the one that it got, and a loss.

        Args:
          before: the state before the update.
          after: the state after it; of this and the loss shapes and types count, so that they may be abstract.
          loss: the loss.

        Raises:
          ValueError: a part of the state is missing, new, or of another shape or type, or the loss is not one number.
        """
        there, here = (
            {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
            for state in (before, after)
        )
        if different := sorted(there.keys() ^ here.keys()):
            path = different[0]
            has, lacks = ("init", "update") if path in there else ("update", "init")
            raise ValueError(
                f"the state of {has} has a part {path or 'of its own'}, and that of {lacks} has not; both must have "
                "the same structure"
            )
        for path, leaf in there.items():
            kinds = [f"{_dtype(one)} of shape {np.shape(one)}" for one in (leaf, here[path])]
            if kinds[0] != kinds[1]:
                raise ValueError(f"the part {path} of the state is {kinds[0]} before it and {kinds[1]} after it")
        if np.shape(loss) != () or not jnp.issubdtype(_dtype(loss), jnp.floating):
            raise ValueError(f"the loss must be one number, not {_dtype(loss)} of shape {np.shape(loss)}")


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(leaf).dtype


class Started:
    """The state of a problem before its first update.

    Attributes:
      structure: how the state is kept.
      state: the state as a session keeps it.
      devices: the devices that hold it.
    """

    def __init__(self, config: TrainConfig, problem: Problem):
        """Initialises the problem with the seed of a configuration."""
        with running(config, "init"):
            leaves, tree = jax.tree.flatten(problem.init(config.seed))
            kept = [_Leaf.of(leaf) for leaf in leaves]
            arrays = [leaf.plain(a) for leaf, a in zip(kept, leaves, strict=True)]
        self.structure = Structure(tree, kept)
        self.state = TrainState(jnp.zeros((), jnp.int32), {}, {}, arrays)
        held = {device for array in arrays for device in array.devices()} or set(jax.local_devices()[:1])
        self.devices = sorted(held, key=lambda device: device.id)

    def digest(self) -> str:
        """Returns a digest of the places, shapes and types of the arrays."""
        own = self.structure.own(self.state)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(own)[0]]
        # Not of the tree itself, whose text may hold addresses of functions.
        kinds = [(path, a.shape, str(a.dtype)) for path, a in zip(paths, self.state.opt_state, strict=True)]
        return hashlib.sha256(str(kinds).encode()).hexdigest()[:16]


def copied(state: Any) -> Any:
    """Returns a copy of a state, for an update that may donate its state."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, state)


def is_key(leaf: Any) -> bool:
    """Returns whether an array holds keys of random numbers, which have no numbers of their own."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
