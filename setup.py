"""Builds and installs the package; `pyproject.toml` says everything about it."""

from setuptools import setup

setup()
