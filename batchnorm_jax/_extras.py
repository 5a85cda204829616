"""Names the extra to install where a package is missing that only a part of the library needs."""

import importlib.util


def need(*packages: str, extra: str, caller: str) -> None:
    """Raises a ModuleNotFoundError that names the extra, unless the packages are installed.

    Args:
      packages: names, as they are imported.
      extra: the extra of this project that installs them.
      caller: the module that needs them.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"{caller} needs {package}, which is not installed: pip install 'batchnorm_jax[{extra}]'", name=package
            )
