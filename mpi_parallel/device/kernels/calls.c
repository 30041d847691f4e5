/* A part of module.c: each function of the Python module, by its arguments. Those of KERNEL may be written down. */

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
