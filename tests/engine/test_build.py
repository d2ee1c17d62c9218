"""Building the kernels: without a compiler, and under sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder, **environment):
    """Build the extension into a folder; what was said, and the module's file or None."""
    folders = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr, next((folder / "lib").rglob("_native*.so"), None)


def test_installation_succeeds_without_a_compiler(tmp_path):
    said, module = build(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert module is None
    assert 'building extension "sb3_sparse.engine._native" failed' in said


def test_left_out_on_purpose(tmp_path):
    assert build(tmp_path, SB3_SPARSE_NO_ENGINE="1")[1] is None


@pytest.mark.expensive
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs GCC's sanitizers")
@pytest.mark.parametrize(("sanitizers", "library"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")])
def test_sanitizers(sanitizers, library, tmp_path):
    _, module = build(tmp_path, SB3_SPARSE_SANITIZE=sanitizers)
    assert module is not None
    # The sanitizers look for C++'s own library when they begin, and Python has not loaded it then
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (library, "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python itself
        "TSAN_OPTIONS": "halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).parent / "sanitized.py"), str(module.parent), "25"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "clean\n", result.stderr[-3000:]


@pytest.mark.expensive
@pytest.mark.parametrize(
    ("compiler", "runner"), [("g++", []), ("aarch64-linux-gnu-g++", ["qemu-aarch64"])], ids=["this machine", "arm64, emulated"]
)
def test_kernels_without_python(compiler, runner, tmp_path):
    """The baseline kernels against plain loops; on arm64 the same code, in an emulator."""
    if any(shutil.which(tool) is None for tool in (compiler, *runner)):
        pytest.skip(f"needs {' and '.join((compiler, *runner))}")
    source = ROOT / "sb3_sparse" / "engine" / "src"
    files = [
        Path(__file__).parent / "plain.cpp",
        *(source / f"{n}.cpp" for n in ("network", "training", "threads", "kernels_baseline")),
    ]
    flags = ["-std=c++17", "-O2", "-fno-math-errno", "-static", "-pthread", "-I", str(source)]
    subprocess.run([compiler, *flags, "-o", str(tmp_path / "plain"), *map(str, files)], check=True)
    result = subprocess.run([*runner, str(tmp_path / "plain")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stdout + result.stderr
