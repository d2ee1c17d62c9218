"""The list of mutations is about the package as it is, and each is noticed."""

import shutil

import pytest

from tests import mutations


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda one: one.name)
def test_what_is_to_be_broken_is_there(mutation, tmp_path):
    target = tmp_path / "sb3_sparse" / mutation.file
    target.parent.mkdir(parents=True)
    shutil.copy(mutations.ROOT / "sb3_sparse" / mutation.file, target)
    mutations.mutate(tmp_path, mutation)
    text = target.read_text()
    compile(text, mutation.file, "exec")
    assert text != (mutations.ROOT / "sb3_sparse" / mutation.file).read_text()
    assert all((mutations.ROOT / name).is_file() for name in mutation.tests if name.endswith(".py"))


def test_names_are_told_apart():
    names = [one.name for one in mutations.MUTATIONS]
    assert len(set(names)) == len(names) >= 15


@pytest.mark.expensive
def test_every_mutation_is_noticed():
    assert mutations.main([]) == 0
