"""The README's Python runs as it stands there, and its commands are on one line each, as CI reads them."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _help
from experiments.training.config.options import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_examples_run():
    """One program: the norm in a linen model and in nnx, then the model over all devices, as one would compute it."""
    names: dict = {}
    for example in EXAMPLES:
        exec(example, names)
    assert names["y"].shape == (16, 4, 4, 64) and names["norm"].axis_name == "batch"
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 3)), jnp.float32)
    variables = names["Block"]().init(jax.random.key(0), x, train=False)
    y, updates = names["forward"](variables, x)
    assert y.shape == (16, 4, 4, 64) and updates["batch_stats"]["BatchNorm_0"]["mean"].shape == (64,)
    whole = jax.vmap(
        lambda x: names["Block"]().apply(variables, x, train=True, mutable=["batch_stats"]), axis_name="batch"
    )
    np.testing.assert_allclose(y, whole(x[None])[0][0], atol=1e-5)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("train", ["--preset", *(f"--{field.name}" for field in dataclasses.fields(TrainConfig))]),
        ("recommend", ["--dataset", "--target_accuracy", "--json"]),
        ("evaluate", ["--checkpoint"]),
        ("batch_size_study", ["--parts", "--batch_sizes"]),
        ("norm_study", ["--norms", "--tasks"]),
        ("branch", ["--problem", "--multiples", "--rate_factors"]),
        ("benchmark", ["--suite"]),
    ],
)
def test_help_lists_every_flag(module, flags):
    """Also those that are made from a dataclass, in a module that absl takes to be theirs."""
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--help"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    for flag in flags:
        assert re.search(rf"^  {flag}\b|^  --\[no\]{flag[2:]}\b", done.stdout, re.MULTILINE), done.stdout
    titles = re.findall(r"^(\w.*):$", done.stdout, re.MULTILINE)
    assert {"Data", "Results"} <= set(titles) or module != "train"
    # Each flag is under a title that says what it is about.
    assert _help.MORE not in titles and len(titles) == len(set(titles))


def test_it_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 150


def test_the_commands_are_where_ci_looks():
    for name in ("main", "tests"):
        (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.+)\n```", README)
        assert command.startswith("python3 -m venv .venv && ")
