"""The native pass of a sequence is torch's, forwards and backwards, whatever autograd does with it."""

import copy
import io
import pickle
import warnings

import pytest
import torch as th
from hypothesis import given, settings
from torch import nn

from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SurvivorAdam
from tests.engine.networks import MLP, Shape, dense, make_input, make_sequence, needs_kernels, shapes

pytestmark = needs_kernels


def gradients(sequence, output, x, *, seed=0):
    """Gradients of everything after a backward pass."""
    dy = th.randn(output.shape, generator=th.Generator().manual_seed(seed), dtype=output.dtype)
    for tensor in (x, *sequence.parameters()):
        tensor.grad = None
    output.backward(dy)
    return [tensor.grad.clone() for tensor in (x, *sequence.parameters())]


def runs(monkeypatch):
    """Counts native passes."""
    counts = {"forward": 0, "backward": 0}
    for name in counts:
        stock = getattr(native.module, name)

        def counted(*args, name=name, stock=stock):
            counts[name] += 1
            return stock(*args)

        monkeypatch.setattr(native.module, name, counted)
    return counts


@pytest.mark.parametrize("instruction_set", native.module.available_sets() if native.available() else [])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@given(shape=shapes())
@settings(max_examples=60, deadline=None)
def test_equals_torch(instruction_set, dtype, shape):
    widest = native.instruction_set()
    native.module.choose_set(instruction_set)
    try:
        sequence = make_sequence(shape, dtype=dtype)
        x = make_input(shape, dtype=dtype).requires_grad_()
        y, expected = sequence(x), dense(sequence, x)
        tolerance = dict(rtol=1e-4, atol=1e-5) if dtype == th.float32 else dict(rtol=1e-11, atol=1e-12)
        th.testing.assert_close(y, expected, **tolerance)
        with th.no_grad():
            assert th.equal(sequence(x), y)
        tolerance["atol"] *= 10  # sums over the batch
        for own, other in zip(gradients(sequence, y, x), gradients(sequence, expected, x), strict=True):
            th.testing.assert_close(own, other, **tolerance)
    finally:
        native.module.choose_set(widest)


@given(shape=shapes())
@settings(max_examples=25, deadline=None)
def test_bits_do_not_depend_on_threads(shape):
    sequence = make_sequence(shape)
    x = make_input(shape).requires_grad_()
    before = th.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 5):
            th.set_num_threads(n_threads)
            y = sequence(x)
            found.append([y, *gradients(sequence, y, x)])
    finally:
        th.set_num_threads(before)
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert th.equal(first, other)


@pytest.mark.parametrize("activation", ["none", "tanh"])
def test_gradcheck(activation):
    sequence = make_sequence(Shape((5, 7, 3), (1.0, 1.0), "unstructured", (activation, "none"), True, 4, 2), dtype=th.float64)
    x = th.randn(4, 5, dtype=th.float64, generator=th.Generator().manual_seed(0)).requires_grad_()
    assert th.autograd.gradcheck(lambda x, *parameters: sequence(x), (x, *sequence.parameters()))
    assert th.autograd.gradgradcheck(lambda x, *parameters: sequence(x), (x, *sequence.parameters()))


def backward_gradients(sequence, build):
    """``grad`` of every parameter after ``build(sequence)`` has run its own backward passes."""
    for parameter in sequence.parameters():
        parameter.grad = None
    build(sequence)
    return [parameter.grad.clone() for parameter in sequence.parameters()]


def twice_in_one_graph(forward):
    x = make_input(MLP)
    (forward(x).sum() + (forward(2 * x) ** 2).sum()).backward()


def graph_kept(forward):
    y = forward(make_input(MLP)).sum()
    y.backward(retain_graph=True)
    y.backward()


def accumulated(forward):
    forward(make_input(MLP)).sum().backward()
    (forward(make_input(MLP) + 1) ** 2).sum().backward()


def through_an_expanded_gradient(forward):
    forward(make_input(MLP)).mean().backward()


def one_column(forward):
    forward(make_input(MLP))[:, 1].pow(2).sum().backward()


@pytest.mark.parametrize("build", [twice_in_one_graph, graph_kept, accumulated, through_an_expanded_gradient, one_column])
def test_backward_equals_torch(build):
    sequence = make_sequence(MLP)
    native_ones = backward_gradients(sequence, build)
    torch_ones = backward_gradients(sequence, lambda sequence: build(lambda x: dense(sequence, x)))
    for own, other in zip(native_ones, torch_ones, strict=True):
        th.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    for layer in sequence.layers:
        assert not layer.weight.grad[~layer.weight_mask].any()


def test_after_zero_grad_in_place():
    sequence = make_sequence(MLP)
    x = make_input(MLP)
    once = backward_gradients(sequence, lambda sequence: sequence(x).sum().backward())
    for parameter in sequence.parameters():
        parameter.grad.zero_()
    sequence(x).sum().backward()
    for own, parameter in zip(once, sequence.parameters(), strict=True):
        assert th.equal(own, parameter.grad)


def test_native_and_torch_gradients_add_up():
    sequence = make_sequence(MLP)
    x = make_input(MLP)
    sequence(x).sum().backward()
    dense(sequence, x).sum().backward()
    both = [parameter.grad.clone() for parameter in sequence.parameters()]
    sequence(x).sum().backward()
    once = backward_gradients(sequence, lambda sequence: sequence(x).sum().backward())
    for own, other in zip(both, once, strict=True):
        th.testing.assert_close(own, 2 * other, rtol=1e-4, atol=1e-5)
    for layer in sequence.layers:
        assert not layer.weight.grad[~layer.weight_mask].any()


def test_gradients_of_some_inputs_only():
    sequence = make_sequence(MLP)
    x = make_input(MLP).requires_grad_()
    weight = sequence[2].weight
    sequence(x).sum().backward(inputs=[weight])
    assert weight.grad is not None
    assert x.grad is None
    assert sequence[0].weight.grad is None


def test_frozen_parameters():
    sequence = make_sequence(MLP)
    x = make_input(MLP).requires_grad_()
    sequence[0].weight.requires_grad_(False)
    sequence(x).sum().backward()
    assert sequence[0].weight.grad is None
    expected = th.autograd.grad(dense(sequence, x).sum(), [x, sequence[2].weight])
    th.testing.assert_close(x.grad, expected[0], rtol=1e-4, atol=1e-5)
    th.testing.assert_close(sequence[2].weight.grad, expected[1] * sequence[2].weight_mask, rtol=1e-4, atol=1e-5)


def test_hooks_are_called(monkeypatch):
    counts = runs(monkeypatch)
    sequence = make_sequence(MLP)
    met = []
    handle = sequence[0].register_forward_hook(lambda *_: met.append("forward"))
    sequence(make_input(MLP))
    handle.remove()
    assert met == ["forward"]
    assert counts["forward"] == 0
    sequence[0].weight.register_post_accumulate_grad_hook(lambda weight: met.append("gradient"))
    sequence(make_input(MLP)).sum().backward()
    sequence[2].bias.register_hook(lambda gradient: met.append("tensor"))
    sequence(make_input(MLP)).sum().backward()
    assert met[:2] == ["forward", "gradient"]
    assert sorted(met[2:]) == ["gradient", "tensor"]
    assert counts["forward"] == 2
    assert not sequence[0].weight.grad[~sequence[0].weight_mask].any()


@pytest.mark.parametrize("where", ["input", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_torchs_way(where, value):
    sequence = make_sequence(MLP)
    x = make_input(MLP)
    if where == "input":
        x[3, 4] = value
    else:
        with th.no_grad():
            sequence[0].weight[sequence[0].weight_mask.nonzero()[0].tolist()] = value
    own, other = sequence(x), dense(sequence, x)
    assert th.equal(own.isnan(), other.isnan())
    assert other.isnan().any()


def test_masks_weights_and_memory_are_followed():
    sequence = make_sequence(MLP)
    x = make_input(MLP)
    layer = sequence[0]

    def check():
        th.testing.assert_close(sequence(x), dense(sequence, x), rtol=1e-4, atol=1e-5)

    check()
    with th.no_grad():
        layer.weight.mul_(3)  # seen by the version counter
    check()
    layer.weight.data.mul_(0.5)  # not seen by it
    check()
    exposed = layer.weight.data
    check()
    exposed.add_(layer.weight_mask * 0.25)
    check()
    layer.bias.data.add_(1)
    check()
    layer.replace_mask(layer.weight_mask.roll(1, 0))
    check()
    layer.weight.data = th.randn(layer.weight.shape) * layer.weight_mask
    check()
    sequence.load_state_dict({key: value * 2 if "mask" not in key else value for key, value in sequence.state_dict().items()})
    check()
    assert th.func.functional_call(sequence, {"0.weight": th.zeros_like(layer.weight)}, (x,)).isfinite().all()
    th.testing.assert_close(
        th.func.functional_call(sequence, {"0.weight": th.zeros_like(layer.weight)}, (x,)),
        sequence[2:](sequence[1](layer.bias.expand(len(x), -1))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_copies_live_on_their_own():
    sequence = make_sequence(MLP)
    x = make_input(MLP)
    sequence(x).sum().backward()
    before = sequence(x)
    for other in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert th.equal(other(x), before)
        with th.no_grad():
            other[0].weight.zero_()
        assert not th.equal(other(x), before)
        assert th.equal(sequence(x), before)
    file = io.BytesIO()
    th.save(sequence.state_dict(), file)
    file.seek(0)
    assert th.equal(th.load(file)["0.weight"], sequence[0].weight)


@pytest.mark.parametrize("x", [th.zeros(9), th.zeros(2, 3, 9), th.zeros(0, 9)], ids=["vector", "three dimensions", "empty"])
def test_other_inputs_are_torchs(x, monkeypatch):
    counts = runs(monkeypatch)
    sequence = make_sequence(MLP)
    assert th.equal(sequence(x), dense(sequence, x))
    assert counts["forward"] == 0


def test_wrong_width_is_torchs_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_sequence(MLP)(th.zeros(2, 8))


def test_autocast_is_torchs(monkeypatch):
    counts = runs(monkeypatch)
    with th.autocast("cpu", th.bfloat16):
        assert make_sequence(MLP)(make_input(MLP)).dtype == th.bfloat16
    assert counts["forward"] == 0


def test_another_dtype_is_said_once(monkeypatch):
    monkeypatch.setattr(native, "_noticed", set())
    sequence, x = make_sequence(MLP).to(th.bfloat16), make_input(MLP).to(th.bfloat16)
    with pytest.warns(UserWarning, match="engine='native' multiplies float32 and float64; torch multiplies torch.bfloat16"):
        first = sequence(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert th.equal(sequence(x), first)


@pytest.mark.parametrize("native_way", [True, False])
def test_weights_written_to_between_the_passes_are_refused(native_way):
    sequence = make_sequence(MLP, engine="native" if native_way else "torch")
    optimizer = th.optim.Adam(sequence.parameters())
    if native_way:
        SurvivorAdam.adopt(optimizer, [sequence])
    for write in (optimizer.step, lambda: sequence[2].weight.mul_(2)):
        sequence(make_input(MLP)).sum().backward()
        loss = sequence(make_input(MLP)).sum()
        with th.no_grad():
            write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        optimizer.zero_grad()
    # The first layer's weight is not needed again
    loss = sequence(make_input(MLP)).sum()
    with th.no_grad():
        sequence[0].weight.mul_(2)
    loss.backward()


def test_sequences_that_cannot_run_natively_stay_as_they_are():
    from sb3_sparse.engine.choice import Choice
    from sb3_sparse.engine.sequence import SparseSequential

    for modules in (
        [nn.Linear(2, 2)],
        [nn.ReLU()],
        [],
        [make_sequence(MLP)[0], nn.ELU()],
        [make_sequence(MLP)[0], nn.Dropout()],
    ):
        sequence = nn.Sequential(*modules)
        assert not SparseSequential.adopt(sequence, Choice("native"))
        assert type(sequence) is nn.Sequential


@pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")
def test_models_move_between_devices():
    sequence, x = make_sequence(MLP), make_input(MLP)
    before = sequence(x)
    moved = sequence.to("cuda")(x.to("cuda")).cpu()
    th.testing.assert_close(moved, before, rtol=1e-3, atol=1e-4)
    assert th.equal(sequence.to("cpu")(x), before)
