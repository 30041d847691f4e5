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

#include "calls.c"

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
