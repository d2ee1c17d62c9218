"""Agents that exist become sparse ones: from memory and from files, by magnitude and by given masks, and train on."""

import copy

import numpy as np
import pytest
import torch as th
import yaml
from sb3_contrib import ARS, TQC, TRPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.td3.policies import TD3Policy

import sb3_sparse.cli.prune
from sb3_sparse import GradualPruning, SparsePolicyMixin, sparse_policy, sparsify, to_stock
from sb3_sparse.cli.main import main
from sb3_sparse.cli.prune import finetune
from sb3_sparse.conversion.loading import find_algorithm, find_model_file
from sb3_sparse.nn.optimizer_state import moments_of
from sb3_sparse.zoo.runs import ZooRun, find_zoo_run
from tests.helpers import (
    ALGORITHMS,
    SUPPORTED,
    SUPPORTED_IDS,
    RandomEnv,
    assert_invariants,
    equal_state,
    make_model,
)


class MyTD3Policy(TD3Policy):
    """A user's own policy."""


class SparseMyTD3Policy(SparsePolicyMixin, MyTD3Policy):
    """Its sparse counterpart."""


def stock(algorithm, kind="Mlp", n_steps=32, **kwargs):
    return make_model(algorithm, kind, sparse=False, **kwargs).learn(n_steps)


def counts(model):
    return {name: layer.n_active for name, layer in sparse_policy(model).sparsifier.layers.items()}


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_algorithm_and_policy(algorithm, kind, tmp_path):
    dense = stock(algorithm, kind)
    before = {name: value.clone() for name, value in dense.policy.state_dict().items()}
    model = sparsify(dense, 0.7)
    assert type(model) is algorithm
    assert all(th.equal(value, before[name]) for name, value in dense.policy.state_dict().items())
    planned = sparse_policy(make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.7))).sparsifier.n_planned
    assert counts(model) == planned
    assert model.num_timesteps == dense.num_timesteps
    assert_invariants(model)
    for name, layer in sparse_policy(model).sparsifier.layers.items():
        old = dense.policy.get_submodule(name)
        assert th.equal(layer.weight, old.weight * layer.weight_mask)
        assert th.equal(layer.bias, old.bias)
        if not layer.weight_mask.all():
            assert old.weight.abs()[layer.weight_mask].min() >= old.weight.abs()[~layer.weight_mask].max()
        for (key, optimizer), (_, old_optimizer) in zip(
            sparse_policy(model).sparsifier.optimizers.items(), _optimizers(dense).items(), strict=True
        ):
            for (what, moment), (_, old_moment) in zip(
                moments_of(optimizer, layer.weight), moments_of(old_optimizer, old.weight), strict=True
            ):
                assert th.equal(moment[layer.weight_mask], old_moment[layer.weight_mask]), (key, what)
    if isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer is dense.replay_buffer
    model.save(tmp_path / "model.zip")
    assert equal_state(model, algorithm.load(tmp_path / "model.zip"))
    before = sum(sparse_policy(model).sparsifier.n_steps(name) for name in sparse_policy(model).sparsifier.optimizers)
    model.learn(16, reset_num_timesteps=False)
    assert sum(sparse_policy(model).sparsifier.n_steps(name) for name in sparse_policy(model).sparsifier.optimizers) > before
    assert_invariants(model)
    assert model.num_timesteps > dense.num_timesteps


def _optimizers(model):
    from sb3_sparse.policies.structure import find_optimizers

    return find_optimizers(model.policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_from_a_file(algorithm, tmp_path):
    dense = stock(algorithm)
    dense.save(tmp_path / "dense.zip")
    assert find_algorithm(tmp_path / "dense.zip") is algorithm
    model = sparsify(tmp_path / "dense.zip", 0.7, env=dense.get_env(), device="cpu")
    assert type(model) is algorithm
    assert equal_state(model, sparsify(dense, 0.7))
    assert model.learning_rate == dense.learning_rate
    assert getattr(model, "buffer_size", None) == getattr(dense, "buffer_size", None)
    if isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer.size() == 0
    model.learn(24)
    assert_invariants(model)


def test_what_becomes_of_the_replay_buffer():
    dense = stock(DQN)
    assert sparsify(dense, 0.5).replay_buffer is dense.replay_buffer
    copied = sparsify(dense, 0.5, replay_buffer="copy").replay_buffer
    assert copied is not dense.replay_buffer
    assert np.array_equal(copied.observations, dense.replay_buffer.observations)
    assert sparsify(dense, 0.5, replay_buffer="new").replay_buffer.size() == 0
    two = make_vec_env(lambda: RandomEnv(discrete=True), 2)
    with pytest.raises(ValueError, match="`env` has 2 environments, and the model's replay buffer is of 1"):
        sparsify(dense, 0.5, env=two)
    assert sparsify(dense, 0.5, env=two, replay_buffer="new").n_envs == 2


@pytest.mark.parametrize(
    ("pattern", "scope", "sparsity"),
    [
        ("unstructured", "global", 0.8),
        ("2:4", "layer", None),
        ("block:2x2", "layer", 0.7),
        ("block:2x2", "global", 0.7),
    ],
)
def test_patterns_and_scopes(pattern, scope, sparsity, tmp_path):
    dense = stock(SAC)
    model = sparsify(dense, sparsity, pattern=pattern, scope=scope)
    assert_invariants(model)
    assert {plan.pattern.spec for plan in model.policy.sparsifier.plan.values()} == {pattern}
    if pattern == "unstructured":
        for network, names in model.policy.sparsifier.networks.items():
            weights = th.cat([dense.policy.get_submodule(name).weight.abs().flatten() for name in names])
            kept = round(0.2 * len(weights))
            assert sum(counts(model)[name] for name in names) == kept, network
            threshold = weights.sort(descending=True).values[kept - 1]
            for name in names:
                magnitude = dense.policy.get_submodule(name).weight.abs()
                assert th.equal(model.policy.sparsifier.layers[name].weight_mask, magnitude >= threshold)
    # What policy_kwargs say is what is there, so that a new policy made with them has the same counts
    twin = make_model(SAC, policy_kwargs=dict(model.policy_kwargs))
    if pattern != "block:2x2" or scope == "layer":
        assert counts(twin) == counts(model)
    # As sparse as it is already: nothing happens
    again = sparsify(model, sparsity, scope=scope)
    assert counts(again) == counts(model)
    model.save(tmp_path / "model.zip")
    assert equal_state(model, SAC.load(tmp_path / "model.zip"))
    model.learn(24)
    assert_invariants(model)


def test_one_network_and_sparser_again():
    dense = stock(TD3)
    first = sparsify(dense, {"critic": 0.5})
    assert all(layer.mask_values is None for name, layer in first.policy.sparsifier.layers.items() if "actor" in name)
    second = sparsify(first, {"actor": 0.6})
    third = sparsify(second, 0.9)
    for less, more in ((first, second), (second, third)):
        for name, layer in more.policy.sparsifier.layers.items():
            assert not (layer.weight_mask & ~less.policy.sparsifier.layers[name].weight_mask).any()
    assert {name: counts(second)[name] for name in counts(first) if "critic" in name} == {
        name: count for name, count in counts(first).items() if "critic" in name
    }
    assert counts(third) == dict(make_model(TD3, policy_kwargs=dict(sparsity=0.9)).policy.sparsifier.n_planned)
    assert third.policy_kwargs["sparsity"] == 0.9
    for one in (second, third):
        assert_invariants(one)


def test_a_sparse_model_keeps_what_it_was_not_asked_to_change():
    own = dict(engine="torch", initial_mask="magnitude", mask_seed=7, dense_layers=["last"])
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.3) | own)
    masks = {"actor.mu.0": model.policy.sparsifier.masks()["actor.mu.0"] & th.eye(16, 7).bool()}
    for pruned in (sparsify(model, 0.6), sparsify(model, 0.6, scope="global"), sparsify(model, masks=masks)):
        assert own.items() <= pruned.policy_kwargs.items()


def test_equal_weights_that_exist_do_not_lose_to_pruned_ones():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.5))
    with th.no_grad():
        for layer in model.policy.sparsifier.layers.values():
            layer.weight.zero_()
    masks = model.policy.sparsifier.masks()
    for name, layer in sparsify(model, 0.6).policy.sparsifier.layers.items():
        assert not (layer.weight_mask & ~masks[name]).any()


def test_given_masks():
    dense = stock(TD3)
    generator = np.random.default_rng(0)
    mask = generator.random((16, 7)) < 0.3
    model = sparsify(dense, masks={"actor.mu.0": mask, "critic.qf1.2": th.as_tensor(generator.random((12, 16)) < 0.1)})
    layers = model.policy.sparsifier.layers
    assert np.array_equal(layers["actor.mu.0"].weight_mask.numpy(), mask)
    assert sum(layer.mask_values is not None for layer in layers.values()) == 2
    assert_invariants(model)
    # policy_kwargs tell what is there
    assert set(model.policy_kwargs["distribution"]) == {"actor.mu.0", "critic.qf1.2"}
    assert counts(make_model(TD3, policy_kwargs=dict(model.policy_kwargs))) == counts(model)
    whole = sparsify(dense, masks={})
    assert all(layer.mask_values is None for layer in whole.policy.sparsifier.layers.values())


def test_it_can_be_pruned_gradually_from_there():
    model = sparsify(stock(DQN), 0.5)
    model.learn(60, callback=GradualPruning(0.9, 0.1, 0.9, updates=5))
    assert sum(counts(model).values()) == round(0.1 * 340)


def test_a_live_model_keeps_its_environment_and_schedules():
    env = VecNormalize(make_vec_env(lambda: RandomEnv(), 2))
    dense = stock(PPO, env=env, learning_rate=lambda progress: 1e-3 * progress)
    model = sparsify(dense, 0.5)
    assert model.get_env() is dense.get_env()
    assert model.get_vec_normalize_env() is env
    assert model.lr_schedule(0.5) == 5e-4
    model.learn(32)


# --- Policies and algorithms of all kinds ---


def test_policies_of_ones_own(tmp_path):
    dense = TD3(MyTD3Policy, RandomEnv(), policy_kwargs=dict(net_arch=[16, 12]), device="cpu", buffer_size=100)
    with pytest.raises(TypeError, match=r"class SparseMyTD3Policy\(sb3_sparse.SparsePolicyMixin, MyTD3Policy\)"):
        sparsify(dense, 0.5)
    model = sparsify(dense, 0.5, policy_class=SparseMyTD3Policy)
    assert type(model.policy) is SparseMyTD3Policy
    dense.save(tmp_path / "own.zip")
    assert type(sparsify(tmp_path / "own.zip", 0.5, policy_class=SparseMyTD3Policy).policy) is SparseMyTD3Policy
    assert type(sparsify(model, 0.6).policy) is SparseMyTD3Policy
    with pytest.raises(TypeError, match="`policy_class` must be a class that extends SparsePolicyMixin and TD3Policy"):
        sparsify(stock(TD3), 0.5, policy_class=SparseMyTD3Policy)


def test_through_stock_and_back():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.8)).learn(40)
    again = sparsify(to_stock(model), 0.8)
    masks = model.policy.sparsifier.masks()
    assert all(th.equal(mask, masks[name]) for name, mask in again.policy.sparsifier.masks().items())


@pytest.mark.parametrize("algorithm", [TRPO, ARS])
def test_unsupported_algorithms(algorithm, tmp_path):
    model = algorithm("MlpPolicy", RandomEnv(), device="cpu")
    with pytest.raises(ValueError, match=rf"{algorithm.__name__} is not supported; supported are: TD3, DDPG, SAC"):
        sparsify(model, 0.5)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="of no algorithm that is supported; supported are: TD3"):
        sparsify(tmp_path / "model.zip", 0.5)


# --- Mistakes ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "`sparsity` is left out, and nothing it could follow from is there"),
        (dict(sparsity=1.0), r"`sparsity` must be a number in \[0, 1\), got 1.0"),
        (dict(sparsity={"q_net": 0.5}), "`sparsity` names the unknown network 'q_net'"),
        (dict(sparsity=0.9999), "`sparsity`=0.9999 of network 'actor' cannot be reached"),
        (dict(sparsity=0.5, scope="all"), "`scope` must be one of 'layer', 'global', got 'all'"),
        (dict(sparsity=0.5, scope="global", distribution="er"), "`scope`='global' and `distribution`='er' are both given"),
        (dict(sparsity=0.5, pattern="2:4", scope="global"), "`scope`='global' cannot be used with `pattern`='2:4'"),
        (dict(sparsity=0.9, pattern="2:4"), "`sparsity`=0.9 of network 'actor' and `pattern`='2:4' disagree"),
        (dict(pattern="4:16"), "`pattern`='4:16' is impossible for layer 'actor.mu.0': it has 7 inputs"),
        (dict(distribution={"actor.0": 0.5}), "`distribution` names the unknown layer 'actor.0'"),
        (dict(sparsity=0.5, masks={}), "`masks` say everything: leave `sparsity`"),
        (dict(masks={"actor.0": None}), "`masks` names the unknown layer 'actor.0'"),
        (dict(masks={"actor.mu.0": [[True]]}), r"`masks` of layer 'actor.mu.0' must be bool of shape \(16, 7\), got list"),
        (
            dict(masks={"actor.mu.0": np.ones((7, 16), bool)}),
            r"must be bool of shape \(16, 7\), got .*bool of shape \(7, 16\)",
        ),
        (dict(masks={"actor.mu.0": np.zeros((16, 7), bool)}), "keeps no weight: at least one must stay"),
        (dict(masks={"actor.mu.0": np.eye(16, 7) > 0}, pattern="block:2x2"), "in `masks` breaks the pattern 'block:2x2'"),
        (dict(masks={"actor.mu.0": np.eye(16, 7) > 0}, dense_layers="first"), "is in `dense_layers`: its mask in `masks`"),
        (dict(sparsity=0.5, replay_buffer="keep"), "`replay_buffer` must be one of 'share', 'copy', 'new', got 'keep'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sparsify(make_model(TD3, sparse=False), **kwargs)


def test_what_is_gone_does_not_come_back():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5, distribution="uniform"))
    with pytest.raises(ValueError, match=r"`sparsity` of network 'actor' is 0.3994, below its present sparsity 0.5000"):
        sparsify(model, 0.4)
    with pytest.raises(ValueError, match=r"the final plan gives layer 'actor.mu.0' 62 weights, more than the 56 it has"):
        sparsify(model, 0.51, distribution="er")
    with pytest.raises(ValueError, match="would need weights that are gone"):
        sparsify(make_model(TD3, policy_kwargs=dict(sparsity=0.4, distribution="uniform")), pattern="2:4")
    with pytest.raises(ValueError, match="is in `dense_layers`, but it is pruned already"):
        sparsify(model, 0.6, dense_layers="last")
    with pytest.raises(ValueError, match="keeps weights that are pruned already"):
        sparsify(model, masks={"actor.mu.0": np.ones((16, 7), bool)})
    with pytest.raises(ValueError, match="pruned already, in another pattern than 'block:2x2'"):
        sparsify(model, {"actor": 0.8}, pattern="block:2x2", scope="global")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        sparsify(tmp_path / "none.zip", 0.5)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match="is not a zip file"):
        sparsify(tmp_path / "text.zip", 0.5)


# --- From file to file ---


def test_prune_command(tmp_path, capsys):
    dense = make_model(SAC, sparse=False, env="Pendulum-v1").learn(40)
    dense.save(tmp_path / "agent.zip")
    main(["prune", str(tmp_path / "agent.zip"), "--sparsity", "0.8"])
    out = capsys.readouterr().out
    assert f"written to {tmp_path / 'agent-pruned.zip'}" in out
    model = SAC.load(tmp_path / "agent-pruned.zip")
    assert str(sb3_sparse.sparsity_report(model)) in out
    assert equal_state(model, sparsify(dense, 0.8))
    main(f"prune {tmp_path}/agent.zip --sparsity actor=0.9 critic=0.5 --scope global -o {tmp_path}/other".split())
    other = sb3_sparse.sparsity_report(SAC.load(tmp_path / "other.zip"))
    assert other.networks["actor"].sparsity == pytest.approx(0.9, abs=2e-3)
    assert other.networks["critic"].sparsity == pytest.approx(0.5, abs=2e-3)


def test_nothing_is_overwritten_unasked(tmp_path):
    file = tmp_path / "agent.zip"
    make_model(DQN, sparse=False).save(file)
    content = file.read_bytes()
    with pytest.raises(SystemExit, match=r"is the model itself: choose another name, or allow to replace it with `--force`"):
        main(["prune", str(file), "--sparsity", "0.5", "-o", str(file)])
    (tmp_path / "agent-pruned.zip").write_text("precious")
    with pytest.raises(SystemExit, match=r"agent-pruned.zip exists: choose another name"):
        main(["prune", str(file), "--sparsity", "0.5"])
    with pytest.raises(SystemExit, match="there is no folder"):
        main(["prune", str(file), "--sparsity", "0.5", "-o", str(tmp_path / "none" / "x.zip")])
    for bad in (["1.5"], ["many"], ["0.5", "0.6"], ["actor=0.5", "0.6"], ["q_net=0.5", "q_net=0.6"]):
        with pytest.raises(SystemExit, match=r"`(--)?sparsity`"):
            main(["prune", str(file), "--sparsity", *bad, "-o", str(tmp_path / "new.zip")])
    assert file.read_bytes() == content
    assert (tmp_path / "agent-pruned.zip").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent-pruned.zip", "agent.zip"]
    main(["prune", str(file), "--sparsity", "0.5", "-o", str(file), "--force"])
    assert sparse_policy(DQN.load(file)).sparsifier.violations() == []


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "agent.zip"
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.5))
    model.save(file)
    content = file.read_bytes()

    def save(path):
        path.write_text("half")
        assert find_model_file(tmp_path) == file
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", save)
    with pytest.raises(OSError, match="disk full"):
        sb3_sparse.conversion.loading.save_atomically(model, file)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_finetuning(algorithm, tmp_path, capsys):
    dense = make_model(algorithm, sparse=False, env="Pendulum-v1").learn(64)
    dense.save(tmp_path / "agent.zip")
    main(f"prune {tmp_path}/agent.zip --sparsity 0.8 --finetune 64 --env Pendulum-v1 --seed 3".split())
    model = algorithm.load(tmp_path / "agent-pruned.zip")
    assert model.num_timesteps == dense.num_timesteps + 64
    assert_invariants(model)
    at_once = sparsify(dense, 0.8)
    assert all(
        th.equal(mask, at_once.policy.sparsifier.masks()[name]) for name, mask in model.policy.sparsifier.masks().items()
    )
    assert not equal_state(model, at_once)


def test_finetuning_fills_the_buffer_with_what_the_agent_does(monkeypatch):
    model = sparsify(stock(TD3, n_steps=60), 0.5, replay_buffer="new")
    before = copy.deepcopy(model.policy.state_dict())
    seen = []
    train = model.train
    monkeypatch.setattr(model, "train", lambda *args, **kwargs: (seen.append(model.num_timesteps), train(*args, **kwargs)))
    sample = model.action_space.sample
    monkeypatch.setattr(model.action_space, "sample", lambda *args: pytest.fail("a random action") or sample())
    finetune(model, 30)
    # 20 steps to fill (learning_starts), then gradient steps at every second step
    assert seen == [82, 84, 86, 88, 90]
    assert model.num_timesteps == 90
    assert model.gradient_steps == 2
    assert not all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    with pytest.raises(ValueError, match=r"`--finetune` 20 is too short: .* the first 20 steps"):
        finetune(sparsify(stock(TD3), 0.5, replay_buffer="new"), 20)


def zoo_folder(tmp_path, *, normalize=True, statistics=True):
    """What rl-zoo3 leaves of a training."""
    env = VecNormalize(make_vec_env("Pendulum-v1"), clip_obs=7.0)
    model = make_model(SAC, sparse=False, env=env).learn(60)
    (tmp_path / "Pendulum-v1").mkdir()
    model.save(tmp_path / "best_model.zip")
    config = dict(policy="MlpPolicy", normalize=normalize, n_timesteps=60)
    (tmp_path / "Pendulum-v1" / "config.yml").write_text(yaml.dump(config))
    (tmp_path / "Pendulum-v1" / "args.yml").write_text(yaml.dump(dict(env="Pendulum-v1", env_kwargs=None)))
    if statistics:
        env.save(str(tmp_path / "Pendulum-v1" / "vecnormalize.pkl"))
    return model, env


def test_finetuning_in_rl_zoo3s_folder(tmp_path, monkeypatch, capsys):
    dense, env = zoo_folder(tmp_path)
    dense.save_replay_buffer(tmp_path / "replay_buffer.pkl")
    met = []

    def watch(model, n_steps):
        met.append((model.get_vec_normalize_env(), model.replay_buffer.size()))
        finetune(model, n_steps)

    monkeypatch.setattr(sb3_sparse.cli.prune, "finetune", watch)
    main(["prune", str(tmp_path), "--sparsity", "0.8", "--finetune", "10", "-o", str(tmp_path / "small.zip")])
    ((normalized, n_stored),) = met
    assert n_stored == dense.replay_buffer.size()
    assert normalized.clip_obs == 7.0
    assert not normalized.training
    # The statistics' file stays right for the new model
    assert np.array_equal(normalized.obs_rms.mean, env.obs_rms.mean)
    assert SAC.load(tmp_path / "small.zip").num_timesteps == dense.num_timesteps + 10


def test_a_saved_replay_buffer_that_is_too_short_is_noticed_before_anything_is_written(tmp_path):
    dense, _ = zoo_folder(tmp_path)
    dense.replay_buffer.reset()
    dense.save_replay_buffer(tmp_path / "replay_buffer.pkl")
    with pytest.raises(SystemExit, match=r"`--finetune` 10 is too short: .* holds 0 transitions, and the first 20 steps"):
        main(["prune", str(tmp_path), "--sparsity", "0.8", "--finetune", "10", "-o", str(tmp_path / "small.zip")])
    assert not (tmp_path / "small.zip").exists()


def test_zoo_folders_are_read_with_their_wrappers(tmp_path):
    folder = tmp_path / "CartPole-v1"
    folder.mkdir()
    config = dict(frame_stack=3, env_wrapper=[{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 5}}])
    # As rl-zoo3 writes it
    (folder / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- " + _as_pairs(config))
    (folder / "args.yml").write_text(yaml.dump(dict(env="CartPole-v1", env_kwargs=None)))
    run = find_zoo_run(tmp_path / "model.zip")
    assert (run.env_id, run.statistics, run.replay_buffer) == ("CartPole-v1", None, None)
    env = sb3_sparse.zoo.runs.make_training_env(run, "CartPole-v1", 2, 0)
    assert env.num_envs == 2
    assert env.observation_space.shape == (12,)
    assert env.get_attr("_max_episode_steps") == [5, 5]


def test_which_zoo_folder_is_the_models_must_be_clear(tmp_path):
    (tmp_path / "another_program").mkdir()
    for folder in (tmp_path, tmp_path / "another_program"):
        (folder / "config.yml").write_text("frame_stack: 4\nnormalize: true\n")
    assert find_zoo_run(tmp_path / "model.zip") == ZooRun()
    for name in ("CartPole-v1", "Pendulum-v1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text("{}")
        (tmp_path / name / "args.yml").write_text(f"env: {name}")
    with pytest.raises(ValueError, match=r"beside .*model.zip are several folders of rl-zoo3 \(CartPole-v1, Pendulum-v1\)"):
        find_zoo_run(tmp_path / "model.zip")


def _as_pairs(config):
    return yaml.dump([list(item) for item in config.items()]).replace("\n", "\n  ").rstrip()


def test_what_finetuning_needs_is_checked_first(tmp_path):
    zoo_folder(tmp_path, statistics=False)
    prune = ["prune", str(tmp_path / "best_model.zip"), "--sparsity", "0.8", "--finetune"]
    with pytest.raises(SystemExit, match=r"saw normalised observations, but .*vecnormalize.pkl is missing"):
        main([*prune, "1000"])
    (tmp_path / "Pendulum-v1" / "config.yml").unlink()
    with pytest.raises(SystemExit, match="`--env` 'Pendulum-v9' is not a registered environment"):
        main([*prune, "1000", "--env", "Pendulum-v9"])
    with pytest.raises(SystemExit, match="`--finetune` 15 is too short"):
        main([*prune, "15", "--env", "Pendulum-v1"])
    with pytest.raises(SystemExit, match="`--env` 'MountainCarContinuous-v0' does not fit the model: its obs"):
        main([*prune, "1000", "--env", "MountainCarContinuous-v0"])
    with pytest.raises(SystemExit, match="`--finetune` must be an integer >= 0, got -5"):
        main([*prune, "-5"])
    (tmp_path / "Pendulum-v1" / "args.yml").unlink()
    with pytest.raises(SystemExit, match="`--finetune` needs an environment: give `--env`"):
        main([*prune, "1000"])
    assert not (tmp_path / "best_model-pruned.zip").exists()


def test_an_interrupted_finetuning_leaves_the_pruned_model(tmp_path, monkeypatch):
    make_model(TQC, sparse=False, env="Pendulum-v1").learn(30).save(tmp_path / "agent.zip")
    monkeypatch.setattr(sb3_sparse.cli.prune, "finetune", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(["prune", str(tmp_path / "agent.zip"), "--sparsity", "0.8", "--finetune", "100", "--env", "Pendulum-v1"])
    assert_invariants(TQC.load(tmp_path / "agent-pruned.zip"))
