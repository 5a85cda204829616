"""What `--help` prints: the flags in groups, each with its default and a line; and what `--version` prints."""

import importlib.metadata
import shutil
import sys
import textwrap

from absl import flags

import batchnorm_jax

# Flags that belong together, in the order in which they are shown; any other is under the last title.
GROUPS = {
    "What to do": (
        "checkpoint", "step", "domain", "recalibrate", "preset", "list_presets", "parts", "suite", "peers", "topology",
        "dry_run", "json",
    ),
    "Data": (
        "dataset", "data_dir", "image_size", "input", "validation_examples", "augmentation", "drop_remainder",
    ),
    "Model and normalization": (
        "model", "zero_last_scale", "dtype", "norm", "span", "norm_momentum", "norms", "per_device_batch_sizes",
    ),
    "Batch and length": (
        "batch_size", "batch_sizes", "accumulation_steps", "backwards_per_forward", "batch_ramp", "epochs", "steps",
        "max_epochs", "target_accuracy", "budget_minutes",
    ),
    "Recipe": (
        "optimizer", "base_learning_rate", "lr_scaling", "learning_rate", "learning_rates", "schedule", "warmup_epochs",
        "step_epochs", "step_factor", "cycle_epochs", "momentum", "weight_decay", "decay_all", "label_smoothing",
        "seed", "seeds",
    ),
    "Devices and processes": (
        "num_devices", "distributed", "coordinator_address", "num_processes", "process_id",
    ),
    "Results": (
        "workdir", "log_every", "evaluate_every", "noise_every", "live", "checkpoint_every",
    ),
}  # fmt: skip
MORE = "More"
# Where the texts begin.
COLUMN = 28


def asked(arguments: list[str]) -> str | None:
    """The text that the arguments ask for, if they do."""
    given = {argument.lstrip("-") for argument in arguments if argument.startswith("-")}
    if given & {"help", "helpshort", "h", "?"}:
        return text(sys.modules["__main__"].__doc__ or "")
    return version() if "version" in given else None


def version() -> str:
    """The versions of what a run depends on, on a line."""
    packages = ("jax", "flax", "optax", "numpy")
    return f"batchnorm_jax {batchnorm_jax.__version__}; " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    )


def text(about: str) -> str:
    """The help of the program that runs: what it is, and its flags in groups.

    Args:
      about: what the program is, in front of the flags.
    """
    columns = min(shutil.get_terminal_size().columns, 120)
    own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    listed = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, MORE: tuple(sorted(set(own) - listed))}
    lines = [about.strip(), ""]
    for title, names in groups.items():
        shown = [own[name] for name in names if name in own]
        if shown:
            lines += [f"{title}:", *(line for flag in shown for line in _flag(flag, columns)), ""]
    return "\n".join([*lines, "--helpfull: all that is said of each flag. --version: of what this rests on."])


def _plain(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _flag(flag: flags.Flag, columns: int) -> list[str]:
    """A flag with its default and the first sentence of its help."""
    name = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}"
    default = "" if flag.default in (None, [], False) else f" ({_plain(flag.default)})"
    said = (flag.help or "").split(". ")[0].rstrip(".") + default
    room = max(columns - COLUMN, 30)
    first, *rest = textwrap.wrap(said, room, break_long_words=False, break_on_hyphens=False) or [""]
    head = [f"{name:<{COLUMN}}{first}"] if len(name) < COLUMN else [name, " " * COLUMN + first]
    return [*head, *(" " * COLUMN + line for line in rest)]
