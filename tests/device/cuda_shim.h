/* Enough of CUDA to run kernels/cuda.cu on a CPU: blocks one after the other, the threads of a block as coroutines.
 *
 * Threads take turns at __syncthreads, in an order that can be turned round, so what depends on the order shows. A barrier
 * that some threads of a block pass and others do not, ends the program; and with cuda_races.h whatever a GPU might do in
 * another order. Built by tests/device/shim.py.
 */
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define LEAVE(keep, stack, size) __sanitizer_start_switch_fiber(keep, stack, size)
#define ENTER(keep, stack, size) __sanitizer_finish_switch_fiber(keep, stack, size)
#else
#define LEAVE(keep, stack, size) ((void)(keep), (void)(stack), (void)(size))
#define ENTER(keep, stack, size) ((void)(keep), (void)(stack), (void)(size))
#endif

#define __global__
#define __shared__ static /* there is one block at a time */
#define __launch_bounds__(...)
#define __grid_constant__
#define ROOM(name) float *name = room_here() /* exactly as large as it was asked for, so a sanitizer sees its end */

struct Place { unsigned x, y, z; };
static Place coordinates_of_shim[4];
#define threadIdx coordinates_of_shim[0]
#define blockIdx coordinates_of_shim[1]
#define blockDim coordinates_of_shim[2]
#define gridDim coordinates_of_shim[3]

static const size_t STACK = 64 << 10;
enum State { READY, WAITING, DONE };
struct Thread {
    ucontext_t context;
    State state;
    char *stack;
    void *fake;
};
static Thread threads[1024];
static unsigned current;
static ucontext_t scheduler;
static void *scheduler_fake;
static const void *scheduler_stack;
static size_t scheduler_size;
static void (*kernel)(void **);
static const char *kernel_name;
static void **parameters;
static bool backward, inside_kernel;
static float *room_of_launch;
static size_t room_size;

#ifdef RACES
#include "cuda_races.h"
#else
#define UNSEEN
static unsigned interval;
static void settle() {}
static void begin_launch() {}
static void begin_block(unsigned) {}
static void fence() {}
static void take_ticket(void *) {}
#endif

UNSEEN static float *room_here() { return room_of_launch; }

UNSEEN static void yield(State state)
{
    Thread &me = threads[current];
    me.state = state;
    LEAVE(state == DONE ? nullptr : &me.fake, scheduler_stack, scheduler_size);
    swapcontext(&me.context, &scheduler);
    ENTER(me.fake, &scheduler_stack, &scheduler_size);
}

UNSEEN static void body()
{
    ENTER(nullptr, &scheduler_stack, &scheduler_size);
    kernel(parameters);
    yield(DONE);
}

UNSEEN static inline void __syncthreads() { yield(WAITING); }
UNSEEN static inline void __threadfence() { fence(); }
UNSEEN static inline unsigned atomicAdd(unsigned *at, unsigned what)
{
    unsigned old = *at;
    *at += what;
    take_ticket(at);
    return old;
}

UNSEEN static void prepare(unsigned count)
{
    for (unsigned number = 0; number < count; ++number) {
        Thread &thread = threads[number];
        if (!thread.stack) thread.stack = (char *)malloc(STACK);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack;
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        thread.state = READY;
        thread.fake = nullptr;
        makecontext(&thread.context, body, 0);
    }
}

/* All threads of a block once, to their next barrier or their end; how many came to a barrier. */
UNSEEN static unsigned round_of(unsigned count)
{
    unsigned waiting = 0;
    ++interval;
    for (unsigned turn = 0; turn < count; ++turn) {
        current = backward ? count - 1 - turn : turn;
        Thread &thread = threads[current];
        threadIdx.x = current % blockDim.x;
        threadIdx.y = current / blockDim.x % blockDim.y;
        threadIdx.z = current / blockDim.x / blockDim.y;
        LEAVE(&scheduler_fake, thread.stack, STACK);
        inside_kernel = true;
        swapcontext(&scheduler, &thread.context);
        inside_kernel = false;
        settle();
        ENTER(scheduler_fake, nullptr, nullptr);
        waiting += thread.state == WAITING;
    }
    return waiting;
}

struct Entry { const char *name; const char *types; void (*call)(void **); };

/* A letter for each parameter: p a pointer, l i s b whole numbers by size, f d floating ones, v a structure by value */
template <class T> struct Letter {
    static const char value = sizeof(T) > 8 ? 'v' : sizeof(T) == 8 ? 'l' : sizeof(T) == 4 ? 'i' : sizeof(T) == 2 ? 's' : 'b';
};
template <> struct Letter<float> { static const char value = 'f'; };
template <> struct Letter<double> { static const char value = 'd'; };
template <class T> struct Letter<T *> { static const char value = 'p'; };
template <class... A> const char *letters(void (*)(A...))
{
    static const char text[] = {Letter<A>::value..., 0};
    return text;
}

template <size_t... I> struct Numbers {};
template <size_t N, size_t... I> struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I> struct Count<0, I...> { typedef Numbers<I...> type; };
template <class... A, size_t... I> void call_with(void (*f)(A...), void **given, Numbers<I...>) { f(*(A *)given[I]...); }
template <class... A> void unpack(void (*f)(A...), void **given) { call_with(f, given, typename Count<sizeof...(A)>::type()); }

static const Entry *find(const char *name);

extern "C" const char *types_of(const char *name)
{
    const Entry *entry = find(name);
    return entry ? entry->types : nullptr;
}

extern "C" void turn_round(int yes) { backward = yes; }

extern "C" UNSEEN void launch(const char *name, const unsigned *grid, const unsigned *block, unsigned long shared, void **given)
{
    kernel = find(name)->call;
    kernel_name = name;
    parameters = given;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    unsigned count = block[0] * block[1] * block[2], blocks = grid[0] * grid[1] * grid[2];
    if (count == 0 || count > 1024 || blocks == 0) abort();
    room_of_launch = (float *)malloc(room_size = shared);
    begin_launch();
    for (unsigned turn = 0; turn < blocks; ++turn) {
        unsigned number = backward ? blocks - 1 - turn : turn;
        blockIdx = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
        begin_block(number);
        prepare(count);
        while (unsigned waiting = round_of(count))
            if (waiting != count) {
                fprintf(stderr, "%s: %u of %u threads came to a barrier\n", name, waiting, count);
                abort();
            }
    }
    free(room_of_launch);
}
