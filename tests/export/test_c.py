"""Generated C: the graph's answers, from strict compilers, under sanitizers, in every layout."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from torch import nn

from sb3_sparse import export, quantize
from sb3_sparse.export.c.kernels import sections
from sb3_sparse.export.c.layers import gaps_of, nibbles
from sb3_sparse.export.c.program import fast_normalization
from sb3_sparse.export.c.source import generate, project
from sb3_sparse.export.c.tables import Tables, literal
from sb3_sparse.export.c.workspace import Lifetime, place
from sb3_sparse.export.decision import decision_of
from sb3_sparse_runtime.operations import Normalize, Quantize
from tests.export.subjects import (
    COMPILERS,
    IDS,
    SUPPORTED,
    SpacesEnv,
    bits_of,
    build,
    c_actions,
    flat,
    graph_actions,
    graph_and_source,
    known,
    model_of,
    needs_compiler,
    run_example,
)
from tests.export.test_decision import OBSERVATIONS, normalizing
from tests.helpers import RandomEnv, make_model, observations

pytestmark = needs_compiler
FIRST = COMPILERS[0] if COMPILERS else ""
#: Each kernel of each layout is in one of these.
SUBJECTS = [
    (TD3, "Mlp", 0),
    (SAC, "Mlp", 8),
    (PPO, "Mlp", 4),
    (DQN, "Mlp", 2),
    (QRDQN, "Mlp", 0),
    (A2C, "Cnn", 8),
    (TD3, "MultiInput", 0),
    (SAC, "MultiInput", 3),
]
SUBJECT_IDS = [f"{algorithm.__name__}-{kind}-{bits}" for algorithm, kind, bits in SUBJECTS]


def check(model, source, graph, library, given):
    expected, actions = graph_actions(graph, given), c_actions(library, graph, given)
    exact = graph.is_exact
    if exact or graph.action.kind != "box":
        assert np.array_equal(bits_of(actions), bits_of(expected))
    else:
        assert np.abs(actions - expected).max() < 2e-6
    assert np.allclose(
        actions.reshape(len(actions), -1), model.predict(given, deterministic=True)[0].reshape(len(actions), -1), atol=2e-6
    )


@pytest.mark.parametrize("layout", ["fast", "small", "dense"])
@pytest.mark.parametrize(("algorithm", "kind", "bits"), SUBJECTS, ids=SUBJECT_IDS)
def test_c_answers_what_the_graph_answers(algorithm, kind, bits, layout, tmp_path):
    model = known(algorithm, kind, bits)
    graph, source = graph_and_source(model, layout)
    library = build(source, tmp_path, COMPILERS[len(layout) % len(COMPILERS)], "-O1")
    check(model, source, graph, library, observations(model))
    if layout == "fast":
        library = build(source, tmp_path / "portable", FIRST, "-O1", "-DSB3S_PORTABLE")
        check(model, source, graph, library, observations(model))


@pytest.mark.expensive
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("bits", [0, 8, 4, 2])
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=IDS)
def test_every_algorithm_policy_layout_and_compiler(algorithm, kind, bits, compiler, tmp_path):
    model = known(algorithm, kind, bits)
    for layout in ("fast", "small", "dense"):
        graph, source = graph_and_source(model, layout)
        for index, flags in enumerate((["-O3"], ["-O2", "-march=native"], ["-Os", "-DSB3S_PORTABLE"], ["-O0"])):
            library = build(source, tmp_path / f"{layout}{index}", compiler, *flags)
            check(model, source, graph, library, observations(model))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_products_are_not_fused_with_sums_whatever_the_flags(compiler, tmp_path):
    model = known(SAC, "Mlp", 8)
    graph, source = graph_and_source(model, "small")
    given = observations(model, 200)
    # The GNU dialect fuses wherever the processor can
    library = build(source, tmp_path, compiler, "-std=gnu11", "-O3", "-march=native", "-Wno-pedantic")
    assert np.array_equal(bits_of(c_actions(library, graph, given)), bits_of(graph_actions(graph, given)))
    done = subprocess.run(
        [compiler, "-ffast-math", "-c", f"{tmp_path}/policy.c", "-o", "/dev/null"], capture_output=True, text=True
    )
    assert "this policy must be compiled without -ffast-math" in done.stderr


@pytest.mark.parametrize("layout", ["fast", "small"])
@pytest.mark.parametrize("bits", [0, 8])
def test_wide_layers_in_every_layout(layout, bits, tmp_path):
    # More than 256 inputs: gaps; rows longer than 255: 16 bits; more than 518 inputs: sums that float32 does not hold
    env = SpacesEnv(spaces.Box(-1, 1, (700,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
    kwargs = dict(net_arch=[300, 260], distribution={"mlp_extractor.policy_net.0": 0.99, "mlp_extractor.policy_net.2": 0.05})
    model = make_model(PPO, env=env, policy_kwargs={"dense_layers": (), "activation_fn": nn.ReLU, **kwargs})
    model = quantize(model, data=observations(model, 64), bits=bits) if bits else model
    graph, source = graph_and_source(model, layout)
    library = build(source, tmp_path, FIRST, "-O2")
    expected, actions = graph_actions(graph, observations(model)), c_actions(library, graph, observations(model))
    assert np.array_equal(actions, expected) if bits else np.allclose(actions, expected, atol=2e-6)
    if layout == "small":
        assert f"sb3s_gaps8_{'i8_relu' if bits else 'f32'}(300" in source.source


@pytest.mark.parametrize("layout", ["fast", "small"])
@pytest.mark.parametrize("space", OBSERVATIONS, ids=lambda space: type(space).__name__)
def test_every_observation_space(space, layout, tmp_path):
    kind = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    env = SpacesEnv(space, spaces.Box(-1, 1, (2,), np.float32))
    model = model_of(PPO, kind, 8, env=env)
    graph, source = graph_and_source(model, layout)
    library = build(source, tmp_path, FIRST, "-O1")
    assert np.array_equal(c_actions(library, graph, observations(model)), graph_actions(graph, observations(model)))


@pytest.mark.parametrize("layout", ["fast", "small"])
@pytest.mark.parametrize("bits", [0, 8])
def test_statistics_of_vec_normalize(layout, bits, tmp_path):
    # Means that are far larger than deviations, where float32 alone would be wrong
    space = spaces.Box(np.array([-1, 100, 3, 0], np.float32), np.array([1, 140, 3.001, 1e-3], np.float32))
    env = normalizing(SpacesEnv(space, RandomEnv().action_space))
    model = make_model(TD3, env=env)
    model = quantize(model, bits=bits) if bits else model
    graph, source = graph_and_source(model, layout, normalize=env)
    rng = np.random.default_rng(0)
    given = rng.uniform(space.low, space.high, (4000, 4)).astype(np.float32)
    library = build(source, tmp_path, FIRST, "-O2")
    expected, actions = graph_actions(graph, given), c_actions(library, graph, given)
    assert np.array_equal(bits_of(actions), bits_of(expected)) if bits else np.abs(actions - expected).max() < 2e-6
    if bits and layout == "small":
        assert "sb3s_quantize_normalized(" in source.source


def test_the_exact_way_is_taken_where_the_fast_one_could_be_wrong(tmp_path):
    # Observations right where the integer changes: found by bisection, for every input and integer
    env = normalizing(RandomEnv())
    model = quantize(make_model(TD3, env=env), bits=8)
    graph, source = graph_and_source(model, "small", normalize=env)
    normalize, integers = graph.operations[:2]
    assert isinstance(normalize, Normalize)
    assert isinstance(integers, Quantize)
    found = fast_normalization(normalize, integers)
    assert 0.49 < found.safe < 0.5
    rows = []
    for wanted in range(found.low + 1, found.high + 1):
        low, high = (np.full(7, value, np.float32) for value in (-30, 30))
        for _ in range(60):
            middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
            reached = integers.compute([normalize.compute([middle[None]])])[0] >= wanted
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        rows += [low, high]
    given = np.array(rows)
    library = build(source, tmp_path, FIRST, "-O2")
    assert np.array_equal(bits_of(c_actions(library, graph, given)), bits_of(graph_actions(graph, given)))


@pytest.mark.parametrize("bits", [0, 8])
def test_observations_that_cannot_be_are_refused(bits, tmp_path):
    model = known(TD3, "Mlp", bits)
    library = build(graph_and_source(model, "fast")[1], tmp_path, FIRST, "-O2")
    for wrong in (np.nan, np.inf, -np.inf):
        row, action = np.zeros(7, np.float32), np.full(2, 9, np.float32)
        row[3] = wrong
        code = library.policy_predict(row.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p))
        assert (code, action.tolist()) == (1, [9, 9])
    model = model_of(DQN, env=SpacesEnv(spaces.Discrete(5), spaces.Discrete(3)))
    library = build(graph_and_source(model, "small")[1], tmp_path / "discrete", FIRST, "-O2")
    for value, expected in ((4, 0), (0, 0), (5, 1), (-1, 1), (1.5, 1), (np.nan, 1)):
        row, action = np.array([value], np.float32), np.zeros(1, np.float32)
        assert library.policy_predict(row.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p)) == expected


def test_masks_and_distributions(tmp_path):
    model = known(MaskablePPO)
    graph, source = graph_and_source(model, "small")
    library = build(source, tmp_path / "masks", FIRST, "-O1")
    given = observations(model)
    masks = np.random.default_rng(0).random((len(given), 3)) < 0.5
    masks[:, 0] |= ~masks.any(axis=1)
    expected, _ = model.predict(given, deterministic=True, action_masks=masks)
    assert np.array_equal(c_actions(library, graph, given, masks=masks).ravel(), expected)
    for algorithm in (SAC, PPO):
        model = known(algorithm)
        graph, source = graph_and_source(model, "small", distribution=True)
        library = build(source, tmp_path / algorithm.__name__, FIRST, "-O1")
        given = observations(model, 5)
        values = graph.evaluate({"observation": given})
        for index, row in enumerate(flat(graph, given)):
            action, mean, std = (np.zeros(2, np.float32) for _ in range(3))
            pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (row, action, mean, std)]
            assert library.policy_distribution(*pointers) == 0
            for name, got in (("action", action), ("mean", mean), ("std", std)):
                assert np.allclose(got, values[graph.outputs[name]][index], rtol=1e-6, atol=2e-6)
        assert np.allclose(c_actions(library, graph, given), values[graph.outputs["action"]], atol=2e-6)


@pytest.mark.parametrize(
    ("algorithm", "kind", "bits"), [SUBJECTS[0], SUBJECTS[2], SUBJECTS[5]], ids=["fp32", "int4", "int8-cnn"]
)
def test_nothing_is_found_by_sanitizers(algorithm, kind, bits, tmp_path):
    model = known(algorithm, kind, bits)
    for layout in ("fast", "small"):
        graph, source = graph_and_source(model, layout)
        folder = tmp_path / layout
        folder.mkdir()
        for name, text in project(source).items():
            (folder / name).write_text(text)
        flags = ["-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        subprocess.run([FIRST, *flags, "policy.c", "main.c", "-o", "example"], cwd=folder, check=True)
        given = observations(model, 5)
        assert np.allclose(run_example(folder / "example", flat(graph, given)), graph_actions(graph, given), atol=2e-6)
        done = subprocess.run([folder / "example"], input="nan " * 2000, capture_output=True, text=True)
        assert done.returncode == 1
        assert "runtime error" not in done.stderr
        assert "Sanitizer" not in done.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
def test_the_project_is_built_by_cmake(tmp_path):
    model = known(SAC, "Mlp", 8)
    exported = export(model, tmp_path / "robot", to="c", name="hopper")
    assert sorted(file.name for file in exported.files) == ["CMakeLists.txt", "hopper.c", "hopper.h", "main.c"]
    for command in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=exported.path, check=True, capture_output=True)
    given = observations(model)
    got = run_example(exported.path / "build/hopper_example", flat(exported.graph, given))
    assert np.array_equal(got, graph_actions(exported.graph, given))
    assert f"#define HOPPER_TABLE_BYTES {exported.source.table_bytes}\n" in exported.source.header


def test_two_policies_go_into_one_program(tmp_path):
    models = {"walk": known(TD3), "stand": known(SAC, "Mlp", 8)}
    for name, model in models.items():
        source = generate(decision_of(model), name)
        (tmp_path / f"{name}.c").write_text(source.source)
        (tmp_path / f"{name}.h").write_text(source.header)
    main = "int main(void) { float x[7] = {0}, y[2]; return walk_predict(x, y) + stand_predict(x, y); }\n"
    main = f'#include "walk.h"\n#include "stand.h"\n{main}'
    (tmp_path / "main.c").write_text(main)
    subprocess.run([FIRST, "-std=c99", "main.c", "walk.c", "stand.c", "-o", "both"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "both"], check=True)


def test_an_arduino_library_has_its_places(tmp_path):
    exported = export(known(TD3, "Mlp", 8), tmp_path / "policy", to="c", arduino=True)
    names = {str(file.relative_to(exported.path)) for file in exported.files}
    assert names == {"src/policy.h", "src/policy.c", "examples/Decide/Decide.ino", "library.properties"}
    assert "includes=policy.h" in (exported.path / "library.properties").read_text()
    assert "layout 'small'" in (exported.path / "src/policy.c").read_text()
    cxx = shutil.which("g++") or shutil.which("clang++")
    if cxx:
        # Sketches are C++
        (tmp_path / "use.cpp").write_text(
            '#include "policy.h"\nint main() { float x[7] = {0}, y[2]; return policy_predict(x, y); }\n'
        )
        subprocess.run([FIRST, "-c", exported.path / "src/policy.c", "-o", tmp_path / "policy.o"], check=True)
        command = [cxx, f"-I{exported.path}/src", tmp_path / "use.cpp", tmp_path / "policy.o", "-o", tmp_path / "use"]
        subprocess.run(command, check=True)
        subprocess.run([tmp_path / "use"], check=True)


# --- By hand ---


def test_numbers_are_written_exactly():
    rng = np.random.default_rng(0)
    for value in rng.integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32):
        if np.isfinite(value):
            assert np.float32(literal(value).removesuffix("f")) == value
    assert (literal(1), literal(0.5), literal(-np.inf)) == ("1.0f", "0.5f", "-3.40282347e+38f")
    tables = Tables(aligned=False)
    tables.add("a", np.array([1, -2], np.int8))
    tables.add("b", np.zeros(0, np.uint16))
    assert tables.text() == "static const int8_t a[2] = {\n    1, -2\n};\nstatic const uint16_t b[1] = {\n    0\n};"
    assert tables.n_bytes == 4


def test_nibbles_and_gaps():
    assert nibbles([np.array([-7, 7, 1]), np.array([], int), np.array([0])]).tolist() == [0xF1, 0x89, 0x88]
    assert gaps_of([np.array([0, 3, 4]), np.array([], int), np.array([254, 509, 765])]).tolist() == [
        0,
        3,
        1,
        254,
        255,
        0,
        255,
        1,
    ]


QUOTIENTS = """
#include <stdint.h>
#include <stdio.h>
#define SB3S_NOINLINE
KERNEL
int main(void) {
    double pair[2];
    while (fread(pair, 8, 2, stdin) == 2) {
        const float result = sb3s_quotient(pair[0], pair[1]);
        fwrite(&result, 4, 1, stdout);
    }
    return 0;
}
"""


def test_quotients_are_those_of_float64_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=40_000) * 10.0 ** rng.integers(-20, 20, 40_000)
    b = rng.uniform(0.1, 10, 40_000) * 10.0 ** rng.integers(-8, 8, 40_000)
    # Where the float64 quotient lies right between two float32 numbers, and beside that, and where rounding carries
    middle = (rng.integers(2**24, 2**25, 10_000) * 2 + 1).astype(np.float64) * 2.0**-20
    exact = rng.integers(1, 2**20, 10_000).astype(np.float64)
    a = np.concatenate([a, middle * exact, np.nextafter(middle * exact, 0), [0.0, 1.0, -1.0, 2 - 2.0**-52, 2 - 2.0**-24]])
    b = np.concatenate([b, exact, exact, [1.0, 3.0, 3.0, 1.0, 1.0]])
    (tmp_path / "main.c").write_text(QUOTIENTS.replace("KERNEL", sections()["quotient"][1]))
    subprocess.run([FIRST, "-O2", "-fsanitize=undefined", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    given = np.stack([a, b], axis=1).tobytes()
    got = np.frombuffer(subprocess.run([tmp_path / "main"], input=given, capture_output=True, check=True).stdout, np.float32)
    expected = (a / b).astype(np.float32)
    usual = (np.abs(expected) > 1e-28) & (np.abs(expected) < 1e28) | (expected == 0)
    assert np.array_equal(bits_of(got[usual]), bits_of(expected[usual]))
    assert (np.abs(got[np.abs(expected) <= 1e-28]) < 1e-28).all()
    assert (np.abs(got[np.abs(expected) >= 1e28]) > 1e28).all()


def test_values_that_are_done_make_room():
    spans = {"a": Lifetime(0, 1, 10), "b": Lifetime(1, 2, 4), "c": Lifetime(2, 3, 8), "d": Lifetime(3, 4, 2)}
    assert place(spans) == ({"a": 0, "b": 10, "c": 0, "d": 8}, 14)
    assert place({}) == ({}, 0)


def test_sections_are_whole():
    found = sections()
    for needs, text in found.values():
        assert set(needs) <= set(found)
        assert text.count("{") == text.count("}")
    assert re.search(r"sb3s_tanh\(float x\)", found["tanh"][1])
    assert found["tanh_all"][0] == ("tanh",)
