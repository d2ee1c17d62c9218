"""What a decision takes on a Cortex-M: every variant answers as its model; nothing here asserts a time."""

import json

import pytest
from stable_baselines3 import SAC

from sb3_sparse.benchmark import cortex_m
from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.export.cortex_m import missing_tools
from tests.export.subjects import known

needs_tools = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))


@needs_tools
def test_sparse_and_dense_side_by_side(capsys):
    main(["cortex-m", "--net", "48,48", "--board", "m4f", "m33", "--observations", "4", "--json"])
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    rows = {(row["board"], row["code"]): row for row in table["rows"]}
    assert len(rows) == len(table["rows"]) == 10
    for board in ("m4f", "m33"):
        sparse, dense = rows[board, "sparse int8"], rows[board, "dense int8"]
        loop = rows[board, "dense fp32, one sum per output (rl_tools' loop)"]
        assert sparse["instructions"] < dense["instructions"] < loop["instructions"]
        assert sparse["tables (B)"] < dense["tables (B)"] < loop["tables (B)"]
        # The loop alone is another one
        assert loop["tables (B)"] == rows[board, "dense fp32"]["tables (B)"]


@needs_tools
def test_a_file_of_few_bits(tmp_path, capsys):
    known(SAC, "Mlp", 4).save(tmp_path / "model.zip")
    main(["cortex-m", str(tmp_path / "model.zip"), "--board", "m7", "--observations", "2"])
    said = capsys.readouterr().out
    assert "model.zip: 7-16-12-2" in said
    assert "| m7 | sparse int4 |" in said


def test_mistakes_are_answered_in_one_line(monkeypatch, capsys):
    for arguments, error in (
        (["nothing.zip"], "there is no model at nothing.zip"),
        (["--board", "esp32"], "invalid choice: 'esp32'"),
    ):
        if missing_tools() is None or "--board" in arguments:
            with pytest.raises(SystemExit):
                main(["cortex-m", *arguments])
            assert error in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit):
        main(["cortex-m"])
    assert "the benchmark cortex-m needs tools: make, arm-none-eabi-gcc" in capsys.readouterr().err


@needs_tools
def test_code_that_decides_otherwise_is_not_counted(monkeypatch):
    monkeypatch.setattr(cortex_m, "ONE_SUM", cortex_m.ONE_SUM.replace("bias[o];", "bias[o] + 0.5f;"))
    with pytest.raises(SystemExit, match=r"one sum per output .* on m4f does not decide as its model"):
        main(["cortex-m", "--net", "8", "--sparsity", "0.5", "--board", "m4f", "--observations", "3"])
