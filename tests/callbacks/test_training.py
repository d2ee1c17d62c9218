"""A callback's life: as long as its training, however that ends and whoever calls whom."""

import copy
import pickle
import threading

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps

from sb3_sparse import (
    SET,
    DelayedNStep,
    DynamicNStepReplayBuffer,
    DynamicReplayCapacity,
    GradualPruning,
    MaskRefresh,
    QuantizationAware,
    RigL,
    SparsityLogger,
    sparse_policy,
)
from tests.helpers import RandomEnv, assert_invariants, equal_state, make_model, start_training

#: Callbacks that change masks, and what policy they need.
UPDATERS = {
    "SET": (lambda: SET(2, 0.3, target="own_topk"), {}),
    "RigL": (lambda: RigL(2, 0.3, moments="keep"), {}),
    "RigL-skip": (lambda: RigL(2, 0.3, skip_step=True), {}),
    "RigL-timesteps": (lambda: RigL(4, 0.3, unit="timesteps"), {}),
    "MaskRefresh": (lambda: MaskRefresh(2), {"pattern": "2:4"}),
    "MaskRefresh-ste": (lambda: MaskRefresh(2, "ste"), {"pattern": "2:4"}),
    "GradualPruning": (lambda: GradualPruning(0.9, 0, 400, updates=200), {"sparsity": 0.3}),
}


class Interrupt(BaseCallback):
    """Ctrl-C at an environment step, or in the middle of ``train()``."""

    def __init__(self, when, timestep=40):
        super().__init__()
        self.when, self.timestep = when, timestep

    def _on_step(self):
        if self.when == "step" and self.num_timesteps >= self.timestep:
            raise KeyboardInterrupt
        return True

    def _on_training_start(self):
        if self.when == "start":
            raise ZeroDivisionError
        optimizers = sparse_policy(self.model).sparsifier.optimizers.values()
        self.handles = [optimizer.register_step_pre_hook(self._in_train) for optimizer in optimizers]

    def _in_train(self, *_):
        if self.when == "train" and self.num_timesteps >= self.timestep:
            for handle in self.handles:
                handle.remove()
            raise KeyboardInterrupt


def updated_model(name, algorithm=TD3, **kwargs):
    return make_model(algorithm, policy_kwargs=UPDATERS[name][1] or dict(sparsity=0.6), **kwargs)


def interrupt(model, *callbacks, when="step"):
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        model.learn(80, callback=[*callbacks, Interrupt(when)])


@pytest.mark.parametrize("when", ["step", "train", "start"])
@pytest.mark.parametrize("name", UPDATERS)
def test_after_an_interruption_nothing_is_changed_any_more(name, when):
    model, callback = updated_model(name), UPDATERS[name][0]()
    interrupt(model, callback, when=when)
    assert callback.events or when == "start"
    n_events, masks = len(callback.events), model.policy.sparsifier.masks()
    model.learn(48)
    assert len(callback.events) == n_events
    assert all(th.equal(mask, masks[name]) for name, mask in model.policy.sparsifier.masks().items())
    assert model.policy.sparsifier.updaters == {}
    layers = model.policy.sparsifier.layers.values()
    assert not any(layer.wants_dense_gradient or layer.dense_gradient is not None for layer in layers)
    assert_invariants(model)


@pytest.mark.parametrize("when", ["step", "train", "start"])
@pytest.mark.parametrize("name", UPDATERS)
@pytest.mark.parametrize("same_object", [False, True])
def test_after_an_interruption_a_callback_simply_works(name, when, same_object):
    model, first = updated_model(name), UPDATERS[name][0]()
    interrupt(model, first, when=when)
    second = first if same_object else UPDATERS[name][0]()
    model.learn(60, callback=second)
    assert second.events
    assert all(event.timestep <= 60 for event in second.events)
    assert model.policy.sparsifier.updaters == {}
    assert_invariants(model)


def test_an_interrupted_training_leaves_no_trace_in_the_next_one(torch_engine):
    """The second learn() of a model whose first was interrupted is the one of a model that had no callback bound."""
    models = []
    for stopped in (False, True):
        models.append(updated_model("RigL"))
        interrupt(models[-1], UPDATERS["RigL"][0]())
        if stopped:
            models[-1].policy.sparsifier.stop_updater("actor")
            models[-1].policy.sparsifier.stop_updater("critic")
        models[-1].learn(40)
    assert equal_state(*models)


@pytest.mark.parametrize("algorithm", [SAC, DQN, PPO])
def test_other_algorithms(algorithm):
    model = updated_model("SET", algorithm)
    interrupt(model, SET(2, 0.3))
    masks = sparse_policy(model).sparsifier.masks()
    model.learn(48)
    assert all(th.equal(mask, masks[name]) for name, mask in sparse_policy(model).sparsifier.masks().items())
    callback = SET(2, 0.3)
    model.learn(48, callback=callback)
    assert callback.events


def test_a_second_updater_in_the_same_training_is_refused_and_the_next_training_works():
    model = updated_model("SET")
    for _ in range(2):
        with pytest.raises(ValueError, match="'critic' already has the updater SET; RigL cannot be a second one in the same"):
            model.learn(60, callback=[SET(3, 0.3), RigL(3, 0.3, networks="critic")])
    callback = RigL(3, 0.3)
    model.learn(60, callback=callback)
    assert callback.events


def test_own_loops_end_a_training_by_saying_so():
    model = updated_model("SET")
    first, second = SET(2, 0.3), RigL(2, 0.3)
    start_training(model, first, 100)
    with pytest.raises(ValueError, match=r"ends a training by calling on_training_end\(\)"):
        start_training(model, second, 100)
    first.on_training_end()
    start_training(model, second, 100)
    assert {active.updater for active in model.policy.sparsifier.updaters.values()} == {second}


def test_old_name_of_stop_updater():
    model = updated_model("SET")
    start_training(model, SET(2, 0.3), 100)
    with pytest.warns(DeprecationWarning, match="`unbind` is now called `stop_updater`"):
        model.policy.sparsifier.unbind("actor")
    assert set(model.policy.sparsifier.updaters) == {"critic"}


# --- Whoever calls whom ---


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("unit", ["steps", "timesteps"])
def test_children_of_event_callbacks(unit, interrupted):
    """They are told that training starts, not that it ends, and called now and then."""
    model = updated_model("RigL", train_freq=1, gradient_steps=1)
    child = RigL(4, 0.3, "constant", unit=unit)
    parent = EveryNTimesteps(25, child)
    if interrupted:
        interrupt(model, CallbackList([CallbackList([parent])]))
    else:
        model.learn(60, callback=parent)
    assert child.events
    masks = model.policy.sparsifier.masks()
    model.learn(40)
    assert all(th.equal(mask, masks[name]) for name, mask in model.policy.sparsifier.masks().items())
    model.learn(60, callback=RigL(4, 0.3))


def test_a_child_that_is_not_told_when_training_starts():
    model = updated_model("SET", train_freq=1, gradient_steps=1)
    child = SET(2, 0.3)
    evaluation = EvalCallback(model.get_env(), callback_on_new_best=child, eval_freq=25, n_eval_episodes=1, warn=False)
    model.learn(60, callback=evaluation)
    assert child.events
    assert child.events[0].timestep >= 25
    model.learn(40)
    assert model.policy.sparsifier.updaters == {}


class Calls(BaseCallback):
    """Does something in the middle of a training, once."""

    def __init__(self, what, timestep=40):
        super().__init__()
        self.what, self.timestep = what, timestep

    def _on_step(self):
        if self.num_timesteps == self.timestep and self.what is not None:
            what, self.what = self.what, None
            what(self.model)
        return True


@pytest.mark.parametrize("inner", [None, "SET", "interrupted"])
def test_a_training_inside_a_training_of_the_same_model(inner):
    model = updated_model("SET", train_freq=1, gradient_steps=1)
    outer, inside = SET(2, 0.3), SET(3, 0.3)
    seen = []

    def learn(model):
        n_events, masks = len(outer.events), model.policy.sparsifier.masks()
        if inner == "interrupted":
            interrupt(model, inside)
        else:
            model.learn(48, callback=None if inner is None else inside)
        seen.append(len(outer.events) == n_events)
        if inner is None:
            seen.append(all(th.equal(mask, masks[name]) for name, mask in model.policy.sparsifier.masks().items()))

    model.learn(80, callback=[Calls(learn), outer], reset_num_timesteps=False)
    assert all(seen)
    assert bool(inside.events) == (inner is not None)
    # The outer one went on when it came back
    assert len({event.step for event in outer.events if event.network == "critic"}) >= 20
    assert model.policy.sparsifier.updaters == {}
    assert_invariants(model)


def test_a_training_of_another_model_inside_a_training():
    models = [updated_model("RigL", train_freq=1, gradient_steps=1) for _ in range(2)]
    callbacks = [RigL(4, 0.3), RigL(4, 0.3)]
    models[0].learn(80, callback=[Calls(lambda _: models[1].learn(60, callback=callbacks[1])), callbacks[0]])
    alone = RigL(4, 0.3)
    updated_model("RigL", train_freq=1, gradient_steps=1).learn(60, callback=alone)
    assert [event.step for event in callbacks[1].events] == [event.step for event in alone.events]
    assert {event.step for event in callbacks[0].events if event.network == "critic"} == set(range(4, 60, 4))


@pytest.mark.parametrize("name", UPDATERS)
def test_a_callback_that_moves_to_another_model_lets_the_first_go(name):
    first, second = updated_model(name), updated_model(name)
    callback = UPDATERS[name][0]()
    interrupt(first, callback)
    masks = first.policy.sparsifier.masks()
    second.learn(60, callback=callback)
    assert callback.events
    assert first.policy.sparsifier.updaters == {}
    first.train(gradient_steps=8, batch_size=8)
    assert all(th.equal(mask, masks[name]) for name, mask in first.policy.sparsifier.masks().items())
    assert_invariants(second)


def test_copies_are_in_no_training():
    model, callback = updated_model("SET"), SET(2, 0.3)
    interrupt(model, callback)
    copied, n_events = copy.copy(callback), len(callback.events)
    assert copied.has_ended()
    other = updated_model("SET")
    other.learn(40, callback=copied)
    assert copied.events
    # The original is where it was
    assert len(callback.events) == n_events
    assert {active.updater for active in model.policy.sparsifier.updaters.values()} == {callback}
    model.learn(40, callback=copy.deepcopy(SET(2, 0.3)))
    assert_invariants(model)
    fresh = pickle.loads(pickle.dumps(RigL(5, 0.3, networks="actor")))
    assert (fresh.clock.every, fresh.networks, fresh.drop_schedule) == (5, ["actor"], "cosine")


def test_a_copied_model_has_no_updater():
    model, callback = updated_model("SET"), SET(2, 0.3)
    interrupt(model, callback)
    policy = copy.deepcopy(model.policy)
    assert policy.sparsifier.updaters == {}


def test_two_models_in_two_threads():
    alone = updated_model("RigL")
    alone.learn(60, callback=RigL(2, 0.3))
    models = [updated_model("RigL") for _ in range(2)]
    callbacks = [RigL(2, 0.3), RigL(2, 0.3)]
    errors = []

    def learn(index):
        try:
            models[index].learn(60, callback=callbacks[index])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=learn, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for model, callback in zip(models, callbacks, strict=True):
        assert callback.events
        assert model.policy.sparsifier.updaters == {}
        assert_invariants(model)


def test_a_clock_that_is_set_back_does_not_end_a_training():
    """Whoever restores ``start_time``, for the frames per second of a resumed run, begins no other training."""
    model = updated_model("SET", train_freq=1, gradient_steps=1)
    callback = SET(4, 0.3, networks="critic")

    def restore(model):
        model.start_time -= 10**9

    model.learn(80, callback=[callback, Calls(restore, 1), Calls(restore, 50)])
    assert [event.step for event in callback.events] == list(range(4, 61, 4))


# --- A policy that is loaded in the middle ---


@pytest.mark.parametrize("name", UPDATERS)
@pytest.mark.parametrize("stranger", [False, True])
def test_a_policy_that_is_loaded_in_mid_training(name, stranger, tmp_path):
    """With what an earlier checkpoint remembered, or with nothing: a file of a model without a callback."""
    model, callback = updated_model(name), UPDATERS[name][0]()
    file = tmp_path / "model.zip"
    if stranger:
        updated_model(name, seed=5).save(file)
    else:
        saved = Calls(lambda model: model.save(file), 30)
    loads = Calls(lambda model: model.set_parameters(file), 44)
    if stranger and name == "GradualPruning":
        with pytest.raises(ValueError, match="is not being pruned to this goal"):
            model.learn(80, callback=[loads, callback])
        return
    model.learn(80, callback=[loads, callback] if stranger else [saved, loads, callback])
    assert any(event.timestep > 44 for event in callback.events)
    assert_invariants(model)


# --- Callbacks that change no masks ---


def replay_model(**kwargs):
    buffer = dict(replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=1, gamma=0.99))
    return make_model(SAC, policy_kwargs=dict(sparsity=0.5), **buffer, **kwargs)


@pytest.mark.parametrize("when", ["step", "train"])
def test_the_entropy_bonus_ends_with_its_training(when):
    model, callback = replay_model(), DelayedNStep(delay=4, entropy="every_step")
    interrupt(model, callback, when=when)
    bonus, calls = model.replay_buffer.step_bonus, []
    assert bonus is not None
    action_log_prob = model.actor.action_log_prob
    model.actor.action_log_prob = lambda observations: calls.append(1) or action_log_prob(observations)
    model.learn(60)
    assert model.replay_buffer.step_bonus is None
    # Twice per gradient step by stock train(), never by the bonus
    assert len(calls) == 2 * model.policy.sparsifier.n_steps("actor") - 2 * (model._n_updates - len(calls) // 2)
    del model.actor.action_log_prob
    for again in (callback, DelayedNStep(delay=4, entropy="every_step")):
        interrupt(model, again, when=when)
        assert model.replay_buffer.step_bonus is not bonus
        model.learn(30, callback=again)
        assert model.replay_buffer.step_bonus is None
        assert again.has_ended()


def test_the_entropy_bonus_of_a_moved_callback_is_not_the_other_models():
    first, second = replay_model(), replay_model()
    callback = DelayedNStep(delay=0, entropy="every_step")
    interrupt(first, callback)
    start_training(second, callback, 100)
    first.actor.action_log_prob = second.actor.action_log_prob = None  # neither is asked
    first._setup_learn(10)
    assert first.replay_buffer.sample(8) is not None


def test_an_announced_row_that_never_came_leaves_nothing():
    model = replay_model(learning_starts=5)
    callback = DynamicReplayCapacity(threshold=1e-9, every=20, n_oldest=8, min_size=4)
    interrupt(model, callback)  # after its actions were announced, before the row was stored
    buffer = model.replay_buffer
    assert buffer._next_mean_actions is not None
    row, announced = buffer.pos, buffer._next_mean_actions.copy()
    model.learn(10)
    assert (buffer.mean_actions[row] == buffer.actions[row]).all()
    assert not (buffer.mean_actions[row] == announced).all()
    model.learn(40, callback=callback)
    assert callback.events
    assert all(event.n_dropped > 0 for event in callback.events)


def test_quantization_stays_and_its_callback_may_come_again():
    model, callback = make_model(TD3, policy_kwargs=dict(sparsity=0.5)), QuantizationAware(start=60)
    interrupt(model, callback)
    layers = model.policy.sparsifier.layers
    model.learn(80)  # it would have begun at 60
    assert all(layer.quantizer is None for layer in layers.values())
    model.learn(80, callback=callback)
    (event,) = callback.events
    assert (event.timestep, event.weight_bits) == (60, 8)
    assert set(event.layers) == {name for name, layer in layers.items() if layer.quantizer is not None}
    quantizers = {name: layer.quantizer for name, layer in layers.items()}
    interrupt(model, QuantizationAware(start=60))
    model.learn(80, callback=callback)
    assert callback.events == []
    assert {name: layer.quantizer for name, layer in layers.items()} == quantizers


def test_a_logger_that_moves_reports_the_model_it_is_at(tmp_path):
    callback = SparsityLogger()
    models = [make_model(TD3, policy_kwargs=dict(sparsity=value)) for value in (0.5, 0.8)]
    interrupt(models[0], callback)
    models[1].learn(40, callback=callback)
    assert models[1].logger.name_to_value.get("sparsity/actor", callback._report.networks["actor"].sparsity) > 0.79


class Recorded(SparsityLogger):
    """Keeps what was logged at every rollout."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def _on_rollout_end(self):
        super()._on_rollout_end()
        self.bytes[self.num_timesteps] = self.logger.name_to_value["sparsity/bytes"]


def test_the_logger_sees_quantization_begin():
    model, recorded = make_model(DQN, policy_kwargs=dict(sparsity=0.5)), Recorded()
    model.learn(60, callback=[recorded, QuantizationAware(start=30)])
    before, after = ({value for t, value in recorded.bytes.items() if (t >= 30) == later} for later in (False, True))
    assert len(before) == len(after) == 1
    assert after.pop() < before.pop()
    # ... and other precisions of the same weights
    for layer in model.policy.sparsifier.layers.values():
        layer.set_quantizer(None)
    model.learn(60, callback=[recorded, QuantizationAware(start=0, input_bits="float")])
    assert recorded.bytes[60] == model_bytes(model)


def model_bytes(model):
    from sb3_sparse import sparsity_report

    return sparsity_report(model).online.bytes_with_indices


def test_the_logger_sees_positions_move():
    """The bytes of indices follow where weights are, once for every dump."""
    model = make_model(
        TD3, env=RandomEnv(n_inputs=40), policy_kwargs=dict(sparsity=0.99, distribution="uniform", net_arch=[200, 100])
    )
    recorded = Recorded()
    model.learn(60, callback=[recorded, SET(1, 0.9), Calls(lambda model: model.logger.dump(0), 58)], log_interval=None)
    first, last = recorded.bytes[min(recorded.bytes)], recorded.bytes[60]
    assert first != last
