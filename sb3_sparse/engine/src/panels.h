// How batches lie in memory, and one panel's way through a network: what passes of every kind share.
#pragma once

#include <algorithm>
#include <mutex>

#include "network.h"

namespace engine {

// --- Memory ---

// Buffers that are given back instead of freed: a training asks for the same sizes again and again
template <class T>
class Store {
   public:
    Buffer<T> take(size_t size) {
        Buffer<T> buffer;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            // The smallest that is large enough, otherwise the largest there is
            auto best = free_.end();
            for (auto it = free_.begin(); it != free_.end(); ++it) {
                if (best == free_.end()) best = it;
                const bool fits = it->size() >= size, best_fits = best->size() >= size;
                if (fits != best_fits ? fits : (fits ? it->size() < best->size() : it->size() > best->size())) best = it;
            }
            if (best != free_.end()) {
                std::swap(*best, free_.back());
                buffer = std::move(free_.back());
                free_.pop_back();
            }
        }
        buffer.reserve(size);
        return buffer;
    }
    void give(Buffer<T>&& buffer) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (free_.size() < 64) free_.push_back(std::move(buffer));
    }

   private:
    std::mutex mutex_;
    std::vector<Buffer<T>> free_;
};

// Never destroyed: Python may give the last tapes back while the process ends
template <class T>
Store<T>& store() {
    static Store<T>* store = new Store<T>;
    return *store;
}

// Held for the time of a call
template <class T>
class Loan {
   public:
    Loan() = default;
    explicit Loan(size_t size) : buffer_(store<T>().take(size)) {}
    Loan(Loan&&) = default;
    ~Loan() {
        if (buffer_.data() != nullptr) store<T>().give(std::move(buffer_));
    }
    T* data() const { return buffer_.data(); }

   private:
    Buffer<T> buffer_;
};

// --- Layout ---

template <class T>
struct Layout {
    int lanes, full_width;
    Panels panels;

    Layout(const Kernels<T>& kernels, int n_samples)
        : lanes(kernels.lanes), full_width(kPanelVectors * kernels.lanes) {
        panels.n_panels = (n_samples + full_width - 1) / full_width;
        const int rest = n_samples - (panels.n_panels - 1) * full_width;
        panels.last_vectors = (rest + lanes - 1) / lanes;
    }
    int vectors(int panel) const { return panel == panels.n_panels - 1 ? panels.last_vectors : kPanelVectors; }
    int samples(int panel, int n_samples) const { return std::min(full_width, n_samples - panel * full_width); }
    size_t stride(int features) const { return size_t(features) * full_width; }
    // Values of a whole batch
    size_t size(int features) const {
        return stride(features) * (panels.n_panels - 1) + size_t(features) * panels.last_vectors * lanes;
    }
};

template <class T>
Matrix<T> rows_from(const Matrix<T>& matrix, ptrdiff_t row) {
    return {matrix.data + row * matrix.row_stride, matrix.row_stride, matrix.column_stride};
}

// Room for any layer's outputs
template <class T>
int widest(const Network<T>& network) {
    int width = 0;
    for (const Layer<T>& layer : network.layers()) width = std::max(width, layer.n_outputs);
    return width;
}

// --- One panel through a network ---

template <class T>
void forward_layer(const Kernels<T>& k, const Network<T>& network, size_t l, int n_vectors, const T* input, T* to) {
    const Layer<T>& layer = network.layers()[l];
    const T* values = network.values.data();
    k.forward(layer.forward.rows(), values + layer.values, layer.has_bias ? values + layer.bias : nullptr, layer.activation, n_vectors, input,
              to);
}

// at(l) says where the output of layer l goes. Returns the last one.
template <class T, class At>
const T* forward_panel(const Kernels<T>& k, const Network<T>& network, int n_vectors, const T* input, const At& at) {
    for (size_t l = 0; l < network.layers().size(); ++l) {
        T* to = at(l);
        forward_layer(k, network, l, n_vectors, input, to);
        input = to;
    }
    return input;
}

// delta(l): gradient of the output of layer l, that of the last one is there; output(l): that output. All deltas become those of
// before the activation. network.prepare_transposed() was called.
template <class T, class Delta, class Output>
void backward_panel(const Kernels<T>& k, const Network<T>& network, int n_vectors, const Delta& delta, const Output& output) {
    const auto& layers = network.layers();
    const size_t last = layers.size() - 1;
    if (layers[last].activation != kIdentity)
        k.derivative(layers[last].activation, size_t(layers[last].n_outputs) * n_vectors * k.lanes, output(last), delta(last));
    for (size_t l = last; l > 0; --l)
        k.backward(layers[l].backward.rows(), network.transposed(l), layers[l - 1].activation, n_vectors, delta(l), output(l - 1),
                   delta(l - 1));
}

}  // namespace engine
