"""Checks what a short training on the default data wrote: `check_training.py WORKDIR`."""

import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
results = json.loads((run / "summary.json").read_text())["results"]
assert results["test"]["examples"] == 10_000 and results["originals"]["examples"] == 360, results
assert results["test"]["accuracy"] > 0.8, results
assert "<svg" in (run / "report.html").read_text()
