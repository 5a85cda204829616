"""Other domains, and a trained model that is brought to them."""

import subprocess
import sys

import numpy as np
import pytest

from experiments._errors import UsageError
from experiments.data import Examples
from experiments.data.domains import DOMAINS, to_domain
from experiments.training import session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import OWN_DOMAIN, evaluate_checkpoint


def images(shape=(20, 28, 28, 1)):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("domain", DOMAINS.names)
def test_a_domain_shows_the_same_things(domain, channels):
    before = Examples(images((20, 28, 28, channels)), np.arange(20, dtype=np.int32))
    kept = before.images.copy()
    after, again = to_domain(domain, before), to_domain(domain, before)
    np.testing.assert_array_equal(before.images, kept)
    np.testing.assert_array_equal(after.images, again.images)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert after.images.shape == kept.shape and after.images.dtype == np.uint8
    assert np.mean(np.abs(after.images.astype(float) - kept)) > 10


def test_what_the_domains_do():
    spot = np.zeros((1, 28, 28, 1), np.uint8)
    spot[0, 13, 20] = 255
    shown = {
        name: to_domain(name, Examples(spot, np.zeros(1))).images[0, ..., 0].astype(float) for name in DOMAINS.names
    }
    assert shown["inverted"][13, 20] == 0 and shown["inverted"].sum() == 255 * (28 * 28 - 1)
    deviation = np.sqrt(np.sum(shown["blurred"] * (np.arange(28)[None] - 20) ** 2) / shown["blurred"].sum())
    assert deviation == pytest.approx(1.4, rel=0.1)
    row, column = np.unravel_index(np.argmax(shown["rotated"]), (28, 28))
    assert np.rad2deg(np.arctan2(13.5 - row, column - 13.5)) == pytest.approx(
        25 + np.rad2deg(np.arctan2(0.5, 6.5)), abs=6
    )
    assert shown["coloured"][13, 20] == 150 and shown["coloured"][0, 0] == 90
    assert shown["noisy"].std() > 20


def test_labels_of_pixels_are_rotated_with_them():
    things = np.zeros((2, 28, 28), np.int32)
    things[:, 6:12, 14:22] = 3
    shown = to_domain("rotated", Examples((things * 80).astype(np.uint8)[..., None], things))
    inside = shown.images[..., 0] > 200
    assert inside.sum() > 40 and np.all(shown.labels[inside] == 3) and set(np.unique(shown.labels)) == {0, 3}


def test_bad_input(tmp_path):
    with pytest.raises(UsageError, match="inverted"):
        to_domain("invertd", Examples(images(), np.zeros(20)))
    with pytest.raises(UsageError, match="pooled"):
        evaluate_checkpoint(tmp_path, recalibration="poold")
    with pytest.raises(UsageError, match="noisy"):
        evaluate_checkpoint(tmp_path, ["nosy"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("domains") / "run"
    config = TrainConfig(
        batch_size=500, steps=150, learning_rate=0.3, warmup_epochs=0.1, workdir=str(workdir), num_devices=2
    )
    session.train(config)
    return workdir


@pytest.mark.parametrize("mode", ["pooled", "layerwise"])
def test_recalibration_undoes_another_ink(run, mode):
    """Light grey on dark grey is an affine map of the pixels, which the first norm undoes if its statistics follow."""
    _, rows = evaluate_checkpoint(run, [OWN_DOMAIN, "coloured"], mode, num_devices=2)
    accuracy = {(row.domain, row.split): (row.before.accuracy, row.after.accuracy) for row in rows if row.after}
    home, away = accuracy[OWN_DOMAIN, "test"], accuracy["coloured", "test"]
    assert home[0] > 0.85 and abs(home[1] - home[0]) < 0.02
    assert away[0] < home[0] - 0.2
    assert away[1] > home[0] - 0.02


def test_the_table_reads_well(run):
    command = ["-m", "experiments.evaluate", f"--checkpoint={run}", "--domain=inverted,noisy", "--recalibrate=pooled"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["domain", "split", "examples", "accuracy", "loss", "recalibrated", "loss"]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["inverted", "test"],
        ["inverted", "originals"],
        ["noisy", "test"],
        ["noisy", "originals"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("span", [48, 3000])
def test_batches_to_recalibrate_by_hold_whole_spans(tmp_path, span):
    """Spans that do not divide a batch of the usual size, or are larger than it."""
    config = TrainConfig(
        batch_size=2 * span, span=span, steps=1, warmup_epochs=0, workdir=str(tmp_path / "run"), num_devices=2
    )
    session.train(config)
    _, rows = evaluate_checkpoint(tmp_path / "run", (), "pooled", num_devices=2)
    assert [row.split for row in rows if row.after] == ["test", "originals"]
