/* SPDX-License-Identifier: MIT
 *
 * Runs CUDA kernels on the host, one thread block after the other, and reports mistakes
 * that a GPU would turn into wrong results now and then.
 *
 * Fibers. Every thread of a block is a fiber: a stack and saved registers. Fibers are
 * switched by hand (wkvq_emu_switch, or ucontext on other processors). The scheduler runs
 * each READY fiber until it waits or ends:
 *
 *   READY --__syncthreads()--> AT_BARRIER --all threads of the block wait--> READY
 *   READY --shuffle, mma-----> AT_WARP    --all lanes of the warp wait-----> READY
 *   READY --return-----------> DONE
 *
 * When no fiber is READY, release_waiting() releases complete warps, else the whole
 * block. If threads wait at different lines, or some have left, that is reported.
 *
 * Warp operations. Each fiber has two slots for the values it hands in. An exchange
 * alternates between them, so that a fast lane's next value does not overwrite what a
 * slow lane still has to read.
 *
 * Races in shared memory, and in device memory on request: emu_shadow.h. */
#include "kernels/cuda/emu/emu.h"

#include "kernels/cuda/emu/emu_shadow.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__x86_64__)
/* Saves the callee-saved registers on the current stack and the stack pointer in *from,
 * then continues where `to` was saved. */
extern "C" void wkvq_emu_switch(void **from, void *to);
asm(".text\n"
    ".type wkvq_emu_switch,@function\n"
    "wkvq_emu_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    "
    "pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq "
    "%rbp\n"
    "    ret\n"
    ".size wkvq_emu_switch,.-wkvq_emu_switch\n");
#else
#include <ucontext.h>
#endif

namespace emu
{

place here;

namespace
{

enum state { READY, AT_BARRIER, AT_WARP, DONE };

constexpr size_t STACK = 128 * 1024, SHARED = 99 * 1024;
constexpr int MAX_ARRAYS = 32;

#if defined(__x86_64__)
typedef void *context;
#else
typedef ucontext_t context;
#endif

struct fiber {
    context ctx;
    unsigned char *stack;
    unsigned x, y, z; /* thread_idx */
    state at;
    int line;      /* source line of the barrier or warp operation it waits at */
    unsigned mask; /* of that warp operation */
    int turn;      /* the slot that its next exchange uses */
    unsigned char slot[2][LANE_BYTES];
};

/* A static shared array of the block, identified by its declaration. */
struct array {
    const void *declaration;
    size_t at, bytes;
};

struct machine {
    fiber fibers[MAX_THREADS];
    context scheduler;
    int n, current;
    void (*body)(void *);
    void *ctx;
    const char *kernel;
    char error[400];
    bool failed; /* this launch */
    bool watch;  /* device memory has shadows */
    uint64_t seed, random;
    unsigned char *memory;
    shadow *shadows;
    size_t used, dynamic_bytes;
    array arrays[MAX_ARRAYS];
    int n_arrays, block, epoch, warp_epoch[MAX_THREADS / WARP];
};

machine m;

/* Fails the launch; the first report is kept until emu_clear(). */
void report(const char *fmt, ...)
{
    m.failed = true;
    if (m.error[0])
        return;
    const int n =
        snprintf(m.error, sizeof(m.error), "kernel %s, block (%u,%u,%u): ", m.kernel,
                 here.block_idx.x, here.block_idx.y, here.block_idx.z);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m.error + n, sizeof(m.error) - (size_t)n, fmt, ap);
    va_end(ap);
}

/* --- fibers -------------------------------------------------------------------------- */

#if defined(__x86_64__)

void switch_to(context *from, context *to)
{
    wkvq_emu_switch(from, *to);
}

void prepare(fiber *f, void (*entry)(void))
{
    uintptr_t *top = (uintptr_t *)(((uintptr_t)f->stack + STACK) & ~(uintptr_t)63);
    *--top = 0; /* a return address that is never used: keeps the ABI's alignment */
    *--top = (uintptr_t)entry;
    for (int i = 0; i < 6; i++)
        *--top = 0;
    f->ctx = top;
}

#else

void switch_to(context *from, context *to)
{
    swapcontext(from, to);
}

void prepare(fiber *f, void (*entry)(void))
{
    getcontext(&f->ctx);
    f->ctx.uc_stack.ss_sp = f->stack;
    f->ctx.uc_stack.ss_size = STACK;
    f->ctx.uc_link = NULL;
    makecontext(&f->ctx, entry, 0);
}

#endif

/* Returns to the scheduler; the fiber continues when it is READY again. */
void leave(state at, int line)
{
    fiber *f = &m.fibers[m.current];
    f->at = at;
    f->line = line;
    switch_to(&f->ctx, &m.scheduler);
}

void entry(void)
{
    m.body(m.ctx);
    leave(DONE, 0);
    abort(); /* not reached: a fiber that is DONE never runs again */
}

/* --- one block ----------------------------------------------------------------------- */

void place_threads(dim3 block)
{
    int n = 0;
    for (unsigned z = 0; z < block.z; z++)
        for (unsigned y = 0; y < block.y; y++)
            for (unsigned x = 0; x < block.x; x++, n++) {
                m.fibers[n].x = x;
                m.fibers[n].y = y;
                m.fibers[n].z = z;
            }
    m.n = n;
}

uint64_t next_random(void)
{
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return m.random;
}

/* A random number below n, nearly uniform: the upper half of a product, as a division takes longer
 * than the switch to a fiber. */
unsigned random_below(unsigned n)
{
    return (unsigned)((next_random() >> 32) * n >> 32);
}

/* Writes the READY threads in the order in which they run. Returns their number. */
int ready_order(int *order)
{
    int n = 0;
    for (int i = 0; i < m.n; i++)
        if (m.fibers[i].at == READY)
            order[n++] = i;
    for (int i = n - 1; m.seed && i > 0; i--) {
        const unsigned j = random_below((unsigned)i + 1);
        const int t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    return n;
}

void run_fiber(int i)
{
    fiber *f = &m.fibers[i];
    m.current = here.thread = i;
    here.thread_idx = dim3(f->x, f->y, f->z);
    switch_to(&m.scheduler, &f->ctx);
}

/* Makes threads [begin, end) READY if all of them wait in state `at` at the same line.
 * Reports a mistake if some wait elsewhere or have ended. False if nothing was released. */
bool release(int begin, int end, state at, const char *what)
{
    int waiting = 0, first = -1;
    for (int i = begin; i < end; i++)
        if (m.fibers[i].at == at) {
            waiting++;
            first = first < 0 ? i : first;
        }
    if (!waiting)
        return false;
    for (int i = begin; i < end; i++)
        if (m.fibers[i].at != at || m.fibers[i].line != m.fibers[first].line) {
            report("%s in line %d, reached by thread %d, is not reached by thread %d", what,
                   m.fibers[first].line, first, i);
            return false;
        }
    for (int i = begin; i < end; i++)
        m.fibers[i].at = READY;
    return true;
}

/* Releases the lanes of a warp that wait at one warp operation, first of all lane `first`.
 * They must be those that its mask names. */
bool release_lanes(int first)
{
    const int begin = first / WARP * WARP;
    const fiber &f = m.fibers[first];
    unsigned meet = 0;
    for (int i = begin; i < m.n && i < begin + WARP; i++)
        if (m.fibers[i].at == AT_WARP && m.fibers[i].line == f.line)
            meet |= 1u << (i - begin);
    for (int i = begin; i < begin + WARP; i++) {
        const unsigned bit = 1u << (i - begin);
        if (f.mask & ~meet & bit) {
            report("the warp operation in line %d, reached by thread %d, is not reached by "
                   "thread %d",
                   f.line, first, i);
            return false;
        }
        if ((meet & bit) && (m.fibers[i].mask != f.mask || !(f.mask & bit))) {
            report(
                "the warp operation in line %d: its mask 0x%08x is not that of the lanes "
                "that meet, 0x%08x",
                f.line, m.fibers[i].mask, meet);
            return false;
        }
    }
    for (int i = begin; i < m.n && i < begin + WARP; i++)
        if (meet & 1u << (i - begin))
            m.fibers[i].at = READY;
    m.warp_epoch[begin / WARP]++;
    return true;
}

/* Called when no fiber is READY: releases all complete warps, else the block's barrier. */
bool release_waiting(void)
{
    bool any = false;
    for (int i = 0; i < m.n; i++)
        if (m.fibers[i].at == AT_WARP) {
            if (!release_lanes(i))
                return false;
            any = true;
        }
    if (any)
        return true;
    if (!release(0, m.n, AT_BARRIER, "the barrier"))
        return false;
    m.epoch++;
    return true;
}

/* After a failed block its fibers are abandoned in the middle: their stacks are freed. */
void drop_stacks(void)
{
    for (int i = 0; i < MAX_THREADS; i++) {
        free(m.fibers[i].stack);
        m.fibers[i].stack = NULL;
    }
}

void run_block(void)
{
    memset(m.memory, 0xff, m.used); /* by the block before */
    memset((void *)m.shadows, 0xff, m.used / UNIT * sizeof(shadow)); /* UNTOUCHED */
    m.n_arrays = m.epoch = 0;
    m.used = (m.dynamic_bytes + 15) & ~(size_t)15;
    for (int i = 0; i < m.n; i++) {
        fiber *f = &m.fibers[i];
        if (!f->stack && !(f->stack = (unsigned char *)malloc(STACK)))
            abort();
        f->at = READY;
        prepare(f, entry);
    }
    int order[MAX_THREADS];
    do {
        const int n = ready_order(order);
        for (int i = 0; i < n && !m.failed; i++)
            run_fiber(order[i]);
    } while (!m.failed && release_waiting());
}

const char *wrong_launch(dim3 grid, dim3 block, size_t shared_bytes, size_t allowed)
{
    const size_t threads = (size_t)block.x * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS)
        return "a block has 1 to 1024 threads";
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return "the grid is empty or too large";
    if (shared_bytes > SHARED)
        return "more than 99 KiB of shared memory";
    return shared_bytes > allowed ? "more shared memory than cuda_allow_shared() allowed"
                                  : NULL;
}

void open_machine(void)
{
    if (m.memory)
        return;
    m.memory = (unsigned char *)malloc(SHARED);
    m.shadows = (shadow *)malloc(SHARED / UNIT * sizeof(shadow));
    if (!m.memory || !m.shadows)
        abort();
    m.used = SHARED;
    m.watch = getenv("EMU_WATCH");
    if (getenv("EMU_SEED"))
        emu_set_seed(strtoull(getenv("EMU_SEED"), NULL, 0));
}

} // namespace

void mistake(const char *what)
{
    m.kernel = "(none)";
    here.block_idx = dim3(0, 0, 0);
    report("%s", what);
}

bool launchable(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                size_t allowed)
{
    const char *wrong = wrong_launch(grid, block, shared_bytes, allowed);
    m.kernel = kernel;
    here.block_idx = dim3(0, 0, 0);
    if (wrong)
        report("%s", wrong);
    return !wrong;
}

void launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
            void (*body)(void *), void *ctx)
{
    open_machine();
    m.kernel = kernel;
    m.failed = false;
    place_threads(block);
    m.body = body;
    m.ctx = ctx;
    m.dynamic_bytes = shared_bytes;
    here.block_dim = block;
    here.grid_dim = grid;
    const unsigned blocks = grid.x * grid.y * grid.z,
                   start = m.seed ? random_below(blocks) : 0;
    shadows_forget();
    for (unsigned i = 0; i < blocks && !m.failed; i++) {
        const unsigned b = (i + start) % blocks;
        m.block = (int)b;
        here.block_idx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
        run_block();
    }
    if (m.failed)
        drop_stacks();
}

/* Most values are of 4 bytes, and a call of memcpy() takes longer than the rest. */
static inline void copy(void *to, const void *from, size_t bytes)
{
    if (bytes == 4)
        memcpy(to, from, 4);
    else
        memcpy(to, from, bytes);
}

void barrier(int line)
{
    leave(AT_BARRIER, line);
}

int exchange(const void *in, size_t bytes, int line, unsigned mask)
{
    fiber *f = &m.fibers[m.current];
    const int turn = f->turn;
    copy(f->slot[turn], in, bytes);
    f->mask = mask;
    leave(AT_WARP, line);
    f->turn = !turn; /* a slower lane may still read this slot */
    return turn;
}

void peek(void *out, size_t bytes, int from, int slot)
{
    copy(out, m.fibers[m.current / WARP * WARP + from].slot[slot], bytes);
}

/* --- shared memory ------------------------------------------------------------------- */

size_t dynamic_shared_bytes(void)
{
    return m.dynamic_bytes;
}

unsigned char *shared_memory(void)
{
    return m.memory;
}

size_t static_shared(const void *declaration, size_t bytes)
{
    for (int i = 0; i < m.n_arrays; i++)
        if (m.arrays[i].declaration == declaration)
            return m.arrays[i].at;
    if (m.n_arrays == MAX_ARRAYS || m.used + bytes > SHARED) {
        report("too much shared memory: %zu bytes", m.used + bytes);
        return 0;
    }
    m.arrays[m.n_arrays] = {declaration, m.used, bytes};
    m.used += (bytes + 15) & ~(size_t)15;
    return m.arrays[m.n_arrays++].at;
}

void out_of_bounds(long index, long count)
{
    report("thread %d: shared memory index %ld, the array ends at %ld", m.current, index,
           count);
}

void misaligned(const char *what, size_t unit)
{
    report("thread %d: an access to %s memory is not aligned to its %zu bytes", m.current,
           what, unit);
}

static mark me(void)
{
    return {m.block, m.current, m.epoch, m.warp_epoch[m.current / WARP]};
}

bool touch(size_t at, size_t bytes, bool write)
{
    const mark by = me();
    for (size_t u = at / UNIT; u <= (at + bytes - 1) / UNIT; u++) {
        shadow *s = &m.shadows[u];
        if (!record(s, by, write)) {
            report("threads %d and %d both use byte %zu of shared memory with no barrier "
                   "between",
                   m.current, s->write.thread >= 0 ? s->write.thread : s->read.thread, at);
            return false;
        }
    }
    return true;
}

/* A byte has a shadow of its own, so that neighbouring bytes do not race. */
void touch_global(const void *p, size_t bytes, bool write)
{
    const uintptr_t at = (uintptr_t)p;
    if (!m.watch)
        return;
    if (bytes > 1 && at % bytes) {
        misaligned("device", bytes);
        return;
    }
    for (uintptr_t u = at / UNIT; u <= (at + bytes - 1) / UNIT; u++) {
        const uintptr_t key = bytes == 1 ? ~at : u;
        if (!record(shadow_of(key), me(), write)) {
            report("threads of one launch race for device memory at %p", p);
            return;
        }
    }
}

} // namespace emu

const char *emu_error(void)
{
    return emu::m.error;
}

void emu_clear(void)
{
    emu::m.error[0] = 0;
}

void emu_set_seed(uint64_t seed)
{
    emu::m.seed = seed;
    emu::m.random = seed * 0x9e3779b97f4a7c15u | 1;
}
