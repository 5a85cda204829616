"""Answers an option name of another library with the name that the option has here."""

import difflib
from collections.abc import Iterable

# Option names of PyTorch, TensorFlow, haiku and others, and the options here that do the same.
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
    """Raises a TypeError for an unknown option, with the option's name here if another library has it."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f"here it is {_PEERS[name]}" if name in _PEERS else f"did you mean {close[0]}?" if close else ""
        raise TypeError(f"{caller}: there is no option {name!r}; {hint or 'options are ' + ', '.join(known)}")
