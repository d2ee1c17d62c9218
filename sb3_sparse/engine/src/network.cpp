#include "network.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "panels.h"
#include "threads.h"

namespace engine {

// --- Choice of the instruction set ---

namespace {

enum Set { kBaseline, kAvx2, kAvx512, kSets };
const char* const kSetNames[kSets] = {"baseline", "avx2", "avx512"};

bool runs_here(int set) {
    if (set == kBaseline) return true;
#ifdef SB3_SPARSE_X86
    __builtin_cpu_init();
    if (set == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

int widest_set() {
    int best = kBaseline;
    for (int set = kBaseline; set < kSets; ++set)
        if (runs_here(set)) best = set;
    return best;
}

int& chosen_set() {
    static int set = widest_set();
    return set;
}

}  // namespace

template <class T>
const Kernels<T>* kernels() {
#ifdef SB3_SPARSE_X86
    if (chosen_set() == kAvx512) return avx512_kernels<T>();
    if (chosen_set() == kAvx2) return avx2_kernels<T>();
#endif
    return baseline_kernels<T>();
}

std::vector<const char*> available_sets() {
    std::vector<const char*> names;
    for (int set = kBaseline; set < kSets; ++set)
        if (runs_here(set)) names.push_back(kSetNames[set]);
    return names;
}

bool choose_set(const std::string& name) {
    for (int set = kBaseline; set < kSets; ++set)
        if (name == kSetNames[set] && runs_here(set)) {
            chosen_set() = set;
            return true;
        }
    return false;
}

// --- Memory ---

template <class T>
Buffer<T>& Buffer<T>::operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

template <class T>
Buffer<T>::~Buffer() {
    std::free(data_);
}

template <class T>
T* Buffer<T>::reserve(size_t size) {
    if (size > size_) {
        std::free(data_);
        size_ = 0;
        const size_t bytes = (size * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
        data_ = static_cast<T*>(std::aligned_alloc(kAlignment, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
        size_ = size;
    }
    return data_;
}

template <class T>
Tape<T>::~Tape() {
    if (own_input.data() != nullptr) store<T>().give(std::move(own_input));
    for (auto& buffer : outputs) store<T>().give(std::move(buffer));
}

template <class T>
Deltas<T>::~Deltas() {
    for (auto& buffer : layers) store<T>().give(std::move(buffer));
}

// --- Index ---

Rows Index::rows() const {
    return {int(group_row.size()) - 1, group_row.data(), group_ptr.data(), value_ptr.data(), column.data()};
}

namespace {

// Groups rows that share their columns, aligned to kMaxGroup so that a whole block of the pattern becomes one group.
// at(row, column) tells whether the position exists.
template <class At>
Index make_index(int n_rows, int n_columns, const At& at) {
    Index index;
    index.group_row.push_back(0);
    index.group_ptr.push_back(0);
    std::vector<std::vector<int32_t>> columns(kMaxGroup);
    int32_t n_values = 0;
    for (int begin = 0; begin < n_rows; begin += kMaxGroup) {
        const int size = std::min(kMaxGroup, n_rows - begin);
        for (int r = 0; r < size; ++r) {
            columns[r].clear();
            for (int column = 0; column < n_columns; ++column)
                if (at(begin + r, column)) columns[r].push_back(column);
        }
        bool shared = true;
        for (int r = 1; r < size; ++r) shared = shared && columns[r] == columns[0];
        const int step = shared ? size : 1;
        for (int r = 0; r < size; r += step) {
            index.value_ptr.push_back(n_values);
            index.column.insert(index.column.end(), columns[r].begin(), columns[r].end());
            index.group_row.push_back(begin + r + step);
            index.group_ptr.push_back(int32_t(index.column.size()));
            n_values += int32_t(columns[r].size()) * step;
        }
    }
    return index;
}

// Calls visit(value, row, column) for every value in the order of the index.
template <class Visit>
void each_value(const Index& index, const Visit& visit) {
    const Rows rows = index.rows();
    int32_t value = 0;
    for (int group = 0; group < rows.n_groups; ++group)
        for (int32_t block = rows.group_ptr[group]; block < rows.group_ptr[group + 1]; ++block)
            for (int32_t row = rows.group_row[group]; row < rows.group_row[group + 1]; ++row)
                visit(value++, row, rows.column[block]);
}

}  // namespace

template <class T>
Network<T>::Network(const std::vector<LayerShape>& shapes) {
    size_t size = 0;
    for (const LayerShape& shape : shapes) {
        Layer<T> layer;
        layer.n_outputs = shape.n_outputs, layer.n_inputs = shape.n_inputs, layer.activation = shape.activation;
        const uint8_t* mask = shape.mask;
        const int n_outputs = shape.n_outputs, n_inputs = shape.n_inputs;
        layer.forward = make_index(n_outputs, n_inputs, [&](int row, int column) { return mask[size_t(row) * n_inputs + column]; });
        // Columns of a row-major mask lie far apart: turn it round once
        std::vector<uint8_t> turned(size_t(n_outputs) * n_inputs);
        for (int row = 0; row < n_outputs; ++row)
            for (int column = 0; column < n_inputs; ++column)
                turned[size_t(column) * n_outputs + row] = mask[size_t(row) * n_inputs + column];
        layer.backward = make_index(n_inputs, n_outputs, [&](int row, int column) { return turned[size_t(row) * n_outputs + column]; });
        std::vector<int32_t> place(size_t(n_outputs) * n_inputs, -1);
        each_value(layer.forward, [&](int32_t value, int32_t row, int32_t column) {
            layer.position.push_back(row * n_inputs + column);
            place[size_t(row) * n_inputs + column] = value;
        });
        layer.permutation.resize(layer.position.size());
        each_value(layer.backward, [&](int32_t value, int32_t row, int32_t column) {
            layer.permutation[value] = place[size_t(column) * n_inputs + row];
        });
        layer.values = size;
        layer.bias = size + layer.n_values();
        layer.has_bias = shape.has_bias;
        size = layer.bias + (shape.has_bias ? size_t(n_outputs) : 0);
        layers_.push_back(std::move(layer));
        transposed_.emplace_back(layers_.back().n_values());
    }
    values.assign(size, T(0));
    for (auto* array : {&gradient, &mean, &square, &root}) array->assign(size, T(0));
}

template <class T>
void Network<T>::prepare_transposed() {
    if (transposed_valid_) return;
    for (size_t l = 0; l < layers_.size(); ++l) {
        const T* from = values.data() + layers_[l].values;
        const int32_t* permutation = layers_[l].permutation.data();
        T* to = transposed_[l].data();
        for (size_t i = 0; i < transposed_[l].size(); ++i) to[i] = from[permutation[i]];
    }
    transposed_valid_ = true;
}

template <class T>
Rows Network<T>::inputs_from(int first) const {
    Rows rows = layers_.front().backward.rows();
    int group = 0;
    while (group < rows.n_groups && rows.group_row[group + 1] <= first) ++group;
    rows.n_groups -= group, rows.group_row += group, rows.group_ptr += group, rows.value_ptr += group;
    return rows;
}

template <class T>
const T* Network<T>::transposed(size_t layer) const {
    return transposed_[layer].data();
}

// --- Passes ---

template <class T>
bool run_forward(const std::shared_ptr<Network<T>>& network, Matrix<const T> x, int n_samples, Matrix<T> y, int n_threads,
                 Tape<T>* tape) {
    const Kernels<T>& k = *kernels<T>();
    const Layout<T> layout(k, n_samples);
    const auto& layers = network->layers();
    const int n_inputs = layers[0].n_inputs;
    const int most = widest(*network);
    if (tape != nullptr) {
        tape->network = network, tape->kernels = &k, tape->n_samples = n_samples, tape->panels = layout.panels;
        tape->own_input = store<T>().take(layout.size(n_inputs));
        tape->input = {tape->own_input.data(), layout.stride(n_inputs)};
        for (const Layer<T>& layer : layers) tape->outputs.push_back(store<T>().take(layout.size(layer.n_outputs)));
    }
    std::atomic<bool> finite{true};
    parallel(layout.panels.n_panels, n_threads, [&](int panel) {
        const int n_vectors = layout.vectors(panel), samples = layout.samples(panel, n_samples);
        const size_t width = size_t(n_vectors) * layout.lanes;
        // Without a tape two panels are enough: one to read and one to write, in turns
        const Loan<T> packed = tape != nullptr ? Loan<T>() : Loan<T>(layout.stride(n_inputs));
        const Loan<T> scratch = tape != nullptr ? Loan<T>() : Loan<T>(2 * layout.stride(most));
        T* input = tape != nullptr ? tape->own_input.data() + panel * layout.stride(n_inputs) : packed.data();
        const Matrix<const T> source = rows_from(x, ptrdiff_t(panel) * layout.full_width);
        k.pack(source.data, source.row_stride, source.column_stride, samples, n_inputs, n_vectors, input);
        if (!k.finite(n_inputs * width, input)) finite = false;
        const T* from = forward_panel(k, *network, n_vectors, input, [&](size_t l) {
            return tape != nullptr ? tape->outputs[l].data() + panel * layout.stride(layers[l].n_outputs)
                                   : scratch.data() + l % 2 * layout.stride(most);
        });
        const Matrix<T> target = rows_from(y, ptrdiff_t(panel) * layout.full_width);
        k.unpack(from, samples, layers.back().n_outputs, n_vectors, target.data, target.row_stride, target.column_stride, false);
        if (!k.finite(layers.back().n_outputs * width, from)) finite = false;
    });
    return finite;
}

template <class T>
void read_output(const Tape<T>& tape, size_t layer, Matrix<T> to) {
    const Layout<T> layout(*tape.kernels, tape.n_samples);
    const int n_outputs = tape.network->layers().at(layer).n_outputs;
    for (int panel = 0; panel < layout.panels.n_panels; ++panel) {
        const Matrix<T> target = rows_from(to, ptrdiff_t(panel) * layout.full_width);
        tape.kernels->unpack(tape.outputs[layer].data() + panel * layout.stride(n_outputs), layout.samples(panel, tape.n_samples), n_outputs,
                             layout.vectors(panel), target.data, target.row_stride, target.column_stride, false);
    }
}

template <class T>
void run_backward(Deltas<T>* deltas, Matrix<const T> dy, Matrix<T> dx, int n_threads) {
    const Tape<T>& tape = *deltas->tape;
    const Kernels<T>& k = *tape.kernels;
    const Layout<T> layout(k, tape.n_samples);
    Network<T>& network = *tape.network;
    const auto& layers = network.layers();
    const int n_inputs = layers[0].n_inputs;
    network.prepare_transposed();
    for (const Layer<T>& layer : layers) deltas->layers.push_back(store<T>().take(layout.size(layer.n_outputs)));
    parallel(layout.panels.n_panels, n_threads, [&](int panel) {
        const int n_vectors = layout.vectors(panel), samples = layout.samples(panel, tape.n_samples);
        const Loan<T> below = dx.data != nullptr ? Loan<T>(layout.stride(n_inputs)) : Loan<T>();
        const auto at = [&](const auto& buffer, int features) { return buffer.data() + panel * layout.stride(features); };
        const size_t last = layers.size() - 1;
        T* top = at(deltas->layers[last], layers[last].n_outputs);
        const Matrix<const T> source = rows_from(dy, ptrdiff_t(panel) * layout.full_width);
        k.pack(source.data, source.row_stride, source.column_stride, samples, layers[last].n_outputs, n_vectors, top);
        backward_panel(
            k, network, n_vectors, [&](size_t l) { return at(deltas->layers[l], layers[l].n_outputs); },
            [&](size_t l) { return at(tape.outputs[l], layers[l].n_outputs); });
        if (dx.data != nullptr) {
            k.backward(layers[0].backward.rows(), network.transposed(0), kIdentity, n_vectors,
                       at(deltas->layers[0], layers[0].n_outputs), nullptr, below.data());
            const Matrix<T> target = rows_from(dx, ptrdiff_t(panel) * layout.full_width);
            k.unpack(below.data(), samples, n_inputs, n_vectors, target.data, target.row_stride, target.column_stride, false);
        }
    });
}

template <class T>
void weight_gradient(const Deltas<T>& deltas, bool accumulate, int n_threads) {
    const Tape<T>& tape = *deltas.tape;
    const Kernels<T>& k = *tape.kernels;
    const Layout<T> layout(k, tape.n_samples);
    const auto& layers = tape.network->layers();
    // Pieces of about the same work. Each value is summed over the batch by one thread, in one order
    struct Piece {
        size_t layer;
        int begin, end;
    };
    std::vector<Piece> pieces;
    for (size_t l = 0; l < layers.size(); ++l) {
        const Rows rows = layers[l].forward.rows();
        const int limit = n_threads <= 1 ? INT32_MAX : 2048;
        for (int begin = 0, end = 0; begin < rows.n_groups; begin = end) {
            while (end < rows.n_groups && (end == begin || rows.group_ptr[end] - rows.group_ptr[begin] < limit)) ++end;
            pieces.push_back({l, begin, end});
        }
    }
    T* gradient = tape.network->gradient.data();
    parallel(int(pieces.size()), n_threads, [&](int i) {
        const Piece& piece = pieces[i];
        const Layer<T>& layer = layers[piece.layer];
        const Activations<T> input = piece.layer == 0 || deltas.side_by_side
                                         ? tape.input
                                         : Activations<T>{tape.outputs[piece.layer - 1].data(), layout.stride(layer.n_inputs)};
        k.weight_gradient(layer.forward.rows(), tape.panels, input.stride, layout.stride(layer.n_outputs), piece.begin,
                          piece.end, accumulate, input.data, deltas.layers[piece.layer].data(), gradient + layer.values,
                          layer.has_bias ? gradient + layer.bias : nullptr);
    });
}

#define INSTANTIATE(T)                                                                                                    \
    template const Kernels<T>* kernels<T>();                                                                              \
    template class Buffer<T>;                                                                                            \
    template class Network<T>;                                                                                            \
    template struct Tape<T>;                                                                                              \
    template struct Deltas<T>;                                                                                            \
    template bool run_forward<T>(const std::shared_ptr<Network<T>>&, Matrix<const T>, int, Matrix<T>, int, Tape<T>*);     \
    template void read_output<T>(const Tape<T>&, size_t, Matrix<T>);                                                      \
    template void run_backward<T>(Deltas<T>*, Matrix<const T>, Matrix<T>, int);                                           \
    template void weight_gradient<T>(const Deltas<T>&, bool, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace engine
