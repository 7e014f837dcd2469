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
 * Races. Shared memory has a shadow: for every UNIT bytes the last writer and the last
 * reader, and the epoch of each. A barrier starts a new epoch of the block, a warp
 * operation one of the warp. Two accesses to the same bytes, one of them a write, are
 * ordered if they have one thread, or different block epochs, or one warp and different
 * warp epochs:
 *
 *   memory   [ .... bytes .... ]
 *   shadows  [w,r][w,r][w,r] ...     w = (thread, epoch, warp epoch) of the last write
 *                                    r = the same of the last read; SEVERAL: more than one
 *
 * Device memory is one range of addresses that is inaccessible outside launches and copies
 * (emu_fence), so that a host access crashes as it would on a machine with a GPU. */
#include "kernels/cuda/emu/emu.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

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

constexpr size_t STACK = 128 * 1024, SHARED = 256 * 1024;
constexpr size_t UNIT = 2; /* bytes that one shadow covers */
constexpr int MAX_ARRAYS = 32, NOBODY = -1, SEVERAL = -2;

#if defined(__x86_64__)
typedef void *context;
#else
typedef ucontext_t context;
#endif

struct fiber {
    context ctx;
    unsigned char *stack;
    state at;
    int line; /* source line of the barrier or warp operation it waits at */
    int turn; /* the slot that its next exchange uses */
    unsigned char slot[2][LANE_BYTES];
};

/* The last accesses to a unit of shared memory: the thread, NOBODY or SEVERAL, and the
 * epochs of the block and of the thread's warp. */
struct shadow {
    int writer, write_epoch, write_warp_epoch;
    int reader, read_epoch, read_warp_epoch;
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
    uint64_t seed, random;
    unsigned char *memory;
    shadow *shadows;
    size_t used, dynamic_bytes;
    array arrays[MAX_ARRAYS];
    int n_arrays, epoch, warp_epoch[MAX_THREADS / WARP];
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

uint64_t next_random(void)
{
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return m.random;
}

void shuffle_order(int *order, int n)
{
    for (int i = 0; i < n; i++)
        order[i] = i;
    for (int i = n - 1; m.seed && i > 0; i--) {
        const int j = (int)(next_random() % (uint64_t)(i + 1));
        const int t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

void run_fiber(int i)
{
    const dim3 b = here.block_dim;
    m.current = here.thread = i;
    here.thread_idx =
        dim3((unsigned)i % b.x, (unsigned)i / b.x % b.y, (unsigned)i / (b.x * b.y));
    switch_to(&m.scheduler, &m.fibers[i].ctx);
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

/* Called when no fiber is READY: releases all complete warps, else the block's barrier. */
bool release_waiting(void)
{
    bool any = false;
    for (int w = 0; w * WARP < m.n; w++)
        for (int i = w * WARP; i < m.n && i < (w + 1) * WARP; i++)
            if (m.fibers[i].at == AT_WARP) {
                const int end = (w + 1) * WARP < m.n ? (w + 1) * WARP : m.n;
                if (!release(w * WARP, end, AT_WARP, "the warp operation"))
                    return false;
                m.warp_epoch[w]++;
                any = true;
                break;
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
    m.n_arrays = m.epoch = 0;
    m.used = (m.dynamic_bytes + 15) & ~(size_t)15;
    memset(m.memory, 0xff, SHARED);
    for (size_t i = 0; i < SHARED / UNIT; i++)
        m.shadows[i].writer = m.shadows[i].reader = NOBODY;
    for (int i = 0; i < m.n; i++) {
        fiber *f = &m.fibers[i];
        if (!f->stack && !(f->stack = (unsigned char *)malloc(STACK)))
            abort();
        f->at = READY;
        prepare(f, entry);
    }
    int order[MAX_THREADS];
    do {
        shuffle_order(order, m.n);
        for (int i = 0; i < m.n && !m.failed; i++)
            if (m.fibers[order[i]].at == READY)
                run_fiber(order[i]);
    } while (!m.failed && release_waiting());
}

const char *check_launch(dim3 grid, dim3 block, size_t shared_bytes)
{
    const size_t threads = (size_t)block.x * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS)
        return "a block has 1 to 1024 threads";
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return "the grid is empty or too large";
    return shared_bytes > 99 * 1024 ? "more than 99 KiB of shared memory" : NULL;
}

} // namespace

void launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
            void (*body)(void *), void *ctx)
{
    m.kernel = kernel;
    m.failed = false;
    if (!m.memory) {
        m.memory = (unsigned char *)malloc(SHARED);
        m.shadows = (shadow *)malloc(SHARED / UNIT * sizeof(shadow));
        if (!m.memory || !m.shadows)
            abort();
        if (getenv("EMU_SEED"))
            emu_set_seed(strtoull(getenv("EMU_SEED"), NULL, 0));
    }
    here.block_idx = dim3(0, 0, 0);
    const char *wrong = check_launch(grid, block, shared_bytes);
    if (wrong) {
        report("%s", wrong);
        return;
    }
    m.n = (int)(block.x * block.y * block.z);
    m.body = body;
    m.ctx = ctx;
    m.dynamic_bytes = shared_bytes;
    here.block_dim = block;
    here.grid_dim = grid;
    const unsigned blocks = grid.x * grid.y * grid.z,
                   start = m.seed ? (unsigned)(next_random() % blocks) : 0;
    emu_fence(true);
    for (unsigned i = 0; i < blocks && !m.failed; i++) {
        const unsigned b = (i + start) % blocks;
        here.block_idx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
        run_block();
    }
    emu_fence(false);
    if (m.failed)
        drop_stacks();
}

void barrier(int line)
{
    leave(AT_BARRIER, line);
}

int exchange(const void *in, size_t bytes, int line)
{
    fiber *f = &m.fibers[m.current];
    const int turn = f->turn;
    if (m.n % WARP) {
        report("warp operation in line %d: a block of %d threads", line, m.n);
        return turn;
    }
    memcpy(f->slot[turn], in, bytes);
    leave(AT_WARP, line);
    f->turn = !turn; /* a slower lane may still read this slot */
    return turn;
}

void peek(void *out, size_t bytes, int from, int slot)
{
    memcpy(out, m.fibers[m.current / WARP * WARP + from].slot[slot], bytes);
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
    if (m.n_arrays == MAX_ARRAYS || m.used + bytes > 99 * 1024) {
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

/* True if this thread's access cannot race with an earlier one by `other`. */
static bool ordered(int other, int epoch, int warp_epoch)
{
    const int warp = m.current / WARP;
    return other == NOBODY || other == m.current || epoch != m.epoch ||
           (other >= 0 && other / WARP == warp && warp_epoch != m.warp_epoch[warp]);
}

bool touch(size_t at, size_t bytes, bool write)
{
    const int warp = m.current / WARP;
    for (size_t u = at / UNIT; u <= (at + bytes - 1) / UNIT; u++) {
        shadow *s = &m.shadows[u];
        if (!ordered(s->writer, s->write_epoch, s->write_warp_epoch) ||
            (write && !ordered(s->reader, s->read_epoch, s->read_warp_epoch))) {
            report("threads %d and %d both use byte %zu of shared memory with no barrier "
                   "between",
                   m.current, s->writer >= 0 ? s->writer : s->reader, at);
            return false;
        }
        if (write) {
            s->writer = m.current;
            s->write_epoch = m.epoch;
            s->write_warp_epoch = m.warp_epoch[warp];
            continue;
        }
        const bool first =
            s->reader == NOBODY || s->reader == m.current || s->read_epoch != m.epoch;
        /* The last reader of a warp stands for the earlier ones of that warp. */
        const bool same_warp = s->reader >= 0 && s->reader / WARP == warp;
        s->reader = first || same_warp ? m.current : SEVERAL;
        s->read_epoch = m.epoch;
        s->read_warp_epoch = m.warp_epoch[warp];
    }
    return true;
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

namespace
{

/* Device memory: one reserved range of addresses. An allocation starts with a page that
 * holds its length. */
constexpr size_t ARENA = (size_t)64 << 30, HEAD = 4096;
unsigned char *arena;
size_t arena_used;

size_t whole_pages(size_t bytes)
{
    return (bytes + HEAD + 4095) & ~(size_t)4095;
}

} // namespace

void emu_fence(bool open)
{
    if (arena_used &&
        mprotect(arena, arena_used, open ? PROT_READ | PROT_WRITE : PROT_NONE))
        abort();
}

void *emu_alloc(size_t bytes)
{
    if (!arena) {
        void *p = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        arena = (unsigned char *)p;
    }
    if (bytes > ARENA || whole_pages(bytes) > ARENA - arena_used)
        return NULL;
    unsigned char *p = arena + arena_used;
    arena_used += whole_pages(bytes);
    emu_fence(true);
    memcpy(p, &bytes, sizeof(bytes));
    emu_fence(false);
    return p + HEAD;
}

void emu_free(void *p)
{
    if (!p)
        return;
    unsigned char *head = (unsigned char *)p - HEAD;
    size_t bytes;
    emu_fence(true);
    memcpy(&bytes, head, sizeof(bytes));
    emu_fence(false);
    madvise(head, whole_pages(bytes), MADV_DONTNEED);
}

void emu_set_seed(uint64_t seed)
{
    emu::m.seed = seed;
    emu::m.random = seed * 0x9e3779b97f4a7c15u | 1;
}
