"""Own functions: how far they are from the exact ones, and the same bits in numpy and in C."""

import subprocess

import numpy as np
import pytest

from sb3_sparse_runtime import functions
from tests.export.subjects import COMPILERS, bits_of, needs_compiler

NUMBERS = np.concatenate(
    [
        np.linspace(-12, 12, 60_001),
        np.geomspace(1e-30, 50, 20_000),
        -np.geomspace(1e-30, 50, 20_000),
        [0.0, -0.0, 0.625, np.nextafter(np.float32(0.625), np.float32(0)), 3e38, -3e38],
    ]
).astype(np.float32)


def units_in_the_last_place(values, exact):
    return np.abs(values.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_tanh_is_accurate_and_has_its_limits():
    values = functions.tanh(NUMBERS)
    assert values.dtype == np.float32
    assert units_in_the_last_place(values, np.tanh(NUMBERS.astype(np.float64))).max() < 1.5
    assert functions.tanh(np.array([-np.inf, np.inf, 20], np.float32)).tolist() == [-1, 1, 1]
    assert (np.diff(functions.tanh(np.linspace(-9, 9, 10_001, dtype=np.float32))) >= 0).all()


def test_exp_is_accurate_and_clipped():
    inside = NUMBERS[(NUMBERS > -87) & (NUMBERS < 88)]
    assert units_in_the_last_place(functions.exp(inside), np.exp(inside.astype(np.float64))).max() < 1.5
    ends = functions.exp(np.array([-1e30, -87, 88, 1e30], np.float32))
    assert ends[0] == ends[1] > 0
    assert ends[2] == ends[3] < np.inf


def test_sigmoid_and_elu_are_accurate():
    inside = NUMBERS[np.abs(NUMBERS) < 80]
    exact = inside.astype(np.float64)
    assert units_in_the_last_place(functions.sigmoid(inside), 1 / (1 + np.exp(-exact))).max() < 3
    for alpha in (1.0, 0.5):
        expected = np.where(exact > 0, exact, alpha * np.expm1(np.minimum(exact, 0)))
        assert np.abs(functions.elu(inside, np.float32(alpha)) - expected).max() < 1e-7


PROGRAM = """
#include <stdint.h>
#include <stdio.h>
typedef int32_t sb3s_integer;
#include "kernels.h"
int main(void) {
    static float x[200000], y[200000];
    const int n = (int)fread(x, 4, 200000, stdin);
    int i;
    for (i = 0; i < n; i++) y[i] = x[i];
    sb3s_tanh_all(n, y);
    fwrite(y, 4, n, stdout);
    for (i = 0; i < n; i++) y[i] = x[i];
    sb3s_sigmoid_all(n, y);
    fwrite(y, 4, n, stdout);
    for (i = 0; i < n; i++) y[i] = x[i];
    sb3s_elu_all(n, 0.5f, y);
    fwrite(y, 4, n, stdout);
    for (i = 0; i < n; i++) y[i] = x[i];
    sb3s_exp_all(n, -20.0f, 2.0f, y);
    fwrite(y, 4, n, stdout);
    return 0;
}
"""


@needs_compiler
@pytest.mark.parametrize("compiler", COMPILERS)
def test_c_computes_the_same_bits(compiler, tmp_path):
    from importlib.resources import files

    folder = files("sb3_sparse_runtime").joinpath("csrc")
    (tmp_path / "main.c").write_text(PROGRAM)
    command = [compiler, "-O3", "-march=native", "-ffp-contract=off", "-w", f"-I{folder}", "main.c", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run([tmp_path / "main"], input=NUMBERS.tobytes(), capture_output=True, check=True).stdout
    got = np.frombuffer(out, np.float32).reshape(4, -1)
    expected = [
        functions.tanh(NUMBERS),
        functions.sigmoid(NUMBERS),
        functions.elu(NUMBERS, np.float32(0.5)),
        functions.exp(np.clip(NUMBERS, np.float32(-20), np.float32(2))),
    ]
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(bits_of(one), bits_of(other))
