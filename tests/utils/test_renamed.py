"""Old names of arguments: accepted with a warning that says the new one, refused beside it, and not in the signature."""

import inspect

import pytest

from sb3_sparse import GradualPruning, QuantizationAware
from sb3_sparse.utils.renamed import renamed_arguments, with_new_names


class Example:
    @renamed_arguments(begin="start", end="stop")
    def __init__(self, n, start=0.2, *, stop=0.8):
        self.values = n, start, stop


def test_old_names_mean_the_new_ones():
    with pytest.warns(DeprecationWarning, match="the argument `begin` of Example is now called `start`") as warned:
        example = Example(1, begin=0.3)
    assert example.values == (1, 0.3, 0.8)
    assert warned[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        assert Example(1, end=3, begin=2).values == (1, 2, 3)
    assert len(warned) == 2


@pytest.mark.filterwarnings("error")
def test_new_names_warn_of_nothing():
    assert Example(1, 0.3, stop=4).values == (1, 0.3, 4)


@pytest.mark.parametrize(
    "make",
    [lambda: Example(1, start=0.1, begin=0.1), lambda: Example(1, 0.1, begin=0.1), lambda: Example(n=1, begin=1, start=1)],
)
def test_both_names_are_refused(make):
    with pytest.raises(TypeError, match="Example got both `start` and `begin`, its old name: leave `begin` out"):
        make()


def test_other_errors_are_pythons_own():
    with pytest.raises(TypeError, match="unexpected keyword argument 'begins'"):
        Example(1, begins=2)


def test_the_signature_shows_the_new_names_alone():
    assert list(inspect.signature(Example).parameters) == ["n", "start", "stop"]


def test_keyword_arguments_under_their_new_names():
    assert with_new_names(Example, {"begin": 1, "n": 2}) == {"start": 1, "n": 2}
    assert with_new_names(Example, {"begin": 1, "start": 2}) == {"begin": 1, "start": 2}
    assert with_new_names(dict, {"begin": 1}) == {"begin": 1}


@pytest.mark.parametrize(
    ("make", "old", "moments"),
    [
        (lambda **kwargs: GradualPruning(0.9, **kwargs), dict(begin=0.3, end=0.7), (0.3, 0.7)),
        (QuantizationAware, dict(begin=7), (7, None)),
    ],
)
def test_callbacks_take_their_old_names(make, old, moments):
    with pytest.warns(DeprecationWarning, match="`begin` of .* is now called `start`"):
        callback = make(**old)
    assert (callback.clock.start, callback.clock.stop) == moments
    with pytest.raises(TypeError, match="got both `start` and `begin`"):
        make(**old, start=0.1)
