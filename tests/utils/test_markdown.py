from sb3_sparse.runs import html
from sb3_sparse.utils.markdown import markdown


def test_tables_by_hand():
    assert markdown(["a", "b"], [["x", "1"], ["y", "22"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 22 |\n"
    assert markdown(["a", "b"], [["x", "y"]], left=[0, 1]).splitlines()[1] == "| --- | --- |"


def test_cells_that_would_end_a_table():
    table = markdown(["a"], [["x | y\nz"]])
    assert table == "| a |\n| --- |\n| x \\| y z |\n"
    assert "<td>x | y z</td>" in html.table(table)
