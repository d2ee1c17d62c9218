/*
 * The module sb3_sparse_runtime._compiled: a policy as a list of instructions, run for one observation after the other.
 *
 * An instruction is a number that says what to do, arrays, integers and floating-point numbers, as compiled.py puts them
 * together; nothing is checked here but their counts. Values lie in three arrays that belong to the program: observations as
 * they come (double), float32 numbers, and integers.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t sb3s_integer;
#include "kernels.h"

enum { MAX_ARRAYS = 8, MAX_INTEGERS = 16, MAX_NUMBERS = 4 };

enum Code {
    AS_FLOAT, NORMALIZE, DIVIDE, ONE_HOT, COPY, GROUPS_F32, GROUPS_I8, TILES_F32, DOTS_F32, DOTS_I8, PANELS_F32, PANELS_I16,
    TILES_F32_AVX512, DOTS_F32_AVX512, CONVOLVE_F32, CONVOLVE_I8, PAD_FLOATS, PAD_INTEGERS, RELU, LEAKY_RELU, ELU, TANH, SIGMOID,
    CLIP, QUANTIZE, STAIRCASE, AVERAGE_QUANTILES, BOUND, UNSCALE, ARG_MAX, ABOVE, EXPONENTIAL, CONSTANT, DOTS_I8_AVX512,
    RELU_AVX512, TANH_AVX512, QUANTIZE_AVX512, N_CODES
};

typedef struct {
    int code;
    const void *array[MAX_ARRAYS];
    int integer[MAX_INTEGERS];
    double number[MAX_NUMBERS];
} Instruction;

typedef struct {
    PyObject_HEAD
    int n_instructions, n_raw, n_out, is_discrete, out, n_choices;
    Instruction *instructions;
    Py_buffer *views;
    int n_views;
    double *raw;
    float *floats;
    sb3s_integer *integers;
    int64_t *choices;
} Program;

/* Rows of a tensor with zeros around them */
#define PAD(name, type)                                                                                                            \
    static void name(const int *k, const type *x, type *y)                                                                         \
    {                                                                                                                              \
        const int channels = k[2], height = k[3], width = k[4], top = k[5], left = k[6], to_height = k[7], to_width = k[8];        \
        int c, i;                                                                                                                  \
        memset(y, 0, sizeof(type) * (size_t)channels * to_height * to_width);                                                      \
        for (c = 0; c < channels; c++)                                                                                             \
            for (i = 0; i < height; i++)                                                                                           \
                memcpy(y + ((size_t)c * to_height + top + i) * to_width + left, x + ((size_t)c * height + i) * width,              \
                       sizeof(type) * width);                                                                                      \
    }
PAD(pad_floats, float)
PAD(pad_integers, sb3s_integer)

/* integer[0] is where the input begins, integer[1] where the output does */
static void execute(Program *program, const unsigned char *allowed)
{
    const Instruction *step = program->instructions, *end = step + program->n_instructions;
    for (; step < end; step++) {
        const int *k = step->integer;
        const void *const *p = step->array;
        const double *d = step->number;
        float *x = program->floats + k[0], *y = program->floats + k[1];
        int i;
        switch ((enum Code)step->code) {
        case AS_FLOAT:
            for (i = 0; i < k[2]; i++) y[i] = (float)program->raw[k[0] + i];
            break;
        case NORMALIZE:
            sb3s_normalize_f64(k[2], p[0], p[1], d[0], program->raw + k[0], y);
            break;
        case DIVIDE:
            for (i = 0; i < k[2]; i++) y[i] = x[i] / (float)d[0];
            break;
        case ONE_HOT: { /* k[2]: integers, k[3]: numbers; p[0]: where the part of each integer begins */
            const int32_t *starts = p[0];
            memset(y, 0, sizeof(float) * k[3]);
            for (i = 0; i < k[2]; i++) y[starts[i] + (int)program->raw[k[0] + i]] = 1.0f;
            break;
        }
        case COPY:
            memmove(y, x, sizeof(float) * k[2]);
            break;
        case GROUPS_F32:
            sb3s_groups_f32(k[2], p[0], p[1], p[2], p[3], p[4], x, y);
            break;
        case GROUPS_I8:
            sb3s_groups_i8(k[2], p[0], p[1], p[2], p[3], p[4], p[5], program->integers + k[0], y);
            break;
        case TILES_F32:
            sb3s_tiles_f32(k[2], k[3], p[0], p[1], x, y);
            break;
        case DOTS_F32:
            sb3s_dots_f32(k[2], k[3], p[0], p[1], x, y);
            break;
        case DOTS_I8:
            sb3s_dots_i8(k[2], k[3], p[0], p[1], p[2], program->integers + k[0], y);
            break;
#ifdef SB3S_AVX512
        case PANELS_F32:
            sb3s_panels_f32(k[2], k[3], p[0], p[1], p[2], p[3], x, y);
            break;
        case PANELS_I16:
            sb3s_panels_i16(k[2], k[3], p[0], p[1], p[2], p[3], p[4], program->integers + k[0], y);
            break;
        case TILES_F32_AVX512:
            sb3s_tiles_f32_avx512(k[2], k[3], p[0], p[1], x, y);
            break;
        case DOTS_F32_AVX512:
            sb3s_dots_f32_avx512(k[2], k[3], p[0], p[1], x, y);
            break;
        case DOTS_I8_AVX512:
            sb3s_dots_i8_avx512(k[2], k[3], p[0], p[1], p[2], program->integers + k[0], y);
            break;
        case RELU_AVX512:
            sb3s_relu_all_avx512(k[2], y);
            break;
        case TANH_AVX512:
            sb3s_tanh_all_avx512(k[2], y);
            break;
        case QUANTIZE_AVX512:
            sb3s_quantize_all_avx512(k[2], (float)d[0], (float)d[1], (float)d[2], x, program->integers + k[1]);
            break;
#else
        case PANELS_F32:
        case PANELS_I16:
        case TILES_F32_AVX512:
        case DOTS_F32_AVX512:
        case DOTS_I8_AVX512:
        case RELU_AVX512:
        case TANH_AVX512:
        case QUANTIZE_AVX512:
            break;
#endif
        case CONVOLVE_F32:
            sb3s_convolve_f32(k[2], k[3], k[4], k[5], k[6], k[7], p[0], p[1], p[2], p[3], x, y);
            break;
        case CONVOLVE_I8:
            sb3s_convolve_i8(k[2], k[3], k[4], k[5], k[6], k[7], p[0], p[1], p[2], p[3], p[4], program->integers + k[0],
                             program->integers + k[8], y);
            break;
        case PAD_FLOATS:
            pad_floats(k, x, y);
            break;
        case PAD_INTEGERS:
            pad_integers(k, program->integers + k[0], program->integers + k[1]);
            break;
        case RELU:
            sb3s_relu_all(k[2], y);
            break;
        case LEAKY_RELU:
            sb3s_leaky_relu_all(k[2], (float)d[0], y);
            break;
        case ELU:
            sb3s_elu_all(k[2], (float)d[0], y);
            break;
        case TANH:
            sb3s_tanh_all(k[2], y);
            break;
        case SIGMOID:
            sb3s_sigmoid_all(k[2], y);
            break;
        case CLIP:
            sb3s_clip_all(k[2], (float)d[0], (float)d[1], y);
            break;
        case QUANTIZE:
            sb3s_quantize_all(k[2], (float)d[0], (float)d[1], (float)d[2], x, program->integers + k[1]);
            break;
        case STAIRCASE:
            sb3s_staircase_all(k[2], k[3], p[0], k[4], x, program->integers + k[1]);
            break;
        case AVERAGE_QUANTILES:
            sb3s_average_quantiles(k[2], k[3], x, y);
            break;
        case BOUND: {
            const float *low = p[0], *high = p[1];
            for (i = 0; i < k[2]; i++) {
                const float value = x[i] > low[i] ? x[i] : low[i];
                y[i] = value < high[i] ? value : high[i];
            }
            break;
        }
        case UNSCALE: {
            const float *low = p[0], *high = p[1];
            for (i = 0; i < k[2]; i++) y[i] = low[i] + (0.5f * (x[i] + 1.0f)) * (high[i] - low[i]);
            break;
        }
        case ARG_MAX: { /* k[2]: groups; p[0]: their sizes */
            const int32_t *sizes = p[0];
            int start = 0;
            for (i = 0; i < k[2]; start += sizes[i++])
                program->choices[i] = sb3s_arg_max(sizes[i], x + start, allowed == NULL ? NULL : allowed + start);
            break;
        }
        case ABOVE:
            for (i = 0; i < k[2]; i++) y[i] = x[i] > (float)d[0] ? 1.0f : 0.0f;
            break;
        case EXPONENTIAL:
            memmove(y, x, sizeof(float) * k[2]);
            sb3s_exp_all(k[2], (float)d[0], (float)d[1], y);
            break;
        case CONSTANT:
            memcpy(y, p[0], sizeof(float) * k[2]);
            break;
        case N_CODES:
            break;
        }
    }
}

static void Program_dealloc(Program *self)
{
    int i;
    for (i = 0; i < self->n_views; i++) PyBuffer_Release(&self->views[i]);
    PyMem_Free(self->views);
    PyMem_Free(self->instructions);
    PyMem_Free(self->raw);
    PyMem_Free(self->floats);
    PyMem_Free(self->integers);
    PyMem_Free(self->choices);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int fill(Program *self, Instruction *to, PyObject *from)
{
    PyObject *arrays, *integers, *numbers;
    Py_ssize_t i;
    if (!PyArg_ParseTuple(from, "iO!O!O!", &to->code, &PyTuple_Type, &arrays, &PyTuple_Type, &integers, &PyTuple_Type, &numbers))
        return -1;
    if (to->code < 0 || to->code >= N_CODES || PyTuple_GET_SIZE(arrays) > MAX_ARRAYS || PyTuple_GET_SIZE(integers) > MAX_INTEGERS ||
        PyTuple_GET_SIZE(numbers) > MAX_NUMBERS) {
        PyErr_SetString(PyExc_ValueError, "no instruction");
        return -1;
    }
    for (i = 0; i < PyTuple_GET_SIZE(arrays); i++) {
        Py_buffer *view = &self->views[self->n_views];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(arrays, i), view, PyBUF_C_CONTIGUOUS) < 0) return -1;
        self->n_views++;
        to->array[i] = view->buf;
    }
    for (i = 0; i < PyTuple_GET_SIZE(integers); i++) {
        const long value = PyLong_AsLong(PyTuple_GET_ITEM(integers, i));
        if (value == -1 && PyErr_Occurred()) return -1;
        if (value < INT32_MIN || value > INT32_MAX) {
            PyErr_SetString(PyExc_OverflowError, "a policy this large cannot be run");
            return -1;
        }
        to->integer[i] = (int)value;
    }
    for (i = 0; i < PyTuple_GET_SIZE(numbers); i++) {
        to->number[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(numbers, i));
        if (to->number[i] == -1.0 && PyErr_Occurred()) return -1;
    }
    return 0;
}

static PyObject *Program_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *instructions;
    Py_ssize_t n_floats, n_integers;
    int n_raw, n_out, is_discrete, out, n_choices, i;
    Program *self;
    if (!PyArg_ParseTuple(arguments, "O!innipii", &PyTuple_Type, &instructions, &n_raw, &n_floats, &n_integers, &n_out,
                          &is_discrete, &out, &n_choices))
        return NULL;
    (void)keywords;
    self = (Program *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->n_instructions = (int)PyTuple_GET_SIZE(instructions);
    self->n_raw = n_raw;
    self->n_out = n_out;
    self->is_discrete = is_discrete;
    self->out = out;
    self->n_choices = n_choices;
    self->instructions = PyMem_Calloc(self->n_instructions + 1, sizeof(Instruction));
    self->views = PyMem_Calloc((size_t)self->n_instructions * MAX_ARRAYS + 1, sizeof(Py_buffer));
    self->raw = PyMem_Calloc(n_raw + 1, sizeof(double));
    self->floats = PyMem_Calloc(n_floats + 1, sizeof(float));
    self->integers = PyMem_Calloc(n_integers + 1, sizeof(sb3s_integer));
    self->choices = PyMem_Calloc(n_out + 1, sizeof(int64_t));
    if (!self->instructions || !self->views || !self->raw || !self->floats || !self->integers || !self->choices) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (i = 0; i < self->n_instructions; i++) {
        if (fill(self, &self->instructions[i], PyTuple_GET_ITEM(instructions, i)) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

static int observe(Program *self, const Py_buffer *view, Py_ssize_t row)
{
    const Py_ssize_t n = self->n_raw;
    double *raw = self->raw;
    double sum = 0.0;
    Py_ssize_t i;
    switch (view->format == NULL ? 'B' : view->format[0]) {
    case 'f': {
        const float *from = (const float *)view->buf + row * n;
        for (i = 0; i < n; i++) raw[i] = from[i];
        break;
    }
    case 'd': {
        const double *from = (const double *)view->buf + row * n;
        for (i = 0; i < n; i++) raw[i] = from[i];
        break;
    }
    default: { /* bytes */
        const unsigned char *from = (const unsigned char *)view->buf + row * n;
        for (i = 0; i < n; i++) raw[i] = from[i];
        return 0;
    }
    }
    /* Differences of finite numbers with themselves are 0, of others NaN */
    for (i = 0; i < n; i++) sum += raw[i] - raw[i];
    return sum == 0.0 ? 0 : -1;
}

/* run(observations, results, allowed or None): C-contiguous; float32, float64 or bytes in, float32 or int64 out */
static PyObject *Program_run(Program *self, PyObject *const *arguments, Py_ssize_t n_arguments)
{
    Py_buffer in, out, masks;
    Py_ssize_t n, row;
    PyObject *result = NULL;
    if (n_arguments != 3) {
        PyErr_SetString(PyExc_TypeError, "run(observations, results, allowed)");
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &in, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return NULL;
    if (PyObject_GetBuffer(arguments[1], &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) goto release_in;
    masks.buf = NULL;
    if (arguments[2] != Py_None && PyObject_GetBuffer(arguments[2], &masks, PyBUF_C_CONTIGUOUS) < 0) goto release_out;
    n = in.len / in.itemsize / self->n_raw;
    if (in.len != n * self->n_raw * in.itemsize || out.len != n * self->n_out * (self->is_discrete ? 8 : 4) ||
        (masks.buf != NULL && masks.len != n * self->n_choices) || strchr("fdB?", in.format == NULL ? 'B' : in.format[0]) == NULL) {
        PyErr_SetString(PyExc_ValueError, "arrays of a wrong size or dtype");
        goto release_masks;
    }
    for (row = 0; row < n; row++) {
        if (observe(self, &in, row) < 0) {
            PyErr_SetString(PyExc_ValueError, "`observation` must be finite, got NaN or an infinite number");
            goto release_masks;
        }
        execute(self, masks.buf == NULL ? NULL : (const unsigned char *)masks.buf + row * self->n_choices);
        if (self->is_discrete)
            memcpy((int64_t *)out.buf + row * self->n_out, self->choices, sizeof(int64_t) * self->n_out);
        else
            memcpy((float *)out.buf + row * self->n_out, self->floats + self->out, sizeof(float) * self->n_out);
    }
    Py_INCREF(Py_None);
    result = Py_None;
release_masks:
    if (masks.buf != NULL) PyBuffer_Release(&masks);
release_out:
    PyBuffer_Release(&out);
release_in:
    PyBuffer_Release(&in);
    return result;
}

static PyMethodDef Program_methods[] = {
    {"run", (PyCFunction)(void (*)(void))Program_run, METH_FASTCALL, "Run for a batch."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ProgramType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sb3_sparse_runtime._compiled.Program",
    .tp_basicsize = sizeof(Program),
    .tp_dealloc = (destructor)Program_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Program(instructions, n_raw, n_floats, n_integers, n_out, is_discrete, out, n_choices)",
    .tp_methods = Program_methods,
    .tp_new = Program_new,
};

static PyObject *has_avx512(PyObject *self, PyObject *none)
{
    (void)self;
    (void)none;
#ifdef SB3S_AVX512
    return PyBool_FromLong(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef methods[] = {
    {"has_avx512", has_avx512, METH_NOARGS, "Whether the kernels for AVX-512 can be used here."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_compiled", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void)
{
    PyObject *made;
    if (PyType_Ready(&ProgramType) < 0) return NULL;
    made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    Py_INCREF(&ProgramType);
    if (PyModule_AddObject(made, "Program", (PyObject *)&ProgramType) < 0) {
        Py_DECREF(&ProgramType);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
