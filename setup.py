"""Builds and installs the packages; `pyproject.toml` says everything else about them.

The folder `experiments` is installed as `batchnorm_jax_experiments`, since other projects have a package `experiments`.
"""

from setuptools import find_packages, setup

LIBRARY, EXPERIMENTS, INSTALLED = "batchnorm_jax", "experiments", "batchnorm_jax_experiments"


def _packages(root):
    return find_packages(include=[root, f"{root}.*"])


setup(
    packages=[*_packages(LIBRARY), *(INSTALLED + name.removeprefix(EXPERIMENTS) for name in _packages(EXPERIMENTS))],
    package_dir={INSTALLED: EXPERIMENTS},
)
