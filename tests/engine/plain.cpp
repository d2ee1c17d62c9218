// The kernels without Python, for machines that are emulated: random networks against loops that anybody can read.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "network.h"
#include "settle.h"
#include "training.h"

using namespace engine;

namespace {

std::mt19937 generator(1);
double uniform() { return std::uniform_real_distribution<double>(-1, 1)(generator); }
int between(int low, int high) { return low + int(generator() % unsigned(high - low + 1)); }

void check(bool holds, const char* what) {
    if (holds) return;
    std::printf("wrong: %s\n", what);
    std::exit(1);
}
template <class T>
void check_close(T found, double expected, const char* what) {
    check(std::abs(double(found) - expected) <= (sizeof(T) == 4 ? 2e-4 : 1e-9) * (1 + std::abs(expected)), what);
}

// A chain of layers as dense matrices, and the network that is made of them
template <class T>
struct Chain {
    std::vector<std::vector<double>> weights, biases;
    std::vector<std::vector<uint8_t>> masks;
    std::vector<int> widths, activations;
    std::shared_ptr<Network<T>> network;

    Chain(std::vector<int> sizes, int last) : widths(std::move(sizes)) {
        std::vector<LayerShape> shapes;
        for (size_t l = 0; l + 1 < widths.size(); ++l) {
            const int n = widths[l + 1] * widths[l];
            const double density = std::vector<double>{0.1, 0.5, 1.0}[generator() % 3];
            masks.emplace_back(n), weights.emplace_back(n), biases.emplace_back(widths[l + 1]);
            for (int i = 0; i < n; ++i) masks[l][i] = std::abs(uniform()) < density, weights[l][i] = masks[l][i] ? uniform() : 0;
            for (double& bias : biases[l]) bias = uniform();
            activations.push_back(l + 2 < widths.size() ? kReLU : last);
        }
        for (size_t l = 0; l + 1 < widths.size(); ++l)
            shapes.push_back({masks[l].data(), widths[l + 1], widths[l], true, activations[l]});
        network = std::make_shared<Network<T>>(shapes);
        for (size_t l = 0; l < network->layers().size(); ++l) {
            const Layer<T>& layer = network->layers()[l];
            for (size_t i = 0; i < layer.n_values(); ++i) network->values[layer.values + i] = T(weights[l][layer.position[i]]);
            for (int i = 0; i < layer.n_outputs; ++i) network->values[layer.bias + i] = T(biases[l][i]);
        }
        network->touch();
    }
    // Activations of one sample, input first
    std::vector<std::vector<double>> run(std::vector<double> x) const {
        std::vector<std::vector<double>> all{std::move(x)};
        for (size_t l = 0; l < weights.size(); ++l) {
            std::vector<double> y(widths[l + 1]);
            for (int o = 0; o < widths[l + 1]; ++o) {
                y[o] = biases[l][o];
                for (int i = 0; i < widths[l]; ++i) y[o] += weights[l][o * widths[l] + i] * all[l][i];
                if (activations[l] == kReLU) y[o] = std::max(y[o], 0.0);
                if (activations[l] == kTanh) y[o] = std::tanh(y[o]);
            }
            all.push_back(y);
        }
        return all;
    }
};

template <class T>
void passes() {
    const int n_samples = between(1, 90);
    std::vector<int> widths{between(1, 40)};
    for (int n = between(1, 3); n > 0; --n) widths.push_back(between(1, 40));
    const Chain<T> chain(widths, between(0, 2));
    const int n_inputs = widths.front(), n_outputs = widths.back(), n_threads = between(1, 3);
    std::vector<T> x(n_samples * n_inputs), y(n_samples * n_outputs), dy(y.size()), dx(x.size());
    for (T& value : x) value = T(uniform());
    for (T& value : dy) value = T(uniform());
    auto tape = std::make_shared<Tape<T>>();
    check(run_forward<T>(chain.network, {x.data(), n_inputs, 1}, n_samples, {y.data(), n_outputs, 1}, n_threads, tape.get()), "finite");
    auto deltas = std::make_shared<Deltas<T>>();
    deltas->tape = tape;
    run_backward<T>(deltas.get(), {dy.data(), n_outputs, 1}, {dx.data(), n_inputs, 1}, n_threads);
    weight_gradient<T>(*deltas, false, n_threads);
    std::vector<std::vector<double>> expected;
    for (const auto& weight : chain.weights) expected.emplace_back(weight.size());
    for (int sample = 0; sample < n_samples; ++sample) {
        const auto all = chain.run({x.begin() + sample * n_inputs, x.begin() + (sample + 1) * n_inputs});
        for (int o = 0; o < n_outputs; ++o) check_close(y[sample * n_outputs + o], all.back()[o], "forward");
        std::vector<double> delta(dy.begin() + sample * n_outputs, dy.begin() + (sample + 1) * n_outputs);
        for (size_t l = chain.weights.size(); l-- > 0;) {
            std::vector<double> below(widths[l]);
            for (int o = 0; o < widths[l + 1]; ++o) {
                const double out = all[l + 1][o];
                if (chain.activations[l] == kReLU) delta[o] = out > 0 ? delta[o] : 0;
                if (chain.activations[l] == kTanh) delta[o] *= 1 - out * out;
                for (int i = 0; i < widths[l]; ++i) {
                    expected[l][o * widths[l] + i] += delta[o] * all[l][i];
                    below[i] += delta[o] * chain.weights[l][o * widths[l] + i];
                }
            }
            delta = below;
        }
        for (int i = 0; i < n_inputs; ++i) check_close(dx[sample * n_inputs + i], delta[i], "input gradient");
    }
    for (size_t l = 0; l < chain.weights.size(); ++l) {
        const Layer<T>& layer = chain.network->layers()[l];
        for (size_t i = 0; i < layer.n_values(); ++i)
            check_close(chain.network->gradient[layer.values + i], expected[l][layer.position[i]], "weight gradient");
    }
}

// The losses of gradient steps: the rest of a step is made of the passes above
void losses() {
    const int n = between(1, 90), n_observations = between(1, 12), n_actions = between(1, 4);
    auto batch = std::make_shared<Batch<float>>(n, n_observations, n_actions);
    std::vector<float> now(n * n_observations), next(now.size()), actions(n * n_actions), noise(actions.size()), rewards(n), dones(n);
    for (auto* array : {&now, &next, &actions, &noise, &rewards})
        for (float& value : *array) value = float(uniform());
    for (float& done : dones) done = float(generator() % 2);
    check(batch->put_observations({now.data(), false, n_observations, nullptr}), "observations");
    check(batch->put_next_observations({next.data(), false, n_observations, nullptr}), "next observations");
    check(batch->put_actions({actions.data(), false, n_actions, nullptr}), "actions");
    check(batch->put_rewards(rewards.data(), dones.data(), nullptr, nullptr, nullptr, 0.9), "rewards");
    const int n_inputs = n_observations + n_actions;
    const Chain<float> actor({n_observations, 17, n_actions}, kTanh), critic({n_inputs, 19, 1}, kIdentity), target({n_inputs, 19, 1}, kIdentity);
    double of_critic = 0, of_actor = 0;
    for (int s = 0; s < n; ++s) {
        const auto part = [&](const std::vector<float>& array, int width) {
            return std::vector<double>(array.begin() + s * width, array.begin() + (s + 1) * width);
        };
        const auto joined = [](std::vector<double> one, const std::vector<double>& other) {
            one.insert(one.end(), other.begin(), other.end());
            return one;
        };
        std::vector<double> chosen = actor.run(part(next, n_observations)).back();
        for (int a = 0; a < n_actions; ++a)
            chosen[a] = std::min(std::max(chosen[a] + std::min(std::max(double(noise[s * n_actions + a]), -0.5), 0.5), -1.0), 1.0);
        const double value = rewards[s] + (1 - dones[s]) * 0.9 * target.run(joined(part(next, n_observations), chosen)).back()[0];
        const double distance = critic.run(joined(part(now, n_observations), part(actions, n_actions))).back()[0] - value;
        of_critic += distance * distance / n;
        of_actor -= critic.run(joined(part(now, n_observations), actor.run(part(now, n_observations)).back())).back()[0] / n;
    }
    check_close(float(td3_critics<float>(batch, actor.network, {target.network}, {critic.network}, noise.data(), 0.5, 2).first), of_critic,
                "loss of the critic");
    check_close(float(td3_actor<float>(batch, actor.network, critic.network, 2).first), of_actor, "loss of the actor");
}

}  // namespace

// A weight on its largest values, one after the other
template <class T>
void settles() {
    const int size = between(2, 300), n_kept = between(1, size - 1);
    std::vector<T> weight(size), numbers(size, T(0));
    std::vector<uint8_t> mask(size, 0), kept(size, 0);
    for (int i = 0; i < n_kept; ++i) mask[i] = 1, numbers[i] = T(1);
    for (T& w : weight) w = generator() % 2 ? T(between(-3, 3)) : T(uniform());
    weight[size - 1] = T(between(1, 3));
    const std::vector<T> before = weight;
    for (int n = 0; n < n_kept; ++n) {
        int best = -1;
        double largest = -1;
        for (int i = 0; i < size; ++i) {
            const double score = mask[i] ? std::max(std::abs(double(before[i])), 1e-37) : std::abs(double(before[i]));
            if (!kept[i] && score > largest) best = i, largest = score;
        }
        kept[best] = 1;
    }
    check(settle<T>(size, n_kept, weight.data(), mask.data(), numbers.data()) == Settled::kNow, "what settles");
    for (int i = 0; i < size; ++i) {
        check(mask[i] == kept[i] && numbers[i] == T(kept[i]), "the mask a weight settles on");
        check(weight[i] == (kept[i] ? before[i] : T(0)), "the values a weight settles on");
    }
    check(settle<T>(size, n_kept, weight.data(), mask.data(), numbers.data()) == Settled::kAlready, "what has settled");
}

int main() {
    for (int round = 0; round < 40; ++round) passes<float>(), passes<double>(), losses(), settles<float>(), settles<double>();
    std::printf("clean\n");
}
