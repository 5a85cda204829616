"""Packaging. The wheel holds the library, `batchnorm_jax`; the experiments run from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

FLAX = ["flax>=0.12.8"]
EXPERIMENTS = [
    *FLAX,
    "absl-py>=2.1",
    # TFDS imports it without declaring it.
    "importlib_resources",
    "matplotlib>=3.8",
    "msgspec>=0.19",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "scikit-learn>=1.5",
    "scipy>=1.15",
    "tensorboard>=2.17",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10",
]
NOTEBOOKS = [*EXPERIMENTS, "ipykernel>=6.29", "nbconvert>=7.16"]
TEST = [
    *EXPERIMENTS,
    "allpairspy>=2.5",
    "build>=1.2",
    "hypothesis>=6.100",
    "jax-resnet>=0.0.4",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "setuptools>=77",
]

setup(
    name="batchnorm_jax",
    version=re.search(r'__version__ = "(.+)"', (HERE / "batchnorm_jax" / "__init__.py").read_text()).group(1),
    description="Exact batch normalization for JAX and Flax over many devices, and experiments on the batch size",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["batchnorm_jax", "batchnorm_jax.*"]),
    package_data={"batchnorm_jax": ["py.typed"]},
    install_requires=["jax>=0.10.2"],
    extras_require={
        "flax": FLAX,
        "experiments": EXPERIMENTS,
        "prepare": [*EXPERIMENTS, "tensorflow>=2.17"],
        "benchmark": [*EXPERIMENTS, "dm-haiku>=0.0.13", "equinox>=0.13", "torch>=2.4"],
        "notebooks": NOTEBOOKS,
        # JAX's own extras choose the libtpu and the plugin that fit its version. Without the CUDA libraries of
        # `jax[cuda12]`, of which compiling needs none.
        "topology": [
            *EXPERIMENTS,
            "jax[tpu,cuda12-local]>=0.10.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
        "test": TEST,
        "dev": [*TEST, *NOTEBOOKS, "pre-commit>=3.7", "pyright>=1.1.400", "ruff>=0.9"],
    },
)
