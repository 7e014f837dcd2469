/* SPDX-License-Identifier: MIT
 *
 * The emulated card: allocations and their limits, failures, delayed copies. */
#include "kernels/cuda/emu/emu_card.h"

#include "kernels/cuda/emu/emu_runtime.h"

#include <stdlib.h>

namespace
{

constexpr int MOST = 4096; /* allocations that may exist at a time */

struct block {
    void *p;
    size_t bytes;
};

struct copy {
    void *dst;
    const void *src;
    size_t bytes;
};

block blocks[MOST];
copy later[64];
long done; /* copies executed so far */

long number(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 0) : otherwise;
}

block *block_at(const void *p)
{
    for (block &b : blocks)
        if (b.p == p)
            return &b;
    return NULL;
}

struct emu_card from_environment(void)
{
    struct emu_card c = {};
    c.devices = (int)number("EMU_DEVICES", 1);
    c.driver = (int)number("EMU_DRIVER", 13000);
    c.major = 8;
    c.total = (uint64_t)number("EMU_MEMORY", 1L << 34);
    c.pinned = (uint64_t)1 << 34;
    c.fail_at = number("EMU_FAIL_AT", 0);
    return c;
}

} // namespace

struct emu_card *emu_card(void)
{
    static struct emu_card card = from_environment();
    return &card;
}

void emu_card_closed(void)
{
    struct emu_card *c = emu_card();
    emu_card_copies_done(c->copies);
    c->calls = 0;
    c->failed = cudaSuccess;
}

int emu_card_call(void)
{
    struct emu_card *c = emu_card();
    if (++c->calls == c->fail_at)
        c->failed = cudaErrorIllegalAddress;
    return c->failed;
}

int emu_card_alloc(void **out, size_t bytes)
{
    struct emu_card *c = emu_card();
    block *b = block_at(NULL);
    *out = NULL;
    if (emu_card_call())
        return c->failed;
    if (!b || bytes > c->total - c->live || !(*out = emu_alloc(bytes)))
        return cudaErrorMemoryAllocation;
    *b = {*out, bytes};
    c->live += bytes;
    c->peak = c->live > c->peak ? c->live : c->peak;
    return cudaSuccess;
}

/* Waits for all copies first, as cudaFree does. */
void emu_card_free(void *p)
{
    struct emu_card *c = emu_card();
    block *b = block_at(p);
    if (!p || !b)
        return;
    emu_card_copies_done(c->copies);
    c->live -= b->bytes;
    *b = {};
    emu_free(p);
}

int emu_card_pin(void **out, size_t bytes)
{
    struct emu_card *c = emu_card();
    block *b = block_at(NULL);
    if (emu_card_call())
        return c->failed;
    if (!b || bytes > c->pinned - c->held || !(*out = malloc(bytes)))
        return cudaErrorMemoryAllocation;
    *b = {*out, bytes};
    c->held += bytes;
    return cudaSuccess;
}

void emu_card_unpin(void *p)
{
    block *b = block_at(p);
    if (!p || !b)
        return;
    emu_card_copies_done(emu_card()->copies);
    emu_card()->held -= b->bytes;
    *b = {};
    free(p);
}

void emu_card_copy_later(void *dst, const void *src, size_t bytes)
{
    struct emu_card *c = emu_card();
    if (c->copies - done == (long)(sizeof(later) / sizeof(later[0])))
        emu_card_copies_done(done + 1);
    later[c->copies++ % 64] = {dst, src, bytes};
}

void emu_card_copies_done(long n)
{
    for (; done < n; done++) {
        const copy &c = later[done % 64];
        emu_fence(true);
        memcpy(c.dst, c.src, c.bytes);
        emu_fence(false);
    }
}
