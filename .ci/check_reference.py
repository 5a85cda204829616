"""Checks that each public name of the library has its place in the built reference: `check_reference.py SITE`."""

import importlib
import sys
from pathlib import Path

for name in ("batchnorm_jax", *(f"batchnorm_jax.{part}" for part in ("batch_size", "linen", "nnx", "torch_interop"))):
    page = (Path(sys.argv[1]) / "reference" / f"{name.removeprefix('batchnorm_jax.')}.html").read_text()
    missing = [public for public in importlib.import_module(name).__all__ if f'id="{name}.{public}"' not in page]
    if missing:
        sys.exit(f"every public name of {name} stands in docs/reference; missing: {', '.join(missing)}")
