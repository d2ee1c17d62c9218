"""Everything static is in pyproject.toml; this finds the presets, one folder per method, and puts them into the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        "sb3_sparse",
        "sb3_sparse.benchmark",
        "sb3_sparse.hyperparams",
        *(f"sb3_sparse.hyperparams.{method}" for method in find_namespace_packages("hyperparams")),
    ],
    package_dir={"sb3_sparse.hyperparams": "hyperparams"},
    package_data={"sb3_sparse": ["py.typed"], "": ["*.yml"]},
)
