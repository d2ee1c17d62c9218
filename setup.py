"""
Everything static is in pyproject.toml; this finds the presets, one folder per method, and puts them into the package, and
builds the native engine where that is possible.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
#: What each instruction set needs beyond the architecture's common ground; chosen among at run time, never at build time.
INSTRUCTION_SETS = {
    "kernels_baseline": [],
    "kernels_avx2": ["-mavx2", "-mfma"],
    "kernels_avx512": [
        *["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
        "-mprefer-vector-width=512",
    ],
}
#: Set to build the kernels with a sanitizer, e.g. "address,undefined".
SANITIZE = os.environ.get("SB3_SPARSE_SANITIZE", "")


class BuildEngine(build_ext):
    """Compiles every file with its own flags."""

    def build_extension(self, extension: Extension) -> None:
        compile_file = getattr(self.compiler, "_compile", None)
        if self.compiler.compiler_type != "unix" or compile_file is None:
            raise OSError("the native engine needs GCC 12 or later, or clang")

        def compile_with_flags(obj, source, suffix, arguments, extra, options):
            flags = INSTRUCTION_SETS.get(Path(source).stem, []) if X86 else []
            compile_file(obj, source, suffix, arguments, [*extra, *flags], options)

        self.compiler._compile = compile_with_flags
        try:
            super().build_extension(extension)
        finally:
            self.compiler._compile = compile_file


def engine() -> Extension:
    """The extension; ``optional``, so that installation succeeds where it cannot be built."""
    import pybind11

    folder = Path("sb3_sparse/engine/src")
    kernels = ["kernels_baseline", *(["kernels_avx2", "kernels_avx512"] if X86 else [])]
    names = ["bindings", "network", "training", "threads", *kernels]
    flags = ["-std=c++17", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
    links = [] if sys.platform == "darwin" else ["-pthread"]
    if SANITIZE:
        flags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]
        links += [f"-fsanitize={SANITIZE}"]
    return Extension(
        "sb3_sparse.engine._native",
        sources=[str(folder / f"{name}.cpp") for name in names],
        depends=[str(path) for path in sorted(folder.glob("*.h"))],
        include_dirs=[pybind11.get_include()],
        define_macros=[("SB3_SPARSE_X86", "1")] if X86 else [],
        extra_compile_args=flags,
        extra_link_args=links,
        language="c++",
        optional=True,
    )


def runtime() -> Extension:
    """The compiled runner of deployed policies; ``optional`` like the engine, and without a line of C++."""
    folder = Path("sb3_sparse_runtime/csrc")
    # Integers agree to the last bit everywhere, so no product may be fused with a sum
    flags = ["-std=c99", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-Wno-unused-function"]
    links = []
    if SANITIZE:
        flags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]
        links += [f"-fsanitize={SANITIZE}"]
    return Extension(
        "sb3_sparse_runtime._compiled",
        sources=[str(folder / "compiled.c")],
        depends=[str(folder / "kernels.h")],
        extra_compile_args=flags,
        extra_link_args=links,
        optional=True,
    )


setup(
    packages=[
        *find_packages(include=["sb3_sparse", "sb3_sparse.*", "sb3_sparse_runtime", "sb3_sparse_runtime.*"]),
        "sb3_sparse.hyperparams",
        *(f"sb3_sparse.hyperparams.{method}" for method in find_namespace_packages("hyperparams")),
    ],
    package_dir={"sb3_sparse.hyperparams": "hyperparams"},
    package_data={
        "sb3_sparse": ["py.typed"],
        "sb3_sparse.export.firmware": ["*.c", "*.ld", "Makefile"],
        "sb3_sparse_runtime": ["py.typed", "csrc/*.h"],
        "": ["*.yml"],
    },
    ext_modules=[] if os.environ.get("SB3_SPARSE_NO_ENGINE") else [engine(), runtime()],
    cmdclass={"build_ext": BuildEngine},
)
