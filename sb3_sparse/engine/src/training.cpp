#include "training.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "threads.h"

namespace engine {

// --- Batch ---

template <class T>
Batch<T>::Batch(int n_samples, int n_observations, int n_actions)
    : kernels(*engine::kernels<T>()),
      layout(kernels, n_samples),
      n_samples(n_samples),
      n_observations(n_observations),
      n_actions(n_actions) {
    for (auto* buffer : {&stored, &next, &chosen}) *buffer = store<T>().take(layout.size(n_inputs()));
    rewards.assign(size_t(layout.panels.n_panels) * layout.full_width, T(0));
    discounts.assign(rewards.size(), T(0));
}

template <class T>
Batch<T>::~Batch() {
    for (auto* buffer : {&stored, &next, &chosen}) store<T>().give(std::move(*buffer));
}

template <class T>
Drawn<T>::~Drawn() {
    for (auto* buffer : {&noise, &log_prob})
        if (buffer->data() != nullptr) store<T>().give(std::move(*buffer));
}

namespace {

template <class T, class From>
void put_rows(const From* from, const Rows2d& rows, int begin, int n_samples, int n_features, size_t width, T* to) {
    // Rows lie anywhere in a large buffer
    constexpr int ahead = 12;
    for (int sample = 0; sample < n_samples; ++sample) {
        if (rows.indices != nullptr && sample + ahead < n_samples) {
            const char* later = reinterpret_cast<const char*>(from + rows.indices[begin + sample + ahead] * rows.stride);
            for (size_t byte = 0; byte < n_features * sizeof(From); byte += 64) __builtin_prefetch(later + byte);
        }
        const From* row = from + (rows.indices != nullptr ? rows.indices[begin + sample] : begin + sample) * rows.stride;
        for (int feature = 0; feature < n_features; ++feature) to[feature * width + sample] = T(row[feature]);
    }
}

}  // namespace

template <class T>
bool Batch<T>::put(const Rows2d& rows, int first, int n_features, Buffer<T>& buffer) {
    bool finite = true;
    for (int p = 0; p < layout.panels.n_panels; ++p) {
        const size_t width = size_t(layout.vectors(p)) * layout.lanes;
        const int samples = layout.samples(p, n_samples), begin = p * layout.full_width;
        T* to = panel(buffer, p) + first * width;
        if (rows.is_double)
            put_rows(static_cast<const double*>(rows.data), rows, begin, samples, n_features, width, to);
        else
            put_rows(static_cast<const float*>(rows.data), rows, begin, samples, n_features, width, to);
        for (int feature = 0; feature < n_features; ++feature) std::fill(to + feature * width + samples, to + (feature + 1) * width, T(0));
        finite = finite && kernels.finite(n_features * width, to);
    }
    return finite;
}

template <class T>
bool Batch<T>::put_rewards(const float* reward, const float* done, const float* timeout, const int64_t* indices,
                           const float* sample_discounts, double discount) {
    T sum = 0;
    for (int sample = 0; sample < n_samples; ++sample) {
        const int64_t row = indices != nullptr ? indices[sample] : sample;
        const T ended = timeout != nullptr ? T(done[row] * (1 - timeout[row])) : T(done[row]);
        rewards[sample] = T(reward[row]);
        discounts[sample] = (T(1) - ended) * (sample_discounts != nullptr ? T(sample_discounts[sample]) : T(discount));
        sum += (rewards[sample] - rewards[sample]) + (discounts[sample] - discounts[sample]);
    }
    return sum == T(0);
}

// --- What all algorithms share ---

namespace {

template <class T>
void require(const Network<T>& network, int n_inputs, int n_outputs) {
    if (network.layers().front().n_inputs != n_inputs || (n_outputs > 0 && network.layers().back().n_outputs != n_outputs))
        throw std::invalid_argument("a network does not fit the batch");
}

// A tape whose input is a buffer of the batch
template <class T>
std::shared_ptr<Tape<T>> make_tape(const std::shared_ptr<Batch<T>>& batch, const Net<T>& network, Activations<T> input,
                                   std::shared_ptr<const void> holds) {
    auto tape = std::make_shared<Tape<T>>();
    tape->network = network, tape->kernels = &batch->kernels, tape->n_samples = batch->n_samples, tape->panels = batch->layout.panels;
    tape->input = input, tape->holds = std::move(holds);
    for (const Layer<T>& layer : network->layers()) tape->outputs.push_back(store<T>().take(batch->layout.size(layer.n_outputs)));
    return tape;
}

template <class T>
std::shared_ptr<Tape<T>> make_tape(const std::shared_ptr<Batch<T>>& batch, const Net<T>& network, const Buffer<T>& input) {
    return make_tape<T>(batch, network, {input.data(), batch->layout.stride(batch->n_inputs())}, batch);
}

template <class T>
std::shared_ptr<Deltas<T>> make_deltas(const Batch<T>& batch, const std::shared_ptr<Tape<T>>& tape) {
    auto deltas = std::make_shared<Deltas<T>>();
    deltas->tape = tape;
    for (const Layer<T>& layer : tape->network->layers()) deltas->layers.push_back(store<T>().take(batch.layout.size(layer.n_outputs)));
    tape->network->prepare_transposed();
    return deltas;
}

// One panel's part in the passes above
template <class T>
struct Part {
    const Batch<T>& batch;
    int panel, n_vectors, n_samples, begin;
    size_t width;

    Part(const Batch<T>& batch, int panel)
        : batch(batch),
          panel(panel),
          n_vectors(batch.layout.vectors(panel)),
          n_samples(batch.layout.samples(panel, batch.n_samples)),
          begin(panel * batch.layout.full_width),
          width(size_t(n_vectors) * batch.layout.lanes) {}

    T* of(const Buffer<T>& buffer, int features) const { return buffer.data() + panel * batch.layout.stride(features); }
    T* output(const Tape<T>& tape, size_t l) const { return of(tape.outputs[l], tape.network->layers()[l].n_outputs); }
    T* delta(const Deltas<T>& deltas, size_t l) const { return of(deltas.layers[l], deltas.tape->network->layers()[l].n_outputs); }
    T* top(const Deltas<T>& deltas) const { return delta(deltas, deltas.layers.size() - 1); }

    // Without a tape two layers are remembered: one to read and one to write, in turns
    const T* run(const Network<T>& network, const T* input, T* scratch, int widest) const {
        return forward_panel(batch.kernels, network, n_vectors, input, [&](size_t l) { return scratch + l % 2 * widest * width; });
    }
    const T* run(const Tape<T>& tape, const T* input) const {
        return forward_panel(batch.kernels, *tape.network, n_vectors, input, [&](size_t l) { return output(tape, l); });
    }
    void back(const Deltas<T>& deltas) const {
        backward_panel(
            batch.kernels, *deltas.tape->network, n_vectors, [&](size_t l) { return delta(deltas, l); },
            [&](size_t l) { return output(*deltas.tape, l); });
    }
    // The gradient of inputs from `first` on; `below` has room for all inputs. Returns the first of them
    const T* input_gradient(const Deltas<T>& deltas, int first, T* below) const {
        const Network<T>& network = *deltas.tape->network;
        batch.kernels.backward(network.inputs_from(first), network.transposed(0), kIdentity, n_vectors, delta(deltas, 0), nullptr, below);
        return below + first * width;
    }
    // Row-major [n_samples, n] of the whole batch into rows of this panel, zero where there is no sample
    void pack(const T* from, int n, T* to) const {
        batch.kernels.pack(from + ptrdiff_t(begin) * n, n, 1, n_samples, n, n_vectors, to);
    }
};

// Partial sums of panels, added in their order whoever computed them
double total(const std::vector<double>& parts) {
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum;
}

// The critics' loss: factor * sum over critics of the mean square distance from reward + discount * (smallest target - bonus).
// choose(part, actions, bonus): puts the next actions, [n_actions][width], and what is taken off the next values
template <class T, class Choose>
std::pair<double, Found<T>> update_critics(const std::shared_ptr<Batch<T>>& batch, const std::vector<Net<T>>& targets,
                                           const std::vector<Net<T>>& critics, double factor, int n_threads, const Choose& choose) {
    if (targets.empty() || critics.empty()) throw std::invalid_argument("at least one critic is needed");
    int most = 1;
    for (const auto* nets : {&targets, &critics})
        for (const Net<T>& net : *nets) require(*net, batch->n_inputs(), 1), most = std::max(most, widest(*net));
    Found<T> found;
    for (const Net<T>& critic : critics) found.push_back(make_deltas(*batch, make_tape(batch, critic, batch->stored)));
    std::vector<double> losses(batch->layout.panels.n_panels);
    parallel(batch->layout.panels.n_panels, n_threads, [&](int panel) {
        const Part<T> part(*batch, panel);
        const size_t width = part.width;
        const Loan<T> room((2 * size_t(most) + 2) * width);
        T *target = room.data(), *bonus = target + width, *scratch = bonus + width;
        T* next = batch->panel(batch->next, panel);
        std::fill(bonus, bonus + width, T(0));
        choose(part, next, bonus);
        for (size_t c = 0; c < targets.size(); ++c) {
            const T* q = part.run(*targets[c], next, scratch, most);
            for (size_t i = 0; i < width; ++i) target[i] = c == 0 || q[i] < target[i] || q[i] != q[i] ? q[i] : target[i];
        }
        const T *rewards = batch->rewards.data() + part.begin, *discounts = batch->discounts.data() + part.begin;
        for (size_t i = 0; i < width; ++i) target[i] = rewards[i] + discounts[i] * (target[i] - bonus[i]);
        const T slope = T(2 * factor / batch->n_samples);
        double loss = 0;
        for (const auto& deltas : found) {
            const T* q = part.run(*deltas->tape, batch->panel(batch->stored, panel));
            T* top = part.top(*deltas);
            for (int i = 0; i < part.n_samples; ++i) {
                const T distance = q[i] - target[i];
                loss += double(distance) * distance;
                top[i] = slope * distance;
            }
            std::fill(top + part.n_samples, top + width, T(0));
            part.back(*deltas);
        }
        losses[panel] = loss;
    });
    return {factor * total(losses) / batch->n_samples, std::move(found)};
}

}  // namespace

// --- TD3 ---

template <class T>
std::pair<double, Found<T>> td3_critics(const std::shared_ptr<Batch<T>>& batch, const Net<T>& actor_target,
                                        const std::vector<Net<T>>& targets, const std::vector<Net<T>>& critics, const T* noise,
                                        double noise_clip, int n_threads) {
    require(*actor_target, batch->n_observations, batch->n_actions);
    const int most = widest(*actor_target), n_actions = batch->n_actions;
    const T clip = T(noise_clip);
    return update_critics(batch, targets, critics, 1.0, n_threads, [&](const Part<T>& part, T* next, T*) {
        const Loan<T> room((2 * size_t(most) + n_actions) * part.width);
        T *drawn = room.data(), *scratch = drawn + n_actions * part.width;
        part.pack(noise, n_actions, drawn);
        const T* action = part.run(*actor_target, next, scratch, most);
        T* to = next + batch->n_observations * part.width;
        for (size_t i = 0; i < n_actions * part.width; ++i) {
            const T clipped = std::min(std::max(drawn[i], -clip), clip);
            to[i] = std::min(std::max(action[i] + clipped, T(-1)), T(1));
        }
    });
}

template <class T>
std::pair<double, Found<T>> td3_actor(const std::shared_ptr<Batch<T>>& batch, const Net<T>& actor, const Net<T>& critic,
                                      int n_threads) {
    require(*actor, batch->n_observations, batch->n_actions);
    require(*critic, batch->n_inputs(), 1);
    const auto acted = make_deltas(*batch, make_tape(batch, actor, batch->chosen));
    const auto judged = make_deltas(*batch, make_tape(batch, critic, batch->chosen));
    std::vector<double> losses(batch->layout.panels.n_panels);
    parallel(batch->layout.panels.n_panels, n_threads, [&](int panel) {
        const Part<T> part(*batch, panel);
        const size_t width = part.width, n_observed = batch->n_observations * width, n_chosen = batch->n_actions * width;
        T* input = batch->panel(batch->chosen, panel);
        std::memcpy(input, batch->panel(batch->stored, panel), n_observed * sizeof(T));
        std::memcpy(input + n_observed, part.run(*acted->tape, input), n_chosen * sizeof(T));
        const T* q = part.run(*judged->tape, input);
        double loss = 0;
        for (int i = 0; i < part.n_samples; ++i) loss -= q[i];
        losses[panel] = loss;
        T* top = part.top(*judged);
        std::fill(top, top + part.n_samples, T(-1) / T(batch->n_samples));
        std::fill(top + part.n_samples, top + width, T(0));
        part.back(*judged);
        const Loan<T> below(batch->n_inputs() * width);
        std::memcpy(part.top(*acted), part.input_gradient(*judged, batch->n_observations, below.data()), n_chosen * sizeof(T));
        part.back(*acted);
    });
    return {total(losses) / batch->n_samples, {acted, judged}};
}

// --- SAC ---

namespace {

template <class T>
void require_heads(const Batch<T>& batch, const Network<T>& body, const Network<T>& heads) {
    require(body, batch.n_observations, 0);
    if (heads.layers().size() != 2) throw std::invalid_argument("two heads are needed");
    for (const Layer<T>& head : heads.layers())
        if (head.n_inputs != body.layers().back().n_outputs || head.n_outputs != batch.n_actions || head.activation != kIdentity)
            throw std::invalid_argument("a head does not fit the network before it");
}

// Actions of all dimensions; log_prob is added to
template <class T>
void squash_all(const Part<T>& part, const T* mean, const T* log_std, const T* noise, T* actions, T* log_prob) {
    for (int a = 0; a < part.batch.n_actions; ++a) {
        const size_t at = a * part.width;
        part.batch.kernels.squash(part.width, mean + at, log_std + at, noise + at, actions + at, log_prob);
    }
}

}  // namespace

template <class T>
std::pair<double, std::shared_ptr<Drawn<T>>> sac_draw(const std::shared_ptr<Batch<T>>& batch, const Net<T>& body, const Net<T>& heads,
                                                      const T* noise, int n_threads) {
    require_heads(*batch, *body, *heads);
    auto drawn = std::make_shared<Drawn<T>>();
    drawn->body = make_tape(batch, body, batch->chosen);
    const int n_latent = body->layers().back().n_outputs;
    drawn->heads = make_tape<T>(batch, heads, {drawn->body->outputs.back().data(), batch->layout.stride(n_latent)}, drawn->body);
    drawn->noise = store<T>().take(batch->layout.size(batch->n_actions));
    drawn->log_prob = store<T>().take(batch->layout.size(1));
    std::vector<double> sums(batch->layout.panels.n_panels);
    parallel(batch->layout.panels.n_panels, n_threads, [&](int panel) {
        const Part<T> part(*batch, panel);
        T* input = batch->panel(batch->chosen, panel);
        T* of_panel = part.of(drawn->noise, batch->n_actions);
        std::memcpy(input, batch->panel(batch->stored, panel), batch->n_observations * part.width * sizeof(T));
        part.pack(noise, batch->n_actions, of_panel);
        const T* latent = part.run(*drawn->body, input);
        for (size_t l = 0; l < 2; ++l) forward_layer(batch->kernels, *heads, l, part.n_vectors, latent, part.output(*drawn->heads, l));
        T* log_prob = part.of(drawn->log_prob, 1);
        std::fill(log_prob, log_prob + part.width, T(0));
        squash_all(part, part.output(*drawn->heads, 0), part.output(*drawn->heads, 1), of_panel,
                   input + batch->n_observations * part.width, log_prob);
        double sum = 0;
        for (int i = 0; i < part.n_samples; ++i) sum += log_prob[i];
        sums[panel] = sum;
    });
    return {total(sums) / batch->n_samples, drawn};
}

template <class T>
std::pair<double, Found<T>> sac_critics(const std::shared_ptr<Batch<T>>& batch, const Net<T>& body, const Net<T>& heads,
                                        const std::vector<Net<T>>& targets, const std::vector<Net<T>>& critics, const T* noise,
                                        double entropy_coefficient, int n_threads) {
    require_heads(*batch, *body, *heads);
    const int most = widest(*body), n_actions = batch->n_actions;
    const T coefficient = T(entropy_coefficient);
    return update_critics(batch, targets, critics, 0.5, n_threads, [&](const Part<T>& part, T* next, T* bonus) {
        const Loan<T> room((2 * size_t(most) + 3 * n_actions) * part.width);
        T *drawn = room.data(), *mean = drawn + n_actions * part.width, *log_std = mean + n_actions * part.width;
        part.pack(noise, n_actions, drawn);
        const T* latent = part.run(*body, next, log_std + n_actions * part.width, most);
        forward_layer(part.batch.kernels, *heads, 0, part.n_vectors, latent, mean);
        forward_layer(part.batch.kernels, *heads, 1, part.n_vectors, latent, log_std);
        squash_all(part, mean, log_std, drawn, next + batch->n_observations * part.width, bonus);
        for (size_t i = 0; i < part.width; ++i) bonus[i] *= coefficient;
    });
}

template <class T>
std::pair<double, Found<T>> sac_actor(const std::shared_ptr<Batch<T>>& batch, const Drawn<T>& drawn, const std::vector<Net<T>>& critics,
                                      double entropy_coefficient, int n_threads) {
    const Tape<T>& body = *drawn.body;
    const Network<T>& heads = *drawn.heads->network;
    const int n_latent = body.network->layers().back().n_outputs, n_actions = batch->n_actions;
    const auto of_body = make_deltas(*batch, drawn.body);
    const auto of_heads = make_deltas(*batch, drawn.heads);
    of_heads->side_by_side = true;
    Found<T> found{of_body, of_heads};
    for (const Net<T>& critic : critics) {
        require(*critic, batch->n_inputs(), 1);
        found.push_back(make_deltas(*batch, make_tape(batch, critic, batch->chosen)));
    }
    std::vector<double> losses(batch->layout.panels.n_panels);
    parallel(batch->layout.panels.n_panels, n_threads, [&](int panel) {
        const Part<T> part(*batch, panel);
        const size_t width = part.width;
        const Loan<T> room((batch->n_inputs() + n_actions + n_latent + 1) * width);
        T *smallest = room.data(), *d_action = smallest + width, *below = d_action + n_actions * width, *other = below + batch->n_inputs() * width;
        std::vector<int> which(width, 0);
        const T* input = batch->panel(batch->chosen, panel);
        for (size_t c = 0; c < critics.size(); ++c) {
            const T* q = part.run(*found[2 + c]->tape, input);
            for (size_t i = 0; i < width; ++i)
                if (c == 0 || q[i] < smallest[i] || q[i] != q[i]) smallest[i] = q[i], which[i] = int(c);
        }
        const T* log_prob = part.of(drawn.log_prob, 1);
        double loss = 0;
        for (int i = 0; i < part.n_samples; ++i) loss += T(entropy_coefficient) * log_prob[i] - smallest[i];
        losses[panel] = loss;
        std::fill(d_action, d_action + n_actions * width, T(0));
        for (size_t c = 0; c < critics.size(); ++c) {
            const Deltas<T>& deltas = *found[2 + c];
            T* top = part.top(deltas);
            for (size_t i = 0; i < width; ++i)
                top[i] = int(i) < part.n_samples && which[i] == int(c) ? T(-1) / T(batch->n_samples) : T(0);
            part.back(deltas);
            const T* gradient = part.input_gradient(deltas, batch->n_observations, below);
            for (size_t i = 0; i < n_actions * width; ++i) d_action[i] += gradient[i];
        }
        for (int a = 0; a < n_actions; ++a) {
            const size_t at = a * width;
            T *d_mean = part.delta(*of_heads, 0) + at, *d_log_std = part.delta(*of_heads, 1) + at;
            batch->kernels.squash_gradient(width, part.output(*drawn.heads, 1) + at, part.of(drawn.noise, n_actions) + at,
                                           input + batch->n_observations * width + at, d_action + at,
                                           entropy_coefficient / batch->n_samples, d_mean, d_log_std);
            for (T* delta : {d_mean, d_log_std}) std::fill(delta + part.n_samples, delta + width, T(0));
        }
        T* latent = part.top(*of_body);
        batch->kernels.backward(heads.layers()[0].backward.rows(), heads.transposed(0), kIdentity, part.n_vectors, part.delta(*of_heads, 0),
                                nullptr, latent);
        batch->kernels.backward(heads.layers()[1].backward.rows(), heads.transposed(1), kIdentity, part.n_vectors, part.delta(*of_heads, 1),
                                nullptr, other);
        for (size_t i = 0; i < n_latent * width; ++i) latent[i] += other[i];
        part.back(*of_body);
    });
    return {total(losses) / batch->n_samples, std::move(found)};
}

// --- DQN ---

template <class T>
std::pair<double, Found<T>> dqn(const std::shared_ptr<Batch<T>>& batch, const Net<T>& network, const Net<T>& target, const int64_t* actions,
                                int n_threads) {
    const int n_values = network->layers().back().n_outputs;
    require(*network, batch->n_observations, 0);
    require(*target, batch->n_observations, n_values);
    for (int sample = 0; sample < batch->n_samples; ++sample)
        if (actions[sample] < 0 || actions[sample] >= n_values) throw std::out_of_range("there is no such action");
    const int most = widest(*target);
    const auto deltas = make_deltas(*batch, make_tape(batch, network, batch->stored));
    std::vector<double> losses(batch->layout.panels.n_panels);
    parallel(batch->layout.panels.n_panels, n_threads, [&](int panel) {
        const Part<T> part(*batch, panel);
        const size_t width = part.width;
        const Loan<T> room((2 * size_t(most) + 1) * width);
        T *best = room.data(), *scratch = best + width;
        const T* next = part.run(*target, batch->panel(batch->next, panel), scratch, most);
        std::memcpy(best, next, width * sizeof(T));
        for (int a = 1; a < n_values; ++a)
            for (size_t i = 0; i < width; ++i) {
                const T value = next[a * width + i];
                best[i] = value > best[i] || value != value ? value : best[i];
            }
        const T* q = part.run(*deltas->tape, batch->panel(batch->stored, panel));
        T* top = part.top(*deltas);
        std::fill(top, top + n_values * width, T(0));
        double loss = 0;
        for (int i = 0; i < part.n_samples; ++i) {
            const size_t at = actions[part.begin + i] * width + i;
            const T distance = q[at] - (batch->rewards[part.begin + i] + batch->discounts[part.begin + i] * best[i]);
            const T size = std::abs(distance);
            loss += size < T(1) ? T(0.5) * distance * distance : size - T(0.5);
            top[at] = (size < T(1) ? distance : std::copysign(T(1), distance)) / T(batch->n_samples);
            if (distance != distance) top[at] = distance;
        }
        losses[panel] = loss;
        part.back(*deltas);
    });
    return {total(losses) / batch->n_samples, {deltas}};
}

#define INSTANTIATE(T)                                                                                                              \
    template class Batch<T>;                                                                                                        \
    template struct Drawn<T>;                                                                                                       \
    template std::pair<double, Found<T>> td3_critics<T>(const std::shared_ptr<Batch<T>>&, const Net<T>&, const std::vector<Net<T>>&, \
                                                        const std::vector<Net<T>>&, const T*, double, int);                         \
    template std::pair<double, Found<T>> td3_actor<T>(const std::shared_ptr<Batch<T>>&, const Net<T>&, const Net<T>&, int);         \
    template std::pair<double, std::shared_ptr<Drawn<T>>> sac_draw<T>(const std::shared_ptr<Batch<T>>&, const Net<T>&, const Net<T>&, \
                                                                      const T*, int);                                               \
    template std::pair<double, Found<T>> sac_critics<T>(const std::shared_ptr<Batch<T>>&, const Net<T>&, const Net<T>&,             \
                                                        const std::vector<Net<T>>&, const std::vector<Net<T>>&, const T*, double, int); \
    template std::pair<double, Found<T>> sac_actor<T>(const std::shared_ptr<Batch<T>>&, const Drawn<T>&, const std::vector<Net<T>>&, \
                                                      double, int);                                                                 \
    template std::pair<double, Found<T>> dqn<T>(const std::shared_ptr<Batch<T>>&, const Net<T>&, const Net<T>&, const int64_t*, int);
INSTANTIATE(float)

}  // namespace engine
