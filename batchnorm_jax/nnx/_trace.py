"""Records which modules of an nnx model feed which others, by tracing a copy of the model on an example."""

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import jax
from flax import nnx

from batchnorm_jax._checks import feature_axes
from batchnorm_jax._flow import Flow, mark
from batchnorm_jax._pairs import Seen, Trace, objection_to_equation, objection_to_norm, traced
from batchnorm_jax.nnx._pairs import NORMS, Model

# The run that is being traced. Modules cannot refer to it, because transforms make them anew.
_seen: ContextVar[Trace] = ContextVar("seen")


def trace(model: nnx.Module, args: tuple, kwargs: Mapping[str, Any]) -> Trace:
    """Traces a copy of the model on an example and records its layers and norms; nothing is computed."""
    graph, state = nnx.split(model)
    known = Model(model)
    variables = {
        "params": {path: {"kernel": known.places[path].value.kernel[...]} for path in known.layers},
        "batch_stats": {path: {"mean": known.places[path].value.mean[...]} for path in known.norms},
        "state": state,
    }
    seen = Trace({}, {}, Flow({}, {}, {}, set()))

    def run(variables, *args, **kwargs):
        copy = nnx.merge(graph, variables["state"])
        places = Model(copy).places
        for collection in ("params", "batch_stats"):
            for path, stored in variables[collection].items():
                module = places[path].value
                for name, value in stored.items():
                    getattr(module, name).set_value(value)
                module.__class__ = _marked(type(module))
                module.path_in_trace = path
        result = copy(*args, **kwargs)
        # The model may keep a value in its state: that counts as reading it.
        return [leaf for leaf in jax.tree.leaves((result, nnx.state(copy))) if isinstance(leaf, jax.Array)]

    token = _seen.set(seen)
    try:
        return seen._replace(flow=traced(run, variables, args, kwargs))
    finally:
        _seen.reset(token)


@functools.cache
def _marked(kind: Any) -> type:
    """Returns a class of layers, or norms, that mark their inputs and outputs in the program."""

    class Layer(kind):
        def __call__(self, *args, **kwargs):
            path, kernel = self.path_in_trace, self.kernel[...]
            mark("stored", path, kernel)
            reason = objection_to_equation(self.einsum_str) if issubclass(kind, nnx.Einsum) else ""
            _seen.get().layers[path] = Seen(path, None, kernel.shape, reason)
            return mark("layer", path, kind.__call__(self, *args, **kwargs))

    class Norm(kind):
        def __call__(self, x, use_running_average=None, **options):
            path, mean = self.path_in_trace, self.mean[...]
            mark("stored", path, mean)
            running = self.use_running_average if use_running_average is None else use_running_average
            updates = options.get("update_stats")
            axes = feature_axes(self.axis, x.ndim, caller="fold")
            reason = objection_to_norm(
                axes,
                self.axis,
                x.ndim,
                running=bool(running),
                updates=getattr(self, "update_stats", None) if updates is None else updates,
            )
            _seen.get().norms[path] = Seen(path, None, mean.shape, reason)
            return kind.__call__(self, mark("norm", path, x), use_running_average, **options)

    return Norm if kind in NORMS else Layer
