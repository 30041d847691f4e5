/* The kernels of openmp.c and products.c as functions of NumPy arrays: the Python module mpi_parallel.device._kernels.
 *
 * A step calls some thirty of them, most for a few microseconds, so a call has to cost next to nothing: ctypes takes two
 * microseconds for one, this a tenth. Types and layouts are the caller's promise (device/expressions.py says which); only
 * that arrays are arrays is looked at. Other Python threads run meanwhile.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "openmp.c"
#include "products.c"

/* How every NumPy array begins, since NumPy 1.0; device/openmp.py tries it before it trusts it. */
typedef struct {
    PyObject_HEAD
    char *data;
    int axes;
    Py_ssize_t *shape, *strides;
} Array;

#define DATA(A) ((void *)(A)->data)

static PyTypeObject *array_type;

static Array *array(PyObject *given)
{
    static long nothing[2];
    static Array none = {.data = NULL, .axes = 0, .shape = nothing, .strides = nothing};
    if (PyObject_TypeCheck(given, array_type)) return (Array *)given;
    PyErr_Format(PyExc_TypeError, "a kernel wants a NumPy array, not %R", given);
    return &none;
}

/* The matrix product of the BLAS that NumPy brings, by row-major cblas_sgemm with integers of 64 or of 32 bits. */
static void *sgemm_address;
static int sgemm_wide;
static int products_are_own; /* where products.c takes them */

#define SGEMM(INTEGER, ...)                                                                                            \
    ((void (*)(int, int, int, INTEGER, INTEGER, INTEGER, float, const void *, INTEGER, const void *, INTEGER, float,   \
               void *, INTEGER))sgemm_address)(__VA_ARGS__)

/* The distance of an array's rows in elements, of which each lies in one piece. */
static long apart(const Array *a)
{
    long given = a->strides[0] / 4;
    return given > a->shape[1] ? given : a->shape[1];
}

/* c = a b, or c += a b where `add`; a or b transposed */
static void product(const Array *a, int a_turned, const Array *b, int b_turned, const Array *c, int add)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TURNED = 112 };
    long m = c->shape[0], n = c->shape[1], k = a->shape[a_turned ? 0 : 1];
    int one = a_turned ? TURNED : AS_IS, other = b_turned ? TURNED : AS_IS;
    if (k == 0 && !add)
        for (long row = 0; row < m; ++row) memset(c->data + row * c->strides[0], 0, (size_t)n * 4);
    if (m == 0 || n == 0 || k == 0) return;
    if (products_are_own &&
        own_product(DATA(a), apart(a), a_turned, DATA(b), apart(b), b_turned, DATA(c), apart(c), m, n, k, add))
        return;
    if (sgemm_wide)
        SGEMM(int64_t, ROW_MAJOR, one, other, m, n, k, 1.0f, a->data, apart(a), b->data, apart(b), (float)add, c->data,
              apart(c));
    else
        SGEMM(int, ROW_MAJOR, one, other, (int)m, (int)n, (int)k, 1.0f, a->data, (int)apart(a), b->data, (int)apart(b),
              (float)add, c->data, (int)apart(c));
}

static long elements(const Array *a)
{
    long n = 1;
    for (int axis = 0; axis < a->axes; ++axis) n *= a->shape[axis];
    return n;
}

/* --- calls that are written down instead of made, to be made again and again without Python --- */

static _Thread_local PyObject *tape; /* the list that takes them; none: they are made */

static PyObject *write_down(PyObject *module, const char *name, PyObject *const *given, Py_ssize_t count)
{
    PyObject *call = PyTuple_New(count + 1), *function = call ? PyObject_GetAttrString(module, name) : NULL;
    if (!function) {
        Py_XDECREF(call);
        return NULL;
    }
    PyTuple_SET_ITEM(call, 0, function);
    for (Py_ssize_t i = 0; i < count; ++i) {
        Py_INCREF(given[i]);
        PyTuple_SET_ITEM(call, i + 1, given[i]);
    }
    int failed = PyList_Append(tape, call);
    Py_DECREF(call);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* The arguments of a call, one after the other. */
#define FUNCTION(NAME) static PyObject *call_##NAME(PyObject *self, PyObject *const *given, Py_ssize_t count)

/* The same of one that may be written down. */
#define KERNEL(NAME)                                                                                                   \
    static PyObject *compute_##NAME(PyObject *self, PyObject *const *given, Py_ssize_t count);                         \
    FUNCTION(NAME) { return (tape ? write_down(self, #NAME, given, count) : compute_##NAME(self, given, count)); }     \
    static PyObject *compute_##NAME(PyObject *self, PyObject *const *given, Py_ssize_t count)
#define TAKES(N)                                                                                                       \
    (void)self;                                                                                                        \
    if (count != (N)) return PyErr_Format(PyExc_TypeError, "%d arguments are wanted, not %zd", (int)(N), count)
#define ARRAY(NAME, I) Array *NAME = array(given[I])
#define WHOLE(NAME, I) long NAME = PyLong_AsLong(given[I])
#define REAL(NAME, I) float NAME = (float)PyFloat_AsDouble(given[I])
#define RUN(CALL)                                                                                                      \
    if (PyErr_Occurred()) return NULL;                                                                                 \
    Py_BEGIN_ALLOW_THREADS CALL;                                                                                       \
    Py_END_ALLOW_THREADS Py_RETURN_NONE
#define SLOTS(A) DATA(A), (A)->strides[0] / 4, (int)(A)->shape[0]

/* --- rows --- */

/* interface.Raw: images, labels, mean and inverse_std of the tuple in a call's place I */
#define RAW(I)                                                                                                         \
    if (!PyTuple_Check(given[I]) || PyTuple_GET_SIZE(given[I]) != 4)                                                   \
        return PyErr_Format(PyExc_TypeError, "a kernel wants four arrays in a tuple, not %R", given[I]);               \
    Array *images = array(PyTuple_GET_ITEM(given[I], 0)), *labels = array(PyTuple_GET_ITEM(given[I], 1));              \
    Array *mean = array(PyTuple_GET_ITEM(given[I], 2)), *inverse_std = array(PyTuple_GET_ITEM(given[I], 3))

#define GATHER_CALL(NAME)                                                                                              \
    KERNEL(NAME)                                                                                                     \
    {                                                                                                                  \
        TAKES(4);                                                                                                      \
        RAW(0); ARRAY(index, 1); ARRAY(x, 2); ARRAY(t, 3);                                                             \
        RUN(NAME(DATA(images), DATA(index), x->shape[0], x->shape[1], DATA(mean), DATA(inverse_std),                   \
                 elements(mean) == 1, DATA(x));                                                                        \
            pick(DATA(labels), DATA(index), x->shape[0], DATA(t)));                                                    \
    }
GATHER_CALL(gather_u8)
GATHER_CALL(gather_u16)
GATHER_CALL(gather_f32)

#define AUGMENTED_CALL(NAME)                                                                                           \
    KERNEL(NAME##_augmented)                                                                                         \
    {                                                                                                                  \
        TAKES(12);                                                                                                     \
        RAW(0); ARRAY(index, 1); ARRAY(keys, 2);                                                                       \
        WHOLE(height, 3); WHOLE(width, 4); WHOLE(channels, 5); WHOLE(shift, 6); WHOLE(flip, 7);                        \
        double erase = PyFloat_AsDouble(given[8]);                                                                     \
        ARRAY(x, 9); ARRAY(t, 10); ARRAY(changed, 11);                                                                 \
        mp_augmentation how = {(int)height, (int)width, (int)channels, (int)shift, (int)flip, erase};                  \
        RUN(NAME##_augmented(DATA(images), DATA(index), DATA(keys), how, x->shape[0], DATA(mean), DATA(inverse_std),   \
                             elements(mean) == 1, DATA(x), DATA(changed));                                             \
            pick(DATA(labels), DATA(index), x->shape[0], DATA(t)));                                                    \
    }
AUGMENTED_CALL(gather_u8)
AUGMENTED_CALL(gather_u16)
AUGMENTED_CALL(gather_f32)

KERNEL(pick)
{
    TAKES(3);
    ARRAY(labels, 0); ARRAY(index, 1); ARRAY(t, 2);
    RUN(pick(DATA(labels), DATA(index), elements(t), DATA(t)));
}

KERNEL(permute)
{
    TAKES(6);
    ARRAY(image, 0); WHOLE(first, 1); WHOLE(n, 2); WHOLE(half, 3); ARRAY(keys, 4); ARRAY(starts, 5);
    RUN(permute(DATA(image), image->shape[0], image->shape[1], image->strides[0] / 8, first, n, (int)half, DATA(keys),
                DATA(starts)));
}

KERNEL(name_positions)
{
    TAKES(5);
    ARRAY(keys, 0); WHOLE(first, 1); WHOLE(of, 2); ARRAY(shards, 3); WHOLE(salt, 4);
    RUN(name_positions(DATA(keys), keys->shape[0], keys->shape[1], first, of, DATA(shards), (unsigned)salt));
}

/* --- layers --- */

FUNCTION(set_sgemm)
{
    TAKES(3);
    sgemm_address = PyLong_AsVoidPtr(given[0]);
    WHOLE(wide, 1); WHOLE(own, 2);
    sgemm_wide = (int)wide;
    products_are_own = (int)own;
    RUN((void)0);
}

KERNEL(linear)
{
    TAKES(5);
    ARRAY(x, 0); ARRAY(W, 1); ARRAY(y, 3); WHOLE(relu, 4);
    Array *b = given[2] == Py_None ? NULL : array(given[2]);
    RUN(product(x, 0, W, 0, y, 0); if (b) bias(DATA(y), DATA(b), y->shape[0], y->shape[1], (int)relu));
}

KERNEL(input_gradient)
{
    TAKES(3);
    ARRAY(dy, 0); ARRAY(W, 1); ARRAY(dx, 2);
    RUN(product(dy, 0, W, 1, dx, 0));
}

KERNEL(weight_gradient)
{
    TAKES(5);
    ARRAY(x, 0); ARRAY(dy, 1); ARRAY(dW, 2); WHOLE(add, 4);
    Array *db = given[3] == Py_None ? NULL : array(given[3]);
    RUN(product(x, 1, dy, 0, dW, (int)add);
        if (db) column_sums(DATA(dy), DATA(db), dy->shape[0], dy->shape[1], (int)add));
}

KERNEL(bias)
{
    TAKES(3);
    ARRAY(y, 0); ARRAY(b, 1); WHOLE(relu, 2);
    RUN(bias(DATA(y), DATA(b), y->shape[0], y->shape[1], (int)relu));
}

KERNEL(relu_gradient)
{
    TAKES(2);
    ARRAY(dy, 0); ARRAY(y, 1);
    RUN(relu_gradient(DATA(dy), DATA(y), elements(dy)));
}

KERNEL(column_sums)
{
    TAKES(3);
    ARRAY(a, 0); ARRAY(sums, 1); WHOLE(add, 2);
    RUN(column_sums(DATA(a), DATA(sums), a->shape[0], a->shape[1], (int)add));
}

#define CONVERT_CALL(NAME)                                                                                              \
    KERNEL(NAME)                                                                                                     \
    {                                                                                                                  \
        TAKES(2);                                                                                                      \
        ARRAY(a, 0); ARRAY(out, 1);                                                                                    \
        RUN(NAME(DATA(a), DATA(out), elements(a)));                                                                    \
    }
CONVERT_CALL(to_bfloat16)
CONVERT_CALL(to_float16)
CONVERT_CALL(to_tf32)
CONVERT_CALL(pack_bfloat16)
CONVERT_CALL(pack_float16)
CONVERT_CALL(unpack_bfloat16)
CONVERT_CALL(unpack_float16)

KERNEL(dropout)
{
    TAKES(7);
    ARRAY(x, 0); ARRAY(keys, 1); ARRAY(y, 2); WHOLE(layer, 3); WHOLE(threshold, 4); REAL(factor, 5); WHOLE(first, 6);
    RUN(dropout(DATA(x), DATA(keys), DATA(y), x->shape[0], x->shape[1], (uint32_t)layer, (uint32_t)threshold, factor,
                (uint32_t)first));
}

KERNEL(cross_entropy)
{
    TAKES(5);
    ARRAY(z, 0); ARRAY(t, 1); ARRAY(loss, 2); ARRAY(correct, 3); ARRAY(sums, 4);
    RUN(cross_entropy(DATA(z), DATA(t), DATA(z), DATA(loss), DATA(correct), z->shape[0], z->shape[1], DATA(sums)));
}

/* --- merging and updating --- */

KERNEL(check)
{
    TAKES(2);
    ARRAY(a, 0); ARRAY(bad, 1);
    RUN(check(DATA(a), elements(a), DATA(bad)));
}

KERNEL(sum_slots)
{
    TAKES(2);
    ARRAY(out, 0); ARRAY(slots, 1);
    RUN(sum_slots(DATA(out), SLOTS(slots), elements(out)));
}

KERNEL(sgd)
{
    TAKES(5);
    ARRAY(w, 0); ARRAY(g, 1); REAL(scale, 2); REAL(alpha, 3); REAL(l2, 4);
    RUN(sgd(DATA(w), SLOTS(g), elements(w), scale, alpha, l2));
}

KERNEL(momentum)
{
    TAKES(7);
    ARRAY(w, 0); ARRAY(v, 1); ARRAY(g, 2); REAL(scale, 3); REAL(alpha, 4); REAL(mu, 5); REAL(l2, 6);
    RUN(momentum(DATA(w), DATA(v), SLOTS(g), elements(w), scale, alpha, mu, l2));
}

KERNEL(adam)
{
    TAKES(11);
    ARRAY(w, 0); ARRAY(m, 1); ARRAY(v, 2); ARRAY(g, 3);
    REAL(scale, 4); REAL(step, 5); REAL(beta1, 6); REAL(beta2, 7); REAL(epsilon, 8); REAL(l2, 9); REAL(keep, 10);
    RUN(adam(DATA(w), DATA(m), DATA(v), SLOTS(g), elements(w), scale, step, beta1, beta2, epsilon, l2, keep));
}

FUNCTION(meet)
{
    TAKES(6);
    ARRAY(tickets, 0); WHOLE(rank, 1); WHOLE(size, 2); WHOLE(ticket, 3); WHOLE(spins, 4); WHOLE(yields, 5);
    int met = 0;
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS met = meet(DATA(tickets), (int)rank, (int)size, ticket, (int)spins, (int)yields);
    Py_END_ALLOW_THREADS return PyBool_FromLong(met);
}

FUNCTION(address)
{
    TAKES(1);
    ARRAY(a, 0);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromVoidPtr(DATA(a));
}

FUNCTION(instruction_set)
{
    (void)given;
    TAKES(0);
    return PyUnicode_FromString(instruction_set());
}

FUNCTION(threads)
{
    (void)given;
    TAKES(0);
    return PyLong_FromLong(omp_get_max_threads());
}

FUNCTION(record)
{
    TAKES(1);
    Py_CLEAR(tape);
    if (given[0] == Py_None) Py_RETURN_NONE;
    if (!PyList_Check(given[0])) return PyErr_Format(PyExc_TypeError, "calls are written into a list, not %R", given[0]);
    Py_INCREF(given[0]);
    tape = given[0];
    Py_RETURN_NONE;
}

FUNCTION(play)
{
    TAKES(1);
    if (!PyList_Check(given[0])) return PyErr_Format(PyExc_TypeError, "calls are in a list, not in %R", given[0]);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(given[0]); ++i) {
        PyObject *call = PyList_GET_ITEM(given[0], i);
        PyObject *done = PyObject_Vectorcall(PyTuple_GET_ITEM(call, 0), &PyTuple_GET_ITEM(call, 1),
                                             PyTuple_GET_SIZE(call) - 1, NULL);
        if (!done) return NULL;
        Py_DECREF(done);
    }
    Py_RETURN_NONE;
}

#define LISTED(NAME) {#NAME, (PyCFunction)(void (*)(void))call_##NAME, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    LISTED(gather_u8), LISTED(gather_u16), LISTED(gather_f32), LISTED(gather_u8_augmented), LISTED(gather_u16_augmented),
    LISTED(gather_f32_augmented), LISTED(pick), LISTED(permute), LISTED(name_positions), LISTED(set_sgemm),
    LISTED(linear), LISTED(input_gradient), LISTED(weight_gradient), LISTED(bias), LISTED(relu_gradient),
    LISTED(column_sums), LISTED(to_bfloat16), LISTED(to_float16), LISTED(to_tf32), LISTED(pack_bfloat16), LISTED(pack_float16),
    LISTED(unpack_bfloat16), LISTED(unpack_float16), LISTED(dropout),
    LISTED(cross_entropy), LISTED(check), LISTED(sum_slots), LISTED(sgd), LISTED(momentum), LISTED(adam), LISTED(meet),
    LISTED(address), LISTED(instruction_set), LISTED(threads), LISTED(record), LISTED(play), {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy) return NULL;
    array_type = (PyTypeObject *)PyObject_GetAttrString(numpy, "ndarray");
    Py_DECREF(numpy);
    PyObject *module = array_type ? PyModule_Create(&definition) : NULL;
    /* Raised whenever what a function takes or does changes: a library that was built before is not to be trusted. */
    if (module && PyModule_AddIntConstant(module, "VERSION", 7) < 0) Py_CLEAR(module);
    return module;
}
