"""The output of `--help`, which lists the flags in groups with their defaults, and of `--version`."""

import importlib.metadata
import shutil
import sys
import textwrap

from absl import flags

from . import _commands

# Flags by title, in the order in which they are shown; a flag that is missing here is shown under `MORE`.
GROUPS = {
    "Actions": (
        "checkpoint", "step", "domain", "recalibrate", "preset", "list_presets", "parts", "suite", "peers", "topology",
        "dry_run", "status", "json",
    ),
    "Data": (
        "dataset", "problem", "tasks", "data_dir", "image_size", "input", "validation_examples", "augmentation",
        "drop_remainder",
    ),
    "Model and normalization": (
        "model", "zero_last_scale", "dtype", "norm", "span", "norm_momentum", "norms", "remat",
    ),
    "Batch and length": (
        "batch_size", "batch_sizes", "per_device_batch_size", "per_device_batch_sizes", "accumulation_steps",
        "backwards_per_forward", "batch_ramp", "critical_share", "epochs", "steps", "max_epochs", "target_accuracy",
        "target_loss", "past_target", "budget_minutes", "rounds", "seconds", "branch_points", "branch_examples",
        "multiples", "tolerance",
    ),
    "Recipe": (
        "optimizer", "base_learning_rate", "lr_scaling", "learning_rate", "learning_rates", "rate_factors", "schedule",
        "warmup_epochs", "step_epochs", "step_factor", "cycle_epochs", "momentum", "b2", "weight_decay", "decay_all",
        "average_weights", "label_smoothing", "seed", "seeds",
    ),
    "Devices and processes": (
        "num_devices", "distributed", "coordinator_address", "num_processes", "process_id", "executor", "parallel",
        "partition", "time_minutes", "gpus_per_job", "cpus_per_job", "memory_gb", "cluster_file",
    ),
    "Results": (
        "workdir", "log_every", "evaluate_every", "evaluate_growth", "noise_every", "live", "checkpoint_every",
    ),
}  # fmt: skip
MORE = "More"
# The column in which the help texts begin: wide enough for most names of flags.
TEXT_COLUMN = 28


def asked(arguments: list[str], program: str) -> str | None:
    """Returns the text of `--help` or `--version` if the arguments hold one of these flags, else None.

    Args:
      arguments: the arguments of the command line.
      program: the name of the program's module; its docstring is the description.
    """
    given = {argument.lstrip("-") for argument in arguments if argument.startswith("-")}
    if given & {"help", "helpshort", "h", "?"}:
        return text(program)
    return version() if "version" in given else None


def version() -> str:
    """Returns the versions of the packages that a run's numbers depend on, on one line."""
    # It imports JAX, for which an answer to --help would have to wait.
    import batchnorm_jax

    packages = ("jax", "flax", "optax", "numpy")
    return f"batchnorm_jax {batchnorm_jax.__version__}; " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    )


def text(program: str) -> str:
    """Returns the help of a program: a description, then its flags in groups.

    Args:
      program: the name of the program's module.
    """
    columns = min(shutil.get_terminal_size().columns, 120)
    about = _commands.as_run_here(sys.modules[program].__doc__ or "")
    # absl knows the main module by the path of its file.
    defined_by = sys.argv[0] if program == "__main__" else program
    own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(defined_by)}
    listed = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, MORE: tuple(sorted(set(own) - listed))}
    lines = [about.strip(), ""]
    for title, names in groups.items():
        shown = [own[name] for name in names if name in own]
        if shown:
            lines += [f"{title}:", *(line for flag in shown for line in _flag(flag, columns)), ""]
    return "\n".join([*lines, "--helpfull: the full text of each flag. --version: the versions of the packages."])


def _plain(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _flag(flag: flags.Flag, columns: int) -> list[str]:
    """Returns the lines for a flag: its name, its default and the first sentence of its help."""
    name = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}"
    default = "" if flag.default in (None, [], False) else f" ({_plain(flag.default)})"
    said = (flag.help or "").split(". ")[0].rstrip(".") + default
    room = max(columns - TEXT_COLUMN, 30)
    first, *rest = textwrap.wrap(said, room, break_long_words=False, break_on_hyphens=False) or [""]
    head = [f"{name:<{TEXT_COLUMN}}{first}"] if len(name) < TEXT_COLUMN else [name, " " * TEXT_COLUMN + first]
    return [*head, *(" " * TEXT_COLUMN + line for line in rest)]
