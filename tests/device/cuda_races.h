/* What a GPU may do in any order: cuda_shim.h runs threads one after the other, and this tells where the order counts.
 *
 * The kernels are compiled with -fsanitize=thread, whose calls before every read and write come here in place of its own
 * library. A word of memory remembers who wrote and who read it last. Two threads must not touch it, one of them writing,
 *   - of one block without a barrier between;
 *   - of two blocks at all, but where a fence, a barrier and then a ticket (atomicAdd) of the one are followed by a ticket
 *     of the same number, a barrier and a fence of the other.
 * Writing what is there already does no harm. Shared memory that nobody in the block has written is not to be read.
 */
#pragma once
#include <unordered_map>
#include <vector>

#define UNSEEN __attribute__((no_sanitize("thread")))

struct Access { int thread; unsigned block, interval, fences; }; /* of thread -1 there was none, -2 are several */
struct Word {
    unsigned launch, block;
    bool known; /* that it is written at all: of structures that a function gives back nobody tells */
    Access wrote[4], read[4]; /* byte by byte */
};
struct Ticket { unsigned order, interval; int thread; std::vector<unsigned> fences; }; /* of a block, at an address */
struct Doubt { const char *what; char *at; unsigned size; char before[16]; Access other; };

static std::unordered_map<size_t, Word> *words;
static std::unordered_map<unsigned, std::unordered_map<void *, Ticket>> *tickets;
static unsigned launches, block_number, interval, fence_of[1024], fenced_in[1024];
static unsigned taken;
static bool behind_ticket[1024];
static Ticket last_ticket; /* of this block */
static Doubt doubt;
extern char __bss_start[], _end[]; /* between them lies what is static, and so what is shared */

struct Aside { /* what goes on here is no work of the kernel */
    UNSEEN Aside() { inside_kernel = false; }
    UNSEEN ~Aside() { inside_kernel = true; }
};

UNSEEN static void end_with(const char *what, const void *at, Access other)
{
    fprintf(stderr, "%s: thread %u of block %u %s thread %d of block %u (%p)\n", kernel_name, current, block_number, what,
            other.thread, other.block, at);
    abort();
}

/* A write that collides is a mistake if it has changed anything. */
UNSEEN static void settle()
{
    if (doubt.what && memcmp(doubt.at, doubt.before, doubt.size)) end_with(doubt.what, doubt.at, doubt.other);
    doubt.what = nullptr;
}

/* Whether what the other did is over, and seen, before what this thread does now */
UNSEEN static bool ordered(const Access &other)
{
    if (other.thread == -1) return true;
    if (other.block == block_number) return other.thread == (int)current || other.interval != interval;
    if (other.thread == -2 || !behind_ticket[current]) return false;
    for (const auto &mine : (*tickets)[block_number]) {
        auto theirs = (*tickets)[other.block].find(mine.first);
        if (theirs != (*tickets)[other.block].end() && theirs->second.order < mine.second.order &&
            theirs->second.fences[other.thread] > other.fences)
            return true;
    }
    return false;
}

UNSEEN static void doubt_it(const char *what, char *at, unsigned size, const Access &other)
{
    doubt = {what, at, size, {}, other};
    memcpy(doubt.before, at, size);
}

UNSEEN static void touch_byte(Access &wrote, Access &read, char *at, unsigned size, bool writes)
{
    Access now = {(int)current, block_number, interval, fence_of[current]};
    if (!ordered(wrote)) {
        if (!writes) end_with("reads what was written without order by", at, wrote);
        doubt_it("writes what was written without order by", at, size, wrote);
    } else if (writes && !ordered(read)) doubt_it("writes what was read without order by", at, size, read);
    if (writes) wrote = now;
    else if (read.thread == -1 || (read.block == block_number && read.interval != interval)) read = now;
    else if (read.block != block_number) read = now, read.thread = -2;
    else if (read.thread != (int)current) read.thread = -2;
}

UNSEEN static void touch(void *pointer, unsigned size, bool writes)
{
    if (!inside_kernel) return;
    Aside aside;
    settle();
    char *at = (char *)pointer;
    char *stack = threads[current].stack;
    bool mine = at >= stack && at < stack + STACK, of_shim = at >= (char *)coordinates_of_shim && at < (char *)(coordinates_of_shim + 4);
    if (mine || of_shim) return;
    bool in_room = at >= (char *)room_of_launch && at < (char *)room_of_launch + room_size;
    bool shared = in_room || (at >= __bss_start && at < _end);
    for (char *end = at + size, *part = at; part < end;) {
        Word &word = (*words)[(size_t)part >> 2];
        if (word.launch != launches || (shared && word.block != block_number)) {
            word.launch = launches, word.block = block_number;
            for (int k = 0; k < 4; ++k) word.wrote[k].thread = word.read[k].thread = -1;
        }
        word.known |= writes;
        do {
            Access &wrote = word.wrote[(size_t)part & 3];
            if (shared && !writes && wrote.thread == -1 && (in_room || word.known))
                end_with("reads shared memory that nobody wrote, not", part, {(int)current, block_number, 0, 0});
            touch_byte(wrote, word.read[(size_t)part & 3], at, size, writes);
        } while (++part < end && (size_t)part & 3);
    }
}

UNSEEN static void begin_launch()
{
    if (!words) words = new std::unordered_map<size_t, Word>, tickets = new std::unordered_map<unsigned, std::unordered_map<void *, Ticket>>;
    ++launches;
    if (words->size() > 1 << 20) words->clear();
    tickets->clear();
}

UNSEEN static void begin_block(unsigned number)
{
    block_number = number;
    memset(fence_of, 0, sizeof fence_of);
    memset(behind_ticket, 0, sizeof behind_ticket);
    last_ticket.order = 0;
}

UNSEEN static void fence()
{
    ++fence_of[current];
    fenced_in[current] = interval;
    behind_ticket[current] = last_ticket.order && (interval > last_ticket.interval || (int)current == last_ticket.thread);
}

UNSEEN static void take_ticket(void *at)
{
    Aside aside;
    last_ticket = {++taken, interval, (int)current, std::vector<unsigned>(1024)};
    for (unsigned k = 0; k < 1024; ++k)
        if (fenced_in[k] < interval || k == current) last_ticket.fences[k] = fence_of[k];
    (*tickets)[block_number][at] = last_ticket;
    memset(behind_ticket, 0, sizeof behind_ticket);
}

#define HOOKS(N)                                                                                                       \
    UNSEEN void __tsan_read##N(void *at) { touch(at, N, false); }                                                      \
    UNSEEN void __tsan_write##N(void *at) { touch(at, N, true); }                                                      \
    UNSEEN void __tsan_unaligned_read##N(void *at) { touch(at, N, false); }                                            \
    UNSEEN void __tsan_unaligned_write##N(void *at) { touch(at, N, true); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
UNSEEN void __tsan_read_range(void *at, size_t size) { touch(at, (unsigned)size, false); }
UNSEEN void __tsan_write_range(void *at, size_t size) { touch(at, (unsigned)size, true); }
UNSEEN void __tsan_init() {}
UNSEEN void __tsan_func_entry(void *) {}
UNSEEN void __tsan_func_exit() {}
}
