// The module sb3_sparse.engine._native. Tensors come as addresses: nothing here knows torch, and torch knows nothing of it.
// Whoever calls keeps the memory alive and has checked shape, dtype and device.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

#include "network.h"
#include "settle.h"
#include "training.h"

namespace py = pybind11;
using namespace engine;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// A network and the dense tensors that its values are read from and written to
template <class T>
struct TensorNetwork {
    std::shared_ptr<Network<T>> network;
    std::vector<T*> weights, biases;

    // shapes: (address of the mask, outputs, inputs, activation); dense: addresses of weight and bias, 0 for no bias
    TensorNetwork(const std::vector<std::tuple<Address, int, int, int>>& shapes, const std::vector<std::pair<Address, Address>>& dense) {
        if (shapes.empty() || shapes.size() != dense.size()) throw py::value_error("as many dense tensors as layers are needed");
        std::vector<LayerShape> layers;
        for (size_t l = 0; l < shapes.size(); ++l) {
            const auto& [mask, n_outputs, n_inputs, activation] = shapes[l];
            layers.push_back({at<const uint8_t>(mask), n_outputs, n_inputs, dense[l].second != 0, activation});
            weights.push_back(at<T>(dense[l].first));
            biases.push_back(at<T>(dense[l].second));
        }
        py::gil_scoped_release release;
        network = std::make_shared<Network<T>>(layers);
    }

    void gather(size_t l, const T* weight, const T* bias, std::vector<T>& to) const {
        const Layer<T>& layer = network->layers()[l];
        if (weight != nullptr)
            for (size_t i = 0; i < layer.n_values(); ++i) to[layer.values + i] = weight[layer.position[i]];
        if (bias != nullptr) std::copy(bias, bias + layer.n_outputs, to.data() + layer.bias);
    }
    void scatter(size_t l, const std::vector<T>& from, T* weight, T* bias) const {
        const Layer<T>& layer = network->layers()[l];
        if (weight != nullptr)
            for (size_t i = 0; i < layer.n_values(); ++i) weight[layer.position[i]] = from[layer.values + i];
        if (bias != nullptr) std::copy_n(from.data() + layer.bias, layer.n_outputs, bias);
    }
    // visit(layer, weight, bias or null) for dense tensors as `parameters()` lists them: a weight, and its bias if there is one.
    // Address 0 leaves a tensor out
    template <class Visit>
    void each(const std::vector<Address>& dense, const Visit& visit) const {
        size_t i = 0, expected = 0;
        for (const Layer<T>& layer : network->layers()) expected += layer.has_bias ? 2 : 1;
        if (dense.size() != expected) throw py::value_error("one tensor for each parameter is needed");
        for (size_t l = 0; l < network->layers().size(); ++l) {
            T* weight = at<T>(dense[i++]);
            visit(l, weight, network->layers()[l].has_bias ? at<T>(dense[i++]) : nullptr);
        }
    }
    void gather_all(const std::vector<Address>& from, std::vector<T>& to) const {
        each(from, [&](size_t l, const T* weight, const T* bias) { gather(l, weight, bias, to); });
    }
    void scatter_all(const std::vector<T>& from, const std::vector<Address>& to) const {
        each(to, [&](size_t l, T* weight, T* bias) { scatter(l, from, weight, bias); });
    }
    // Whether every other weight of the layer is zero
    bool gather_weight(size_t l) {
        const Layer<T>& layer = network->layers().at(l);
        const T* weight = weights[l];
        gather(l, weight, nullptr, network->values);
        network->touch();
        size_t there = 0, among_survivors = 0;
        const size_t size = size_t(layer.n_outputs) * layer.n_inputs;
        for (size_t i = 0; i < size; ++i) there += weight[i] != T(0);
        const T* values = network->values.data() + layer.values;
        for (size_t i = 0; i < layer.n_values(); ++i) among_survivors += values[i] != T(0);
        return there == among_survivors;
    }
    void gather_biases() {
        for (size_t l = 0; l < biases.size(); ++l) gather(l, nullptr, biases[l], network->values);
    }
    std::vector<T>& moments(bool second) { return second ? network->square : network->mean; }
    // A view of one of the network's arrays, which live as long as it does
    static py::array view(std::vector<T>& array, const py::object& owner) {
        return py::array_t<T>(py::ssize_t(array.size()), array.data(), owner);
    }
    void adam_values(const AdamStep& step) {
        kernels<T>()->adam_values(network->size(), step, network->mean.data(), network->root.data(), network->values.data());
        network->touch();
    }
    void scatter_weight(size_t l) { scatter(l, network->values, weights.at(l), nullptr); }
    void scatter_values() {
        for (size_t l = 0; l < weights.size(); ++l) scatter(l, network->values, weights[l], biases[l]);
    }
    std::pair<T*, size_t> slice(size_t l) const {
        const Layer<T>& layer = network->layers().at(l);
        return {network->values.data() + layer.values, layer.n_values()};
    }
};

// own = keep * own + tau * other, each rounded as torch's mul_ and add do
template <class T>
void mix(size_t n, double keep, double tau, const T* other, T* own) {
    kernels<T>()->scale(n, keep, own);
    kernels<T>()->add(n, tau, other, own);
}

// The tape, if there is to be one, and whether all inputs and outputs are finite
template <class T>
std::pair<std::shared_ptr<Tape<T>>, bool> forward(TensorNetwork<T>& network, Address x, int n_samples, ptrdiff_t row_stride,
                                                  ptrdiff_t column_stride, Address y, int n_threads, bool record) {
    if (n_samples < 1) throw py::value_error("at least one sample is needed");
    py::gil_scoped_release release;
    network.gather_biases();
    auto tape = record ? std::make_shared<Tape<T>>() : nullptr;
    const bool finite = run_forward<T>(network.network, {at<const T>(x), row_stride, column_stride}, n_samples,
                                       {at<T>(y), network.network->layers().back().n_outputs, 1}, n_threads, tape.get());
    return {tape, finite};
}

// dx: address of a row-major [n_samples, inputs], or 0
template <class T>
std::shared_ptr<Deltas<T>> backward(const std::shared_ptr<Tape<T>>& tape, Address dy, ptrdiff_t row_stride, ptrdiff_t column_stride,
                                    Address dx, int n_threads) {
    py::gil_scoped_release release;
    auto deltas = std::make_shared<Deltas<T>>();
    deltas->tape = tape;
    run_backward<T>(deltas.get(), {at<const T>(dy), row_stride, column_stride}, {at<T>(dx), tape->network->layers()[0].n_inputs, 1},
                    n_threads);
    return deltas;
}

// --- Gradient steps, single precision alone ---

using Nets = std::vector<TensorNetwork<float>*>;
using Transitions = std::shared_ptr<Batch<float>>;

Net<float> fresh(TensorNetwork<float>& network) {
    network.gather_biases();
    return network.network;
}
std::vector<Net<float>> fresh(const Nets& networks) {
    std::vector<Net<float>> all;
    for (TensorNetwork<float>* network : networks) all.push_back(fresh(*network));
    return all;
}
Rows2d rows(Address data, bool is_double, ptrdiff_t stride, Address indices) {
    return {at<const void>(data), is_double, stride, at<const int64_t>(indices)};
}

void bind_training(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    using B = Batch<float>;
    py::class_<B, Transitions>(module, "Batch")
        .def(py::init([](int n_samples, int n_observations, int n_actions) {
            if (n_samples < 1 || n_observations < 1 || n_actions < 0) throw py::value_error("a batch needs samples and observations");
            return std::make_shared<B>(n_samples, n_observations, n_actions);
        }))
        // Everything that is put: address, whether it is double, values from row to row, address of int64 row numbers or 0
        .def("put_observations", [](B& b, Address d, bool f, ptrdiff_t s, Address i) { return b.put_observations(rows(d, f, s, i)); }, NoGil())
        .def("put_next_observations", [](B& b, Address d, bool f, ptrdiff_t s, Address i) { return b.put_next_observations(rows(d, f, s, i)); },
             NoGil())
        .def("put_actions", [](B& b, Address d, bool f, ptrdiff_t s, Address i) { return b.put_actions(rows(d, f, s, i)); }, NoGil())
        .def("put_rewards",
             [](B& b, Address reward, Address done, Address timeout, Address indices, Address discounts, double discount) {
                 return b.put_rewards(at<const float>(reward), at<const float>(done), at<const float>(timeout), at<const int64_t>(indices),
                                      at<const float>(discounts), discount);
             }, NoGil());
    py::class_<Drawn<float>, std::shared_ptr<Drawn<float>>>(module, "Drawn");
    module.def("td3_critics", [](const Transitions& batch, TensorNetwork<float>& actor_target, const Nets& targets, const Nets& critics,
                                 Address noise, double noise_clip, int n_threads) {
        return td3_critics<float>(batch, fresh(actor_target), fresh(targets), fresh(critics), at<const float>(noise), noise_clip, n_threads);
    }, NoGil());
    module.def("td3_actor", [](const Transitions& batch, TensorNetwork<float>& actor, TensorNetwork<float>& critic, int n_threads) {
        return td3_actor<float>(batch, fresh(actor), fresh(critic), n_threads);
    }, NoGil());
    module.def("sac_draw", [](const Transitions& batch, TensorNetwork<float>& body, TensorNetwork<float>& heads, Address noise, int n_threads) {
        return sac_draw<float>(batch, fresh(body), fresh(heads), at<const float>(noise), n_threads);
    }, NoGil());
    module.def("sac_critics", [](const Transitions& batch, TensorNetwork<float>& body, TensorNetwork<float>& heads, const Nets& targets,
                                 const Nets& critics, Address noise, double entropy_coefficient, int n_threads) {
        return sac_critics<float>(batch, fresh(body), fresh(heads), fresh(targets), fresh(critics), at<const float>(noise),
                                  entropy_coefficient, n_threads);
    }, NoGil());
    module.def("sac_actor", [](const Transitions& batch, const Drawn<float>& drawn, const Nets& critics, double entropy_coefficient,
                               int n_threads) {
        return sac_actor<float>(batch, drawn, fresh(critics), entropy_coefficient, n_threads);
    }, NoGil());
    module.def("dqn", [](const Transitions& batch, TensorNetwork<float>& network, TensorNetwork<float>& target, Address actions, int n_threads) {
        return dqn<float>(batch, fresh(network), fresh(target), at<const int64_t>(actions), n_threads);
    }, NoGil());
}

template <class T>
void bind(py::module_& module, const std::string& suffix) {
    using M = TensorNetwork<T>;
    using NoGil = py::call_guard<py::gil_scoped_release>;
    py::class_<Tape<T>, std::shared_ptr<Tape<T>>>(module, ("Tape" + suffix).c_str())
        // address of a row-major [n_samples, outputs of the layer]
        .def("output", [](const Tape<T>& tape, size_t layer, Address to) {
            read_output<T>(tape, layer, {at<T>(to), tape.network->layers().at(layer).n_outputs, 1});
        }, NoGil());
    py::class_<Deltas<T>, std::shared_ptr<Deltas<T>>>(module, ("Deltas" + suffix).c_str())
        .def("weight_gradient", [](const Deltas<T>& deltas, bool accumulate, int n_threads) {
            weight_gradient<T>(deltas, accumulate, n_threads);
        }, NoGil());
    py::class_<M>(module, ("Network" + suffix).c_str())
        .def(py::init<const std::vector<std::tuple<Address, int, int, int>>&, const std::vector<std::pair<Address, Address>>&>())
        .def("gather_weight", &M::gather_weight, NoGil())
        .def("scatter_weight", &M::scatter_weight, NoGil())
        .def("scatter_values", &M::scatter_values, NoGil())
        .def("gather_gradients", [](M& m, const std::vector<Address>& dense) { m.gather_all(dense, m.network->gradient); }, NoGil())
        .def("scatter_gradients",
             [](const M& m, const std::vector<Address>& dense) { m.scatter_all(m.network->gradient, dense); }, NoGil())
        .def("gather_moments",
             [](M& m, bool second, const std::vector<Address>& dense) { m.gather_all(dense, m.moments(second)); }, NoGil())
        .def("scatter_moments",
             [](M& m, bool second, const std::vector<Address>& dense) { m.scatter_all(m.moments(second), dense); }, NoGil())
        .def("roots", [](py::object self) {
            Network<T>& network = *self.cast<M&>().network;
            return py::make_tuple(M::view(network.square, self), M::view(network.root, self));
        })
        .def("adam_moments",
             [](M& m, double beta1, double beta2, double weight_decay) {
                 Network<T>& network = *m.network;
                 m.gather_biases();
                 kernels<T>()->adam_moments(network.size(), {1 - beta1, beta2, 1 - beta2, 0, 0, 0, weight_decay}, network.values.data(),
                                            network.gradient.data(), network.mean.data(), network.square.data());
             }, NoGil())
        .def("adam_values",
             [](M& m, double step_size, double bias_correction2_sqrt, double epsilon) {
                 m.adam_values({0, 0, 0, -step_size, bias_correction2_sqrt, epsilon, 0});
             }, NoGil())
        .def("adam",
             [](M& m, double beta1, double beta2, double weight_decay, double step_size, double bias_correction2_sqrt, double epsilon) {
                 Network<T>& network = *m.network;
                 m.gather_biases();
                 kernels<T>()->adam(network.size(), {1 - beta1, beta2, 1 - beta2, -step_size, bias_correction2_sqrt, epsilon, weight_decay},
                                    network.gradient.data(), network.mean.data(), network.square.data(), network.values.data());
                 network.touch();
                 m.scatter_values();
             }, NoGil())
        // The values of a layer
        .def("average", [](M& m, size_t l, double keep, double tau, const M& online, size_t online_layer) {
            const auto [values, n] = m.slice(l);
            const auto [other, n_other] = online.slice(online_layer);
            if (n != n_other) throw py::value_error("the two layers differ");
            mix(n, keep, tau, other, values);
            m.network->touch();
        }, NoGil())
        // All values and biases, the dense ones too
        .def("average_all", [](M& m, double keep, double tau, M& online) {
            if (m.network->size() != online.network->size()) throw py::value_error("the two networks differ");
            m.gather_biases();
            online.gather_biases();
            mix(m.network->size(), keep, tau, online.network->values.data(), m.network->values.data());
            m.network->touch();
            m.scatter_values();
        }, NoGil())
        // The dense tensors, whichever weights survive; the network's values are to be gathered anew
        .def("average_dense", [](M& m, double keep, double tau, const M& online) {
            const auto& layers = m.network->layers();
            if (layers.size() != online.network->layers().size()) throw py::value_error("the two networks differ");
            for (size_t l = 0; l < layers.size(); ++l) {
                const Layer<T>& other = online.network->layers()[l];
                if (layers[l].n_outputs != other.n_outputs || layers[l].n_inputs != other.n_inputs || layers[l].has_bias != other.has_bias)
                    throw py::value_error("the two networks differ");
            }
            for (size_t l = 0; l < layers.size(); ++l) {
                mix(size_t(layers[l].n_outputs) * layers[l].n_inputs, keep, tau, online.weights[l], m.weights[l]);
                if (layers[l].has_bias) mix(layers[l].n_outputs, keep, tau, online.biases[l], m.biases[l]);
            }
        }, NoGil())
        .def("gradient_norm", [](const M& m) {
            double sum = 0;
            for (const T g : m.network->gradient) sum += double(g) * g;
            return std::sqrt(sum);
        }, NoGil())
        .def("scale_gradient", [](M& m, double factor) {
            for (T& g : m.network->gradient) g *= T(factor);
        }, NoGil());
    module.def("forward", &forward<T>);
    module.def("backward", &backward<T>);
    // Addresses of a weight, its mask (bool), and the same as numbers
    module.def(("settle" + suffix).c_str(), [](size_t size, size_t n_kept, Address weight, Address mask, Address mask_numbers) {
        if (n_kept < 1 || n_kept > size) throw py::value_error("a mask keeps at least one weight, and no more than there are");
        return int(settle<T>(size, n_kept, at<T>(weight), at<uint8_t>(mask), at<T>(mask_numbers)));
    }, NoGil());
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Compiled sparse kernels of sb3_sparse";
    // Raised whenever what Python calls here changes: a module that was built from other sources is not used
    module.attr("INTERFACE") = 4;
    module.def("available_sets", &available_sets);
    module.def("choose_set", &choose_set);
    module.def("active_set", [] { return std::string(kernels<float>()->name); });
    module.def("peak", [](size_t n) {  // operations that n rounds of multiply-adds in registers make
        double flops = 0;
        volatile float result = kernels<float>()->peak(n, &flops);
        (void)result;
        return flops;
    });
    bind<float>(module, "");
    bind<double>(module, "Double");
    bind_training(module);
}
