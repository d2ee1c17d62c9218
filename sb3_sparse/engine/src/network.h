// A sequence of sparse linear layers with activations between them, its surviving weights stored one after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace engine {

// The kernels in use: the widest this processor can run unless another set was chosen.
template <class T>
const Kernels<T>* kernels();
std::vector<const char*> available_sets();
// False if there is no such set here.
bool choose_set(const std::string& name);

// Uninitialised memory for whole vectors.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer();
    // Contents are lost if it has to grow.
    T* reserve(size_t size);
    T* data() const { return data_; }
    size_t size() const { return size_; }

   private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// Arrays behind a Rows.
struct Index {
    std::vector<int32_t> group_row, group_ptr, value_ptr, column;
    Rows rows() const;
};

struct LayerShape {
    const uint8_t* mask;  // [n_outputs][n_inputs], row-major, read by the constructor alone
    int n_outputs, n_inputs;
    bool has_bias;
    int activation;
};

template <class T>
struct Layer {
    int n_outputs, n_inputs, activation;
    Index forward, backward;
    std::vector<int32_t> position;     // dense position of every value, in the order of `forward`
    std::vector<int32_t> permutation;  // for every value in the order of `backward`: its place in that of `forward`
    size_t values, bias;               // where they begin in the network's arrays
    bool has_bias;
    size_t n_values() const { return position.size(); }
};

template <class T>
class Network {
   public:
    explicit Network(const std::vector<LayerShape>& shapes);

    const std::vector<Layer<T>>& layers() const { return layers_; }
    size_t size() const { return values.size(); }
    // Call after `values` changed.
    void touch() { transposed_valid_ = false; }
    // A layer's values in the order of its backward index.
    const T* transposed(size_t layer);
    void prepare_transposed();

    std::vector<T> values, gradient, mean, square, root;

   private:
    std::vector<Layer<T>> layers_;
    std::vector<std::vector<T>> transposed_;
    bool transposed_valid_ = false;
};

// What a backward pass needs of the forward pass before it.
template <class T>
struct Tape {
    std::vector<std::shared_ptr<Network<T>>> networks;
    const Kernels<T>* kernels;
    int n_samples;
    Panels panels;
    // Activations in panels: input, then [network][layer] outputs
    Buffer<T> input;
    std::vector<std::vector<Buffer<T>>> outputs;
    ~Tape();
};

// A dense matrix in someone else's memory, strides in values.
template <class T>
struct Matrix {
    T* data;
    ptrdiff_t row_stride, column_stride;
};

// y[n] = networks[n](x) for every network; x is [n_samples, inputs], y[n] [n_samples, outputs of n]. Fills `tape` if not null.
// Returns whether all inputs and outputs are finite.
template <class T>
bool run_forward(const std::vector<std::shared_ptr<Network<T>>>& networks, Matrix<const T> x, int n_samples,
                 const std::vector<Matrix<T>>& y, int n_threads, Tape<T>* tape);

// From dy[n] the gradients of the values (added to networks[n]->gradient where accumulate[n], otherwise put there; nothing
// where not wanted[n]) and, if dx.data is not null, of the input, summed over the networks.
template <class T>
void run_backward(const Tape<T>& tape, const std::vector<Matrix<const T>>& dy, const std::vector<bool>& wanted,
                  const std::vector<bool>& accumulate, Matrix<T> dx, int n_threads);

}  // namespace engine
