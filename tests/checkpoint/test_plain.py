"""Values as data: what goes in comes out, to the bit, and nothing that is code."""

import collections
import enum
import functools
import json
import math
import random
import re
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_sparse.checkpoint.names import CannotEncode, Names, is_python_class
from sb3_sparse.checkpoint.plain import Decoder, Encoder, fingerprint


def there_and_back(value, *, trusted=True, live=None, packages=frozenset()):
    encoder = Encoder()
    tree = json.loads(json.dumps(encoder.finish(encoder.encode(value, "value"))))
    return Decoder(tree, encoder.arrays, Names(trusted=trusted, packages=packages)).decode(tree, live)


class Colour(enum.Enum):
    RED = 1


class Thing:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Typed(Generic[TypeVar("T")]):
    pass


class Slotted:
    __slots__ = ("first", "second")


@dataclass(frozen=True)
class Event:
    name: str
    step: int


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())
trees = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.tuples(st.integers())), inner),
    ),
    max_leaves=20,
)


def same(first, second):
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    if type(first) is not type(second):
        return False
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    return first == second and repr(first) == repr(second)


@given(trees)
def test_plain_values(value):
    assert same(value, there_and_back(value))


@given(st.lists(st.floats(), min_size=20), st.lists(st.integers(-(2**70), 2**70), min_size=20))
def test_long_lists_of_numbers(floats, integers):
    assert same(floats, there_and_back(floats))
    assert same(integers, there_and_back(integers))


@pytest.mark.parametrize(
    "value",
    [
        2**100,
        -0.0,
        1 + 2j,
        {"$": "not a kind"},
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2], maxlen=3),
        collections.defaultdict(int, {"a": 1}),
        frozenset({1, 2}),
        range(1, 9, 2),
        slice(None, 3),
        Path("a") / "b",
        bytearray(b"abc"),
        b"x" * 1000,
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.str_("name"),
        np.dtype("<f4"),
        th.float32,
        th.device("cpu"),
        nn.ReLU,
        TrainFreq(1, TrainFrequencyUnit.STEP),
        Colour.RED,
        Event("grown", 3),
        spaces.Box(-1, 1, (2,)),
        spaces.Dict(a=spaces.Discrete(3), b=spaces.MultiBinary(2)),
    ],
    ids=repr,
)
def test_values_of_other_kinds(value):
    found = there_and_back(value)
    assert type(found) is type(value)
    assert found == value
    if isinstance(value, collections.deque):
        assert found.maxlen == value.maxlen


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int8", "uint8", "int64", "bool", "complex64", "U3", ">f4", "datetime64[s]"]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays(dtype, shape):
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype("int64").astype(dtype)
    found = there_and_back(value)
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert found.tobytes() == value.tobytes()
    assert found.flags.writeable


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16, th.float16, th.int64, th.bool, th.uint8])
def test_tensors(dtype):
    value = th.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    found = there_and_back(value.t())
    assert found.dtype == dtype
    assert th.equal(found, value.t())


def test_arrays_of_objects():
    value = np.array([[{"a": 1}, {}], [None, "x"]], dtype=object)
    assert there_and_back(value).tolist() == value.tolist()


def test_generators_go_on_and_stay_who_they_are():
    for value, draw in [
        (np.random.default_rng(3), lambda one: one.random()),
        (np.random.Generator(np.random.Philox(3)), lambda one: one.random()),
        (np.random.RandomState(3), lambda one: one.rand()),
        (random.Random(3), lambda one: one.random()),
        (th.Generator().manual_seed(3), lambda one: float(th.rand(1, generator=one))),
    ]:
        draw(value)
        live = type(value)(np.random.Philox(0)) if isinstance(value, np.random.Generator) and "Philox" in repr(value) else None
        found = there_and_back(value, live=live)
        assert found is live or live is None
        assert [draw(found) for _ in range(3)] == [draw(value) for _ in range(3)]


def test_what_is_shared_is_shared_and_circles_are_circles():
    array, thing = np.zeros(3), Thing()
    values = [1, 2]
    thing.me, thing.array, thing.other, thing.first, thing.second = thing, array, array, values, {"list": values}
    found = there_and_back(thing)
    assert found.me is found
    assert found.array is found.other
    assert found.first is found.second["list"]
    found.array[0] = 1
    assert found.other[0] == 1


def test_objects_are_changed_in_place():
    live = Thing(inner=Thing(a=0), kept="here")
    inner = live.inner
    found = there_and_back(Thing(inner=Thing(a=1), new=2), live=live)
    assert found is live
    assert live.inner is inner
    assert (inner.a, live.new, live.kept) == (1, 2, "here")


def test_slots():
    value = Slotted()
    value.first = 1
    found = there_and_back(value)
    assert found.first == 1
    assert not hasattr(found, "second")


def test_noise_and_schedules():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))
    noise()
    found = there_and_back(noise, trusted=False)
    np.random.seed(0)
    first = noise()
    np.random.seed(0)
    assert np.array_equal(found(), first)
    assert there_and_back(LinearSchedule(1.0, 0.0, 0.5), trusted=False)(0.7) == LinearSchedule(1.0, 0.0, 0.5)(0.7)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda: 0, "cannot be imported"),
        (nn.Linear(2, 2), "a Linear"),
        (open(__file__), "a _io.TextIOWrapper"),  # noqa: SIM115
        ((array := np.zeros(4), array[:2]), "an array of which another is a view"),
        ((array[:2], array), "an array of which another is a view"),
        (np.ma.masked_array([1]), "a numpy.ma.MaskedArray"),
        ({"a": [th.zeros(2).to_sparse()]}, "sparse"),
        (random.SystemRandom(), "a random.SystemRandom"),
    ],
    # By what they are: a repr may hold an address, which differs between the processes that collect the tests
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_data_is_named_with_its_place(value, what):
    with pytest.raises(CannotEncode, match=f"value.* is .*{what}"):
        there_and_back(value)
    assert fingerprint(value) is None


def test_classes_of_compiled_modules_are_no_python_classes():
    compiled = [re.compile("a"), functools.partial(print), random.Random(), np.ones(1), threading.Lock(), Decimal(1), iter([])]
    assert [type(value) for value in compiled if is_python_class(type(value))] == []
    written = [Thing(), Slotted(), Event("a", 1), Typed(), spaces.Discrete(2), NormalActionNoise(np.ones(1), np.ones(1))]
    assert [type(value) for value in written if not is_python_class(type(value))] == []
    assert not is_python_class(Colour)


def test_a_state_dict_keeps_what_is_beside_its_keys():
    value = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    value._metadata["1"]["more"] = {"mask": th.ones(2, dtype=th.bool)}
    found = there_and_back(value, trusted=False)
    assert type(found) is collections.OrderedDict
    assert list(found) == list(value)
    assert found._metadata.keys() == value._metadata.keys()
    assert found._metadata["1"]["version"] == 2
    assert found._metadata["1"]["more"]["mask"].all()


def test_an_attempt_that_fails_leaves_nothing():
    encoder, shared = Encoder(), [1.5] * 20
    encoder.encode(shared, "first")
    n_arrays = len(encoder.arrays)
    with pytest.raises(CannotEncode), encoder.attempt():
        encoder.encode([np.ones(3), shared, lambda: 0], "second")
    assert len(encoder.arrays) == n_arrays
    third = np.ones(3)
    tree = encoder.finish([encoder.encode(third, "third"), encoder.encode(third, "fourth")])
    first, second = Decoder(tree, encoder.arrays, Names(trusted=False)).decode(tree)
    assert first is second
    assert np.array_equal(first, third)


class Hostile:
    def __init__(self):
        raise AssertionError("a constructor was called")


class Loud(Hostile):
    def __setstate__(self, state):
        raise AssertionError("__setstate__ was called")

    def __reduce__(self):
        raise AssertionError("__reduce__ was called")


def test_nothing_is_called():
    value = object.__new__(Loud)
    value.__dict__["a"] = 1
    assert there_and_back(value).a == 1


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"$": "name", "name": "os:system"}, "without being trusted"),
        ({"$": "name", "name": "subprocess:Popen"}, "without being trusted"),
        ({"$": "name", "name": "builtins:eval"}, "is no class"),
        ({"$": "name", "name": "torch.nn:Missing"}, "cannot be found"),
        ({"$": "object", "class": "torch.nn:Linear", "attributes": {}}, "no class of which a file may ask for an instance"),
        ({"$": "object", "class": "tests.checkpoint.test_plain:Loud", "attributes": {}}, "without being trusted"),
        ({"$": "enum", "class": "torch.nn:Linear", "name": "a"}, "is no Enum"),
        ({"$": "namedtuple", "class": "torch.nn:Linear", "items": []}, "is no tuple"),
        ({"$": "pickle"}, "is no kind of value"),
    ],
)
def test_a_file_that_is_not_trusted_gets_nothing_else(node, message):
    with pytest.raises(ValueError, match=message):
        Decoder(node, {}, Names(trusted=False)).decode(node)


def test_a_file_that_is_not_trusted_gets_what_it_needs():
    for value in (TD3, nn.ReLU, TrainFreq(2, TrainFrequencyUnit.EPISODE), spaces.Discrete(4)):
        assert there_and_back(value, trusted=False) == value
    assert isinstance(there_and_back(NormalActionNoise(np.zeros(1), np.ones(1)), trusted=False), NormalActionNoise)
    value = Event("a", 1)
    assert there_and_back(value, trusted=False, packages=frozenset({"tests"})) == value


def test_fingerprints():
    assert fingerprint([1, np.ones(3)]) == fingerprint([1, np.ones(3)])
    values = [[1, np.ones(3)], [1.0, np.ones(3)], [1, np.ones(3, np.float32)], [1, np.ones((3, 1))], [1, np.zeros(3)], None]
    assert len({fingerprint(value) for value in values}) == len(values)
