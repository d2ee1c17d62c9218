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
    const T* transposed(size_t layer) const;
    void prepare_transposed();
    // The groups of the first layer's backward index that hold inputs from `first` on.
    Rows inputs_from(int first) const;

    std::vector<T> values, gradient, mean, square, root;

   private:
    std::vector<Layer<T>> layers_;
    std::vector<std::vector<T>> transposed_;
    bool transposed_valid_ = false;
};

// Activations of a whole batch in panels, `stride` values from one full panel to the next.
template <class T>
struct Activations {
    const T* data;
    size_t stride;
};

// What a backward pass needs of the forward pass before it.
template <class T>
struct Tape {
    std::shared_ptr<Network<T>> network;
    const Kernels<T>* kernels;
    int n_samples;
    Panels panels;
    // In panels: the input, in this tape's own memory or in somebody's whom it holds, and the output of every layer
    Buffer<T> own_input;
    std::shared_ptr<const void> holds;
    Activations<T> input;
    std::vector<Buffer<T>> outputs;
    ~Tape();
};

// What a backward pass found: the gradient of every layer's output before its activation, in panels.
template <class T>
struct Deltas {
    std::shared_ptr<const Tape<T>> tape;
    std::vector<Buffer<T>> layers;
    // Whether all layers of the network lie side by side and read its input, and not each what the one before has put out
    bool side_by_side = false;
    ~Deltas();
};

// A dense matrix in someone else's memory, strides in values.
template <class T>
struct Matrix {
    T* data;
    ptrdiff_t row_stride, column_stride;
};

// y = network(x); x is [n_samples, inputs], y [n_samples, outputs]. Fills `tape` if not null.
// Returns whether all inputs and outputs are finite.
template <class T>
bool run_forward(const std::shared_ptr<Network<T>>& network, Matrix<const T> x, int n_samples, Matrix<T> y, int n_threads,
                 Tape<T>* tape);

// Puts the output of a layer, as the forward pass left it, into `to`, [n_samples, outputs].
template <class T>
void read_output(const Tape<T>& tape, size_t layer, Matrix<T> to);

// From dy fills deltas->layers and, if dx.data is not null, the gradient of the input. deltas->tape is set.
template <class T>
void run_backward(Deltas<T>* deltas, Matrix<const T> dy, Matrix<T> dx, int n_threads);

// From deltas the gradient of all values: added to network->gradient if `accumulate`, otherwise put there.
template <class T>
void weight_gradient(const Deltas<T>& deltas, bool accumulate, int n_threads);

}  // namespace engine
