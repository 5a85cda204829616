"""Damages each file of a folder's newest checkpoint in turn, and restores: `python -m tests.damage FOLDER KIND`."""

import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np

KINDS = ("flip", "cut", "empty")


def damaged(whole, kind, r):
    """Returns the bytes of a file after the damage."""
    if kind == "flip":
        content = bytearray(whole)
        for at in r.integers(0, len(whole), 1 + len(whole) // 50):
            content[at] ^= 0xFF
        return bytes(content)
    return whole[: len(whole) // 2] if kind == "cut" else b""


def main(folder, kind):
    """Prints the number of files, and for how many of them the older checkpoint was restored."""
    jax.config.update("jax_num_cpu_devices", 2)
    # Imported after the configuration, because these modules use JAX.
    from experiments.training.config.options import TrainConfig
    from experiments.training.storage.checkpoints import Checkpoints
    from tests import rig

    reports = []
    handler = logging.Handler()
    handler.emit = lambda record: reports.append(record.getMessage())
    logging.getLogger("absl").addHandler(handler)
    state = rig.run_of(TrainConfig(batch_size=32, model="tests.own:model"), rig.tiny(), 2).state
    newest, r, older = folder / "checkpoints" / "2", np.random.default_rng(0), 0
    files = sorted(f for f in newest.rglob("*") if f.is_file() and f.stat().st_size)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, kind, r))
        reports.clear()
        with Checkpoints(folder) as checkpoints:
            back = jax.device_get(checkpoints.restore(state))
        for a, b in zip(jax.tree.leaves(back._replace(step=0)), jax.tree.leaves(state._replace(step=0)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{file}, {kind}")
        if int(back.step) == 1:
            older += 1
            assert any(f"{newest} cannot be read" in report for report in reports), (file, reports)
        else:
            assert int(back.step) == 2
        file.write_bytes(whole)
    print(json.dumps({"files": len(files), "older": older}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
