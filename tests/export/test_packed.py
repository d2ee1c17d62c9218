"""Policy files: everything comes back, sizes are what was promised, and whatever is no policy is refused with the reason."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3

import sb3_sparse
from sb3_sparse import export, load_policy, quantize
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.packed import choose_encoding, in_half_precision, pack
from sb3_sparse_runtime import InvalidPolicyError, compiled
from sb3_sparse_runtime.description import pack_values, unpack_values
from sb3_sparse_runtime.file import checksum, from_bytes
from sb3_sparse_runtime.integer import weight_limit
from sb3_sparse_runtime.policy import Policy
from tests.export.subjects import IDS, SUPPORTED, graph_actions, known, model_of, single
from tests.helpers import make_model, observations


@pytest.mark.parametrize("bits", [0, 8, 3])
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED[::2], ids=IDS[::2])
def test_everything_comes_back(algorithm, kind, bits):
    model = known(algorithm, kind, bits)
    graph, given = decision_of(model), observations(model, 4)
    file = from_bytes(pack(graph, {"a": [1, 2.5, None]}, {"b": "c"}))
    assert (file.report, file.provenance) == ({"a": [1, 2.5, None]}, {"b": "c"})
    assert file.graph.observation == graph.observation
    assert file.graph.action == graph.action
    assert [type(one) for one in file.graph.operations] == [type(one) for one in graph.operations]
    for one, other in zip(file.graph.layers, graph.layers, strict=True):
        assert one.weight.dtype == other.weight.dtype
        assert np.array_equal(one.weight, other.weight)
    assert np.array_equal(graph_actions(file.graph, given), graph_actions(graph, given))
    # The same bytes again, but for masks, which are not kept where zeros say as much
    assert from_bytes(pack(file.graph, {}, {})).graph.outputs == graph.outputs


@for_all(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), st.integers(0, 50), st.integers(0, 1000))
def test_values_of_any_bits_come_back(bits, n, seed):
    limit = weight_limit(bits)
    values = np.random.default_rng(seed).integers(-limit, limit + 1, n).astype(np.int8)
    stored = pack_values(values, bits)
    assert stored.nbytes == (n if bits == 8 else -(-n * bits // 8))
    assert np.array_equal(unpack_values(stored, bits, n), values)


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1", "unstructured"])
def test_the_smallest_encoding_is_taken_and_size_is_that_of_the_file(pattern):
    free = dict(sparsity=0.9) if pattern != "2:4" else {}
    model = make_model(TD3, policy_kwargs=dict(pattern=pattern, net_arch=[64, 64], **free))
    graph = decision_of(model)
    names = {choose_encoding(layer)[0].name for layer in graph.layers}
    assert names & {"2:4": {"bitmap"}, "block:4x1": {"blocks"}, "unstructured": {"rice"}}[pattern]
    size = sum(
        choose_encoding(layer)[0].size(choose_encoding(layer)[1]) + 4 * np.count_nonzero(layer.weight)
        for layer in graph.layers
    )
    assert size < len(pack(graph, {}, {})) < size + 4 * (64 + 64 + 2) + 3000


def test_an_int8_actor_at_95_percent_is_33_times_smaller_than_its_dense_weights():
    model = make_model(TD3, env=None, policy_kwargs=dict(net_arch=[256, 256], sparsity=0.95))
    data = np.random.default_rng(0).normal(size=(64, 7)).astype(np.float32)
    graph = decision_of(quantize(model, data=data))
    n_bytes = n_dense = 0
    for layer in graph.layers:
        encoding, mask = choose_encoding(layer)
        n_values = layer.weight.size if encoding.stores_all else mask.sum()
        n_bytes += n_values + encoding.size(mask) + layer.scales.nbytes
        n_dense += 4 * layer.weight.size
    assert n_dense / n_bytes > 33


def test_half_precision_is_what_is_computed():
    model = known(TD3)
    graph = in_half_precision(decision_of(model))
    file = from_bytes(pack(graph, {}, {}))
    for one, other in zip(file.graph.layers, decision_of(model).layers, strict=True):
        assert np.array_equal(one.weight, other.weight.astype(np.float16).astype(np.float32))
    assert len(pack(graph, {}, {})) < len(pack(decision_of(model), {}, {}))
    large = make_model(TD3)
    large.policy.actor.mu[0].weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match="100000 is too large for float16"):
        in_half_precision(decision_of(large))


def test_the_safetensors_library_reads_it(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    exported = export(known(SAC, "Mlp", 8), tmp_path / "policy.sb3s")
    with safetensors.safe_open(exported.path, "numpy") as file:
        assert file.metadata()["format"] == "sb3s"
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mean = exported.graph.layers[0]
    index = exported.graph.operations.index(mean)
    assert np.array_equal(tensors[f"{index}.bias"], mean.bias)


# --- The policy ---


@pytest.mark.parametrize("runner", ["compiled", "numpy"])
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=IDS)
def test_predict_is_that_of_stable_baselines3(algorithm, kind, runner, tmp_path, monkeypatch):
    if runner == "compiled" and compiled.module is None:
        pytest.skip("the compiled runner was not built")
    monkeypatch.setenv(compiled.VARIABLE, runner)
    model = known(algorithm, kind, 8)
    policy = load_policy(export(model, tmp_path / "policy.sb3s").path)
    assert policy.runner == runner
    given = observations(model)
    for asked in (given, single(given)):
        expected, _ = model.predict(asked, deterministic=True)
        action, state = policy.predict(asked, state="state")
        assert state == "state"
        assert (type(action), action.dtype, action.shape) == (type(expected), expected.dtype, expected.shape)
        assert np.allclose(action, expected, atol=1e-6)


def test_predict_takes_what_sb3_takes_and_refuses_what_it_refuses(tmp_path):
    model = known(TD3)
    policy = load_policy(export(model, tmp_path / "policy.sb3s").path)
    row = observations(model)[0]
    expected = policy.predict(row)[0]
    for same in (row.astype(np.float64), row.tolist(), row[::-1].copy()[::-1], np.asfortranarray(row)):
        assert np.allclose(policy.predict(same)[0], expected, atol=1e-6)
    assert policy.predict(row[None])[0].shape == (1, 2)
    assert policy.predict(np.empty((0, 7), np.float32))[0].shape == (0, 2)
    for wrong, said in (
        (row[:3], r"`observation` must have the shape \(7,\), or \('n', 7\) in a batch, got \(3,\)"),
        (np.full(7, np.nan, np.float32), "must be finite, got NaN"),
        (np.full((2, 7), np.inf), "must be finite"),
        ((row, {}), "is a pair"),
        ({"observation": row}, "must be an array"),
        ("text", "must hold numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            policy.predict(wrong)
    with pytest.raises(ValueError, match="`deterministic`=False is not possible"):
        policy.predict(row, deterministic=False)
    with pytest.raises(ValueError, match="for policies that MaskablePPO trained"):
        policy.predict(row, action_masks=np.ones(3))


def test_dictionaries_images_and_masks(tmp_path):
    model = known(PPO, "MultiInput")
    policy = load_policy(export(model, tmp_path / "a.sb3s").path)
    given = single(observations(model))
    expected = model.predict(given, deterministic=True)[0]
    assert np.allclose(policy.predict(given)[0], expected, atol=1e-6)
    channels_last = {**given, "image": np.moveaxis(given["image"], 0, -1)}
    assert np.allclose(policy.predict(channels_last)[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="a dictionary with the keys image, vector, got"):
        policy.predict({"image": given["image"]})
    with pytest.raises(ValueError, match=r"observation\['vector'\]` must have the shape"):
        policy.predict({**given, "vector": given["vector"][:2]})
    with pytest.raises(ValueError, match="as many rows under every key"):
        policy.predict({**given, "vector": given["vector"][None]})
    model = known(MaskablePPO)
    policy = load_policy(export(model, tmp_path / "b.sb3s").path)
    row = observations(model)[0]
    for choice in range(3):
        allowed = np.arange(3) == choice
        assert policy.predict(row, action_masks=allowed)[0] == choice
    with pytest.raises(ValueError, match="`action_masks` must have 1 x 3 entries"):
        policy.predict(row, action_masks=np.ones(2))


def test_the_distribution_is_there_if_it_was_asked_for(tmp_path):
    model = known(SAC)
    policy = load_policy(export(model, tmp_path / "a.sb3s", distribution=True).path)
    row = observations(model)[0]
    mean, std = policy.distribution(row)
    assert mean.shape == std.shape == (2,)
    assert (std > 0).all()
    assert np.allclose(np.tanh(mean), policy.predict(row)[0], atol=1e-6)
    with pytest.raises(ValueError, match="exported without its distribution"):
        load_policy(export(model, tmp_path / "b.sb3s").path).distribution(row)


def test_neither_torch_nor_stable_baselines3_is_imported(tmp_path):
    model = known(DQN, "Mlp", 8)
    path = export(model, tmp_path / "policy.sb3s").path
    row = observations(model)[0]
    program = (
        "import sys\n"
        "from sb3_sparse_runtime import load_policy\n"
        f"policy = load_policy({str(path)!r})\n"
        f"print(int(policy.predict({row.tolist()})[0]))\n"
        "print([name for name in ('torch', 'stable_baselines3', 'gymnasium', 'sb3_sparse', 'yaml') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [str(int(model.predict(row, deterministic=True)[0])), "[]"]
    assert sb3_sparse.load_policy is load_policy


# --- What is refused ---


def reading(data, edit):
    """A file with its description edited and its checksum made right again: what someone hostile would write."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    policy = json.loads(header["__metadata__"]["policy"])
    edited = edit(header, policy, body)
    body = body if edited is None else edited
    return sealed(header, policy, body)


def sealed(header, policy, body):
    text = policy if isinstance(policy, str) else json.dumps(policy)
    metadata = header["__metadata__"]
    metadata["policy"] = text
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__" and isinstance(entry, dict):
            first, last = entry.get("data_offsets", (0, 0))
            tensors.append((name, entry.get("dtype"), tuple(entry.get("shape", ())), body[first:last]))
    try:
        metadata["sha256"] = checksum(text, tensors)
    except TypeError:
        metadata["sha256"] = hashlib.sha256(b"").hexdigest()
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.fixture(scope="module")
def data():
    return pack(decision_of(model_of(PPO, "Mlp", 8)), {}, {})


def operation(policy, name, index=0):
    return [one for one in policy["operations"] if one["op"] == name][index]


def put_number(name, value):
    """Write a float32 number over the first of a tensor."""

    def edit(header, policy, body):
        key = next(key for key in header if key.endswith(f".{name}"))
        first = header[key]["data_offsets"][0]
        return body[:first] + np.float32(value).tobytes() + body[first + 4 :]

    return edit


HOSTILE = [
    ("newer", lambda h, p, b: h["__metadata__"].update(schema="2") and None, "written by a newer version: schema 2"),
    ("schema", lambda h, p, b: h["__metadata__"].update(schema="x") and None, "schema is 'x'"),
    ("format", lambda h, p, b: h["__metadata__"].update(format="pt") and None, "no policy: its format is 'pt'"),
    ("extra metadata", lambda h, p, b: h["__metadata__"].update(more="1") and None, "the metadata must have the keys"),
    ("operation", lambda h, p, b: operation(p, "linear").update(op="system") and None, "operation 'system' is unknown"),
    ("argument", lambda h, p, b: operation(p, "quantize").update(path="/etc") and None, "must have the keys"),
    ("missing", lambda h, p, b: operation(p, "quantize").pop("bits") and None, "must have the keys"),
    ("scale nan", put_number("scales", np.nan), "is not a positive normal number"),
    ("scale 0", put_number("scales", 0), "is not a positive normal number"),
    ("scale inf", put_number("scales", np.inf), "is not a positive normal number"),
    ("bias nan", put_number("bias", np.nan), "the bias has values that are not finite"),
    ("steps", put_number("steps", np.inf), "steps of a staircase do not rise"),
    ("zero scale", lambda h, p, b: operation(p, "quantize").update(scale=0.0) and None, "a scale of 0.0"),
    ("zero point", lambda h, p, b: operation(p, "quantize").update(zero_point=256) and None, "a zero point of 256"),
    ("other scale", lambda h, p, b: operation(p, "linear").update(input_scale=0.5) and None, "another scale than that"),
    ("huge", lambda h, p, b: operation(p, "linear")["weight"].update(shape=[10**6, 10**6]) and None, "out of all proportion"),
    ("negative", lambda h, p, b: operation(p, "linear")["weight"].update(shape=[-16, 7]) and None, "a weight of shape"),
    ("bits", lambda h, p, b: operation(p, "linear")["weight"].update(bits=9) and None, "weights of 9 bits"),
    ("few bits", lambda h, p, b: operation(p, "linear")["weight"].update(bits=2) and None, "values of 2 bits, got"),
    ("encoding", lambda h, p, b: operation(p, "linear")["weight"].update(encoding="pickle") and None, "'pickle' is unknown"),
    ("rows", lambda h, p, b: operation(p, "linear")["weight"].update(shape=[12, 7]) and None, "."),
    ("inputs", lambda h, p, b: operation(p, "linear").update({"in": ["nothing"]}) and None, r"reads \['nothing'\]"),
    ("no inputs", lambda h, p, b: operation(p, "linear").update({"in": []}) and None, "reads 0 values"),
    ("twice", lambda h, p, b: operation(p, "linear", 1).update(out=operation(p, "linear")["out"]) and None, "."),
    ("cycle", lambda h, p, b: operation(p, "linear").update({"in": [operation(p, "bound")["out"]]}) and None, "not there"),
    ("output", lambda h, p, b: p.update(outputs={"action": "v1"}) and None, "the output 'action'"),
    ("no output", lambda h, p, b: p.update(outputs={}) and None, "the outputs are"),
    ("other output", lambda h, p, b: p["outputs"].update(password="v1") and None, "the outputs are"),
    ("observation", lambda h, p, b: p["observation"].update(shape=[9]) and None, "."),
    ("observation size", lambda h, p, b: p["observation"].update(shape=[2**31, 2**20]) and None, "."),
    ("space", lambda h, p, b: p["observation"].update(kind="text") and None, "kind 'text'"),
    ("object", lambda h, p, b: p["observation"].update(dtype="object") and None, "dtype 'object' is unknown"),
    ("actions", lambda h, p, b: p["action"].update(shape=[3]) and None, "not 3"),
    ("number", lambda h, p, b: operation(p, "quantize").update(scale="1") and None, "must be a number, got '1'"),
    ("function", lambda h, p, b: operation(p, "quantize").update(function="gelu") and None, "a function 'gelu'"),
    ("no steps", lambda h, p, b: operation(p, "quantize").update(function="tanh") and None, "'tanh' needs steps"),
    ("huge integer", lambda h, p, b: operation(p, "quantize").update(bits=10**30) and None, "must be an integer"),
    ("list", lambda h, p, b: p.update(operations={}) and None, "operations must be a list"),
    (
        "infinite limit",
        lambda h, p, b: operation(p, "quantize").update(scale=1e400) and None,
        "holds Infinity|must be a number",
    ),
    ("left over", lambda h, p, b: p["operations"].pop() and None, "tensors that belong to nothing"),
]


@pytest.mark.parametrize(("edit", "said"), [(edit, said) for _, edit, said in HOSTILE], ids=[name for name, *_ in HOSTILE])
def test_hostile_files_are_refused_with_the_reason(data, edit, said):
    from_bytes(data)
    with pytest.raises(InvalidPolicyError, match=said):
        from_bytes(reading(data, edit))


def test_values_that_would_need_memory_out_of_proportion_are_refused(data):
    def edit(header, policy, body):
        size = 10**9
        policy["observation"] = {"kind": "discrete", "shape": [], "dtype": "int64", "sizes": [size], "image": False}
        policy["action"] = {"kind": "discrete", "shape": [], "dtype": "int64", "sizes": [size], "image": False}
        policy["operations"] = [
            {"op": "one_hot", "in": ["observation"], "out": "a", "sizes": [size]},
            {"op": "arg_max", "in": ["a"], "out": "b", "sizes": [size], "maskable": False},
        ]
        policy["outputs"] = {"action": "b"}
        for name in [name for name in header if name != "__metadata__"]:
            del header[name]
        return b""

    with pytest.raises(InvalidPolicyError, match="out of all proportion"):
        from_bytes(reading(data, edit))


def test_damaged_files_are_refused_with_the_reason(data, tmp_path):
    for length in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(InvalidPolicyError):
            from_bytes(data[:length])
    with pytest.raises(InvalidPolicyError, match="1 bytes follow the last tensor"):
        from_bytes(data + b"x")
    changed = bytearray(data)
    changed[-1] ^= 1
    with pytest.raises(InvalidPolicyError, match="the checksum is another"):
        from_bytes(bytes(changed))
    path = tmp_path / "policy.sb3s"
    path.write_bytes(bytes(changed))
    with pytest.raises(InvalidPolicyError, match=r"policy.sb3s is refused: the checksum is another"):
        load_policy(path)
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing.sb3s")
    make_model(TD3).save(tmp_path / "model.zip")
    with pytest.raises(InvalidPolicyError, match="truncated, or no policy file at all"):
        load_policy(tmp_path / "model.zip")
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(InvalidPolicyError, match="no JSON"):
        from_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(InvalidPolicyError, match="a key twice"):
        from_bytes((len(b'{"a":{},"a":{}}')).to_bytes(8, "little") + b'{"a":{},"a":{}}')


def test_tensors_must_be_what_the_header_says(data):
    def first(header):
        return next(name for name in header if name != "__metadata__")

    for edit, said in (
        (lambda h, p, b: h[first(h)].update(dtype="BF16") and None, "has the dtype 'BF16'"),
        (lambda h, p, b: h[first(h)].update(shape=[10**6]) and None, "has the shape|of shape"),
        (lambda h, p, b: h[first(h)].update(data_offsets=[4, 2]) and None, "is truncated"),
        (lambda h, p, b: h[first(h)].update(data_offsets=[0, 10**12]) and None, "is truncated"),
        (lambda h, p, b: h.update({"9.bias": dict(dtype="F32", shape=[1], data_offsets=[0, 4])}), "tensors overlap"),
        (lambda h, p, b: h[first(h)].update(more=1) and None, "must have the keys"),
    ):
        with pytest.raises(InvalidPolicyError, match=said):
            from_bytes(reading(data, edit))


def mutate(data, rng):
    """A few bytes changed, removed, put in or moved, of the file, or of its description with the checksum made right."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    text = bytearray(header["__metadata__"]["policy"].encode())
    kind = rng.integers(4)
    target = [bytearray(data), text, body, text][kind]
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(target)))
        what = 0 if kind == 2 else rng.integers(4)
        if what == 0:
            target[at] = int(rng.integers(256))
        elif what == 1:
            del target[at : at + int(rng.integers(1, 9))]
        elif what == 2:
            target[at:at] = bytes(rng.choice(list(b'0123456789-.e,:[]{}"null'), int(rng.integers(1, 5))).astype(np.uint8))
        else:
            to = int(rng.integers(len(target)))
            target[at : at + 4] = target[to : to + 4]
    if kind == 0:
        return bytes(target)
    return sealed(header, text.decode("utf-8", "replace"), bytes(body))


def fuzz(data, n, seed):
    """
    Read that many mutations. Each is refused with an InvalidPolicyError, or is a policy that answers finite actions.

    :return: How many were refused, and how many were policies.
    """
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(n):
        try:
            policy = Policy(from_bytes(mutate(data, rng)))
        except InvalidPolicyError:
            refused += 1
            continue
        space = policy.observation_space
        with np.errstate(all="ignore"):
            actions, _ = policy.predict(np.zeros((2, *space.shape), space.dtype) if hasattr(space, "shape") else {})
        assert actions.shape == (2, *policy.action_space.shape)
    return refused, n - refused


def test_fuzzed_files_are_refused_or_are_policies(data):
    refused, read = fuzz(data, 600, 0)
    assert refused > 200
    assert read > 50


@pytest.mark.expensive
@pytest.mark.parametrize(("algorithm", "kind", "bits"), [(PPO, "Mlp", 8), (TD3, "Mlp", 0), (SAC, "Mlp", 3), (DQN, "Cnn", 8)])
def test_fuzzed_at_length(algorithm, kind, bits):
    refused, read = fuzz(pack(decision_of(known(algorithm, kind, bits)), {}, {}), 25_000, 1)
    print(f"{algorithm.__name__} {kind} {bits}: {refused} refused, {read} read")
    assert refused > 1000
