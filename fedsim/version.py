"""What is installed, by its metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "fedsim-robust"  # on the package index, where the name fedsim belongs to another project


def of(distribution: str) -> str:
    """Its version; a checkout or an app bundle that is not installed has none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+unknown"


__version__ = of(DISTRIBUTION)
