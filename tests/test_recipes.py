"""The recipes for clusters: their form, and the commands in them, which the programs take."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.programs import StartedError, begin

RECIPES = Path(__file__).parent.parent / "docs" / "experiments" / "recipes"
TRAIN = re.compile(r"(?:experiments\.train|batchnorm-train) ((?:--\S+ ?(?:\\\n)? *)+)")


def commands(text):
    """The arguments of the trainer in a recipe, with variables of the shell replaced."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(match[1].rstrip('" \n').replace("$BATCH_SIZE", "256")) for match in TRAIN.finditer(joined)]


def of_jobset():
    (job,) = yaml.safe_load((RECIPES / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"]]


def test_every_recipe_is_known_here():
    assert {path.name for path in RECIPES.iterdir()} == {"cloud_tpu.sh", "jobset.yaml", "large_run.sbatch", "sky.yaml"}


@pytest.mark.parametrize("name", ["cloud_tpu.sh", "large_run.sbatch", "sky.yaml", "jobset.yaml"])
def test_the_trainer_takes_what_a_recipe_gives_it(name, monkeypatch, tmp_path):
    text = (RECIPES / name).read_text()
    if name == "jobset.yaml":
        program, *arguments = of_jobset()
        assert program == "batchnorm-train"
        given = [arguments]
    else:
        given = commands(text)
    assert given and all(given)
    monkeypatch.chdir(tmp_path)
    for arguments in given:
        assert any(word.startswith("--workdir=") for word in arguments)
        words = [f"--workdir={tmp_path / 'run'}" if word.startswith("--workdir=") else word for word in arguments]
        with pytest.raises(StartedError):
            begin("train", words, monkeypatch)


@pytest.mark.parametrize("name", ["cloud_tpu.sh", "large_run.sbatch"])
def test_a_script_is_one_of_the_shell(name):
    ran = subprocess.run(["bash", "-n", str(RECIPES / name)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_jobset_has_as_many_processes_as_the_run_is_told():
    """And the address of the first is that of its pod: <set>-<job>-<index of the job>-<index of the pod>.<set>."""
    found = yaml.safe_load((RECIPES / "jobset.yaml").read_text())
    (job,) = found["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], found["metadata"]["name"]
    arguments = of_jobset()
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    assert f"--num_processes={spec['completions']}" in arguments
    (port,) = spec["template"]["spec"]["containers"][0]["ports"]
    assert f"--coordinator_address={name}-{job['name']}-0-0.{name}:{port['containerPort']}" in arguments


def test_the_rented_jobs_differ_by_a_variable_that_the_command_reads():
    found = yaml.safe_load((RECIPES / "sky.yaml").read_text())
    assert set(found["envs"]) == {"BATCH_SIZE"} and "$BATCH_SIZE" in found["run"]
    assert found["resources"]["use_spot"] and next(iter(found["file_mounts"])) in found["run"]
