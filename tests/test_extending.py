"""A run that is made longer goes on where it is the same run, and says why where it is not."""

import json

import jax
import numpy as np
import pytest

from experiments._errors import UsageError
from experiments.training import extending, session
from experiments.training.config.options import TrainConfig
from experiments.training.storage import metrics
from experiments.training.storage.checkpoints import Checkpoints
from tests import rig

OWN = {"dataset": "tests.own:dataset", "model": "tests.own:model", "batch_size": 16, "num_devices": 1}
SHORT = {**OWN, "warmup_epochs": 0.5, "learning_rate": 0.05, "schedule": "constant"}


def state_of(config):
    like = rig.run_of(config, rig.tiny(), 1).state
    with Checkpoints(config.workdir, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(like))


def test_a_finished_run_is_made_longer_bit_for_bit(tmp_path):
    def config(name, epochs, **options):
        return TrainConfig(**SHORT | options, epochs=epochs, workdir=str(tmp_path / name))

    whole = session.train(config("whole", 4))
    short = session.train(config("longer", 2))
    longer = session.train(config("longer", 4))
    assert longer.results == whole.results and longer.updates == 16 and short.updates == 8
    jax.tree.map(np.testing.assert_array_equal, *(state_of(config(name, 4)) for name in ("whole", "longer")))
    rows = [metrics.read(tmp_path / name / metrics.FILE) for name in ("whole", "longer")]
    assert rows[0] == rows[1]
    # What there was is kept, and the longer run is complete.
    assert json.loads((tmp_path / "longer" / "summary-8.json").read_text())["updates"] == 8
    assert session.train(config("longer", 4)) == longer
    with pytest.raises(UsageError, match=r"--epochs: 4 there, 2 here\). It was to make 16 updates, and .* not to 8"):
        session.train(config("longer", 2))
    # A checkpoint of another seed that is moved here is not taken.
    other = config("other", 6, seed=1)
    (tmp_path / "longer" / "checkpoints").rename(tmp_path / "moved")
    (tmp_path / "longer" / "summary.json").unlink()
    session.train(TrainConfig(**SHORT | {"seed": 1}, epochs=1, workdir=other.workdir))
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "longer" / "checkpoints")
    with pytest.raises(UsageError, match=r"checkpoint .*4 belongs to another run, with another configuration"):
        session.train(config("longer", 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "constant"}, None),
        ({"schedule": "constant", "steps": 7}, None),
        ({"schedule": "cyclic"}, None),
        ({"schedule": "step", "step_epochs": "1,5"}, None),
        ({"schedule": "step", "step_epochs": "1,3", "batch_ramp": 32, "step_factor": 2.0}, None),
        ({"optimizer": "lbfgs", "batch_size": 64}, None),
        ({"schedule": "step"}, "--schedule=step follow the length"),
        ({"schedule": "cosine"}, "--schedule=cosine follow the length of the run, so the first 8 updates"),
        ({"schedule": "polynomial"}, "--schedule=polynomial follow"),
        ({"norm": "renorm", "schedule": "constant"}, "--norm=renorm follow"),
        ({"batch_ramp": "auto", "schedule": "constant", "batch_size": 4}, "--batch_ramp=auto decides nothing"),
    ],
    ids=str,
)
def test_a_run_goes_on_where_it_would_have_been_the_same(options, said):
    given = {"batch_size": 16, "warmup_epochs": 0.5, **options}
    lengths = [{"epochs": 2}, {"epochs": 6}] if "steps" not in options else [{"steps": 7}, {"steps": 9}]
    there, here = (TrainConfig(**given | length) for length in lengths)
    reason = extending.why_not(there, here, 64, 1)
    assert reason is None if said is None else said in str(reason)
