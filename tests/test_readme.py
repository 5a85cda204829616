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
from experiments.training import session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import evaluate_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_examples_run():
    _, module, functions = EXAMPLES
    names: dict = {}
    exec(module, names)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 3)), jnp.float32)
    variables = names["Block"]().init(jax.random.key(0), x, train=False)
    y, updates = names["forward"](variables, x)
    assert y.shape == (16, 4, 4, 64) and updates["batch_stats"]["BatchNorm_0"]["mean"].shape == (64,)
    names = {}
    exec(functions, names)
    np.testing.assert_allclose(names["moments"].mean, [3.0, 4.0])


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("train", ["--preset", *(f"--{field.name}" for field in dataclasses.fields(TrainConfig))]),
        ("recommend", ["--dataset", "--target_accuracy", "--json"]),
        ("evaluate", ["--checkpoint"]),
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


def test_the_commands_are_where_ci_looks():
    for name in ("main", "tests"):
        (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.+)\n```", README)
        assert command.startswith("python3 -m venv .venv && ")


def test_the_users_own_model_and_data_set_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(EXAMPLES[0])
    config = TrainConfig(
        dataset="mine:data", model="mine:model", batch_size=50, epochs=10, warmup_epochs=1, workdir="run", num_devices=2
    )
    assert session.train(config).results["test"].accuracy > 0.9
    _, (row,) = evaluate_checkpoint("run", dataset="mine:data", model="mine:model", num_devices=2)
    assert row.split == "test" and row.before.accuracy > 0.9
