/* The arithmetic of augmentation, beside maths.h: what happens to an image by its key, and which pixel is seen where.
 *
 * All of it is exact, or rounded once an operation in float64, so every device draws the same; device/augmentation.py is
 * the oracle, and says what each number is for.
 */
#ifndef MPI_PARALLEL_AUGMENT_H
#define MPI_PARALLEL_AUGMENT_H

#include "maths.h"

/* combine_int of device/hashing.py, a word at a time */
FN unsigned mp_hash(unsigned state, unsigned word) { return mp_mix(state * 0x9E3779B1u + word + 0x7F4A7C15u); }

/* In [0, 1), by the key of the row and the purpose */
FN double mp_uniform(unsigned key, unsigned purpose)
{
    return mp_mix(mp_mix(key) + mp_hash(mp_hash(0u, 6u), purpose)) * 2.3283064365386963e-10;
}

/* What is done to images of so many rows, columns and colours; see Augmentation in device/interface.py */
typedef struct { int height, width, channels, shift, flip; double erase; } mp_augmentation;

/* What is done to one: it shows what lies so far down and to the right, mirrored or not, but for a rectangle. */
typedef struct { int down, right, mirrored, top, bottom, left, stop; } mp_change;

FN double mp_between(double low, double a, double high) { return a < low ? low : a > high ? high : a; }

FN mp_change mp_changed(unsigned key, mp_augmentation how)
{
    mp_change change = {0, 0, 0, 0, 0, 0, 0};
    int ways = 2 * how.shift + 1;
    change.down = (int)(mp_uniform(key, 0u) * ways) - how.shift;
    change.right = (int)(mp_uniform(key, 1u) * ways) - how.shift;
    change.mirrored = how.flip && mp_uniform(key, 2u) < 0.5;
    if (!(mp_uniform(key, 3u) < how.erase)) return change;
    double side = sqrt((double)(how.height * how.width) * (0.02 + (1.0 / 3.0 - 0.02) * mp_uniform(key, 4u)));
    double power = mp_uniform(key, 5u) * 1.1989476363991853, root = 1.0;
    for (int term = 8; term > 0; --term) root = 1.0 + power * root / term; /* e^power */
    root *= 0.5477225575051661;
    double height = mp_between(1.0, rint(side * root), how.height), width = mp_between(1.0, rint(side / root), how.width);
    change.top = (int)(mp_uniform(key, 6u) * (how.height - height + 1.0));
    change.left = (int)(mp_uniform(key, 7u) * (how.width - width + 1.0));
    change.bottom = change.top + (int)height;
    change.stop = change.left + (int)width;
    return change;
}

/* What a line shows: in columns from `begin` to `end` the pixels first + step * column, and nothing, which is 0, elsewhere
 * and where it is erased, from `left` to `stop`. */
typedef struct { int begin, end, first, step, left, stop; } mp_line;

FN mp_line mp_line_of(mp_change change, mp_augmentation how, int i)
{
    int from = i + change.down, shown = from >= 0 && from < how.height;
    int moved = change.mirrored ? -change.right : change.right;
    int erased = i >= change.top && i < change.bottom;
    mp_line line;
    line.begin = shown && moved < 0 ? -moved : 0;
    line.end = !shown ? 0 : moved > 0 ? how.width - moved : how.width;
    line.first = from * how.width + change.right + (change.mirrored ? how.width - 1 : 0);
    line.step = change.mirrored ? -1 : 1;
    line.left = erased ? change.left : how.width;
    line.stop = erased ? change.stop : how.width;
    return line;
}

#endif
