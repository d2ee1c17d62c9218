"""Cortex-M: the same bits on every board under QEMU, and what a decision takes there."""

import re
import subprocess

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_sparse import export, quantize
from sb3_sparse.export.c.source import generate
from sb3_sparse.export.cortex_m import BOARDS, Memory, build, memory_of, missing_tools, run, test_bench
from sb3_sparse.export.decision import decision_of
from tests.export.subjects import SpacesEnv, bits_of, flat, graph_actions, known
from tests.export.test_decision import normalizing
from tests.helpers import make_model, observations

test_bench.__test__ = False
needs_tools = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))


def measure(graph, folder, board, given, *options):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in test_bench(generate(graph, layout="small")).items():
        (folder / name).write_text(text)
    memory = build(folder, "policy", board, options)
    return run(folder, graph.action.size, board, given, memory)


@needs_tools
@pytest.mark.parametrize(
    ("algorithm", "kind", "bits", "board"),
    [
        *((SAC, "Mlp", 8, board) for board in BOARDS),
        (PPO, "Mlp", 4, "m4f"),
        (DQN, "Mlp", 2, "m7"),
        (TD3, "MultiInput", 8, "m33"),
        (PPO, "Mlp", 0, "m4f"),
    ],
)
def test_every_board_answers_the_same_bits(algorithm, kind, bits, board, tmp_path):
    model = known(algorithm, kind, bits)
    graph, given = decision_of(model), observations(model)
    found = measure(graph, tmp_path, board, flat(graph, given))
    expected = graph_actions(graph, given)
    if bits:
        assert np.array_equal(bits_of(found.actions), bits_of(expected))
    else:
        assert np.abs(found.actions - expected).max() < 2e-6
    assert 0 < found.instructions <= found.most_instructions + 5
    assert 50 < found.stack < 100_000
    assert found.memory.ram == 0


@pytest.fixture(scope="module")
def hopper():
    """An int8 actor of 64 x 64 with Hopper's 11 observations and 3 actions, 90 % sparse, with statistics of observations."""
    env = normalizing(SpacesEnv(spaces.Box(-10, 10, (11,), np.float32), spaces.Box(-1, 1, (3,), np.float32)), n_actions=3)
    model = make_model(TD3, env=env, policy_kwargs=dict(net_arch=[64, 64], sparsity=0.9))
    graph = decision_of(quantize(model, bits=8), normalize=env)
    given = np.random.default_rng(0).uniform(-10, 10, (30, 11)).astype(np.float32)
    return graph, given


@needs_tools
def test_a_small_policy_fits_where_it_should(hopper, tmp_path):
    graph, given = hopper
    found = measure(graph, tmp_path, "m4f", given)
    assert np.array_equal(bits_of(found.actions), bits_of(graph_actions(graph, given)))
    # Instructions and bytes are no times: they are the same on every machine with this compiler, and nearly so with others
    assert found.instructions < 8000
    assert found.memory.tables < 2500
    assert found.memory.code < 4096


@needs_tools
def test_instructions_are_counted_exactly(hopper, tmp_path):
    graph, given = hopper
    found = measure(graph, tmp_path, "m4f", given[:1])
    # QEMU names every instruction that it executes; ten more decisions are so many more
    counts = []
    for repeats in (1, 11):
        build(tmp_path, "policy", "m4f", [f"DEFINES=-DREPEATS={repeats} -DPAINTED=1024"])
        command = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-semihosting-config", "enable=on,target=native", "-kernel", "policy-m4f.elf"]
        version = subprocess.run(["qemu-system-arm", "--version"], capture_output=True, text=True).stdout
        one_by_one = (
            ["-singlestep"] if int(re.search(r"version (\d+)", version)[1]) < 8 else ["-accel", "tcg,one-insn-per-tb=on"]
        )
        subprocess.run(
            [*command, *one_by_one, "-d", "nochain,exec", "-D", "log"], cwd=tmp_path, check=True, capture_output=True
        )
        counts.append((tmp_path / "log").read_text().count("Trace"))
    assert abs((counts[1] - counts[0]) / 10 - found.instructions) < 10


@needs_tools
def test_an_export_runs_as_it_is(tmp_path):
    model = known(SAC, "Mlp", 8)
    exported = export(model, tmp_path / "robot", to="cortex-m", name="hopper")
    names = {file.name for file in exported.files}
    assert names == {"hopper.h", "hopper.c", "firmware.c", "sections.ld", "mps2.ld", "an505.ld", "Makefile"}
    memory = build(exported.path, "hopper", "m33", ["OPTIMIZE=-Os"])
    given = observations(model)
    found = run(exported.path, 2, "m33", given, memory)
    assert np.array_equal(bits_of(found.actions), bits_of(graph_actions(exported.graph, given)))
    assert 0 < memory.tables <= exported.source.table_bytes
    with pytest.raises(RuntimeError, match="refused an observation"):
        run(exported.path, 2, "m33", np.full((2, 7), np.nan, np.float32), memory)


MAP = """
Discarded input sections
 .text.unused   0x00000000       0x40 policy-m4f.o
Linker script and memory map
 .text.decide   0x00000040      0x100 policy-m4f.o
 .rodata.a_long_name
                0x00000140       0x20 policy-m4f.o
 .text.main     0x00000160      0x999 firmware-m4f.o
 .text          0x00000b00       0x30 /usr/lib/gcc/libgcc.a(_arm_addsubdf3.o)
 .bss.room      0x20000000       0x08 policy-m4f.o
 .debug_info    0x00000000     0x1000 policy-m4f.o
"""


def test_a_linkers_map_by_hand():
    assert memory_of(MAP, "policy-m4f.o") == Memory(tables=0x20, code=0x130, ram=8)


def test_a_board_there_is_not_and_tools_that_are_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`board` must be one of 'm4f', 'm7', 'm33', got 'esp32'"):
        build(tmp_path, "policy", "esp32")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ImportError, match=r"arm-none-eabi-gcc, qemu-system-arm not found \(Debian: apt-get install"):
        build(tmp_path, "policy", "m4f")
