/* SPDX-License-Identifier: MIT
 *
 * The emulated card: allocations and their limits, and failures. */
#include "kernels/cuda/emu/emu_card.h"

#include "kernels/cuda/emu/emu_queue.h"
#include "kernels/cuda/emu/emu_runtime.h"

extern "C" {
#include "kernels/cuda/cuda_fill.h"
}

#include <map>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace
{

constexpr int MOST = 4096; /* allocations that may exist at a time */

struct block {
    void *p;
    size_t bytes;
};

block blocks[MOST];
std::map<const void *, size_t> shared_bytes; /* allowed, by kernel */

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
    c.major = (int)number("EMU_MAJOR", 8);
    c.total = (uint64_t)number("EMU_MEMORY", 1L << 34);
    c.pinned = (uint64_t)1 << 34;
    c.fail_at = number("EMU_FAIL_AT", 0);
    c.early_copies = number("EMU_EARLY_COPIES", 0);
    c.number = number("EMU_NUMBER", getpid());
    c.nccl = (int)number("EMU_NCCL", 0);
    c.nccl_fails_in = (int)number("EMU_NCCL_FAILS_IN", 0);
    c.cudnn = (int)number("EMU_CUDNN", 0);
    c.cublaslt = (int)number("EMU_CUBLASLT", 130200);
    return c;
}

} // namespace

struct emu_card *emu_card(void)
{
    static struct emu_card card = from_environment();
    return &card;
}

void emu_card_opened(void)
{
    struct emu_card *c = emu_card();
    c->calls = 0;
    c->failed = c->last = c->capture_error = cudaSuccess;
    shared_bytes.clear();
    emu_clear();
}

bool emu_card_fails_next(void)
{
    const struct emu_card *c = emu_card();
    return c->failed || c->calls + 1 == c->fail_at;
}

int emu_card_call(void)
{
    struct emu_card *c = emu_card();
    if (++c->calls == c->fail_at)
        c->failed = cudaErrorIllegalAddress;
    return c->failed;
}

int emu_card_call_outside(void)
{
    struct emu_card *c = emu_card();
    const int e = emu_card_call();
    if (e || emu::captured() < 0)
        return e;
    return c->last = c->capture_error = cudaErrorStreamCaptureUnsupported;
}

int emu_card_graph_call(const char *name)
{
    struct emu_card *c = emu_card();
    const int e = emu_card_call();
    if (e || !c->graph_fails || strcmp(c->graph_fails, name))
        return e;
    return c->last = cudaErrorNotSupported;
}

int emu_card_alloc(void **out, size_t bytes)
{
    struct emu_card *c = emu_card();
    block *b = block_at(NULL);
    *out = NULL;
    const int e = emu_card_call_outside();
    if (e)
        return e;
    if (!b || bytes > c->total - c->live || !(*out = emu_alloc(bytes)))
        return cudaErrorMemoryAllocation;
    *b = {*out, bytes};
    c->live += bytes;
    c->peak = c->live > c->peak ? c->live : c->peak;
    return cudaSuccess;
}

/* Freeing memory spoils a capture, and does not happen. */
static bool spoils(void)
{
    struct emu_card *c = emu_card();
    if (emu::captured() >= 0)
        c->last = c->capture_error = cudaErrorStreamCaptureUnsupported;
    return emu::captured() >= 0;
}

/* cudaFree() and cudaFreeHost() often wait, but nothing promises it. */
static void check_idle(void)
{
    if (emu::idle())
        return;
    emu::mistake("memory is freed while work is queued");
    for (int s = 0; s < emu::N_STREAMS; s++)
        emu::run_queue(s, emu::queued(s));
}

void emu_card_free(void *p)
{
    struct emu_card *c = emu_card();
    block *b = block_at(p);
    if (!p || !b || spoils())
        return;
    check_idle();
    c->live -= b->bytes;
    *b = {};
    emu_free(p);
}

int emu_card_pin(void **out, size_t bytes)
{
    struct emu_card *c = emu_card();
    block *b = block_at(NULL);
    const int e = emu_card_call_outside();
    if (e)
        return e;
    if (!b || bytes > c->pinned - c->held || !(*out = malloc(bytes)))
        return cudaErrorMemoryAllocation;
    *b = {*out, bytes};
    c->held += bytes;
    return cudaSuccess;
}

void emu_card_unpin(void *p)
{
    block *b = block_at(p);
    if (!p || !b || spoils())
        return;
    check_idle();
    emu_card()->held -= b->bytes;
    *b = {};
    free(p);
}

void emu::allow_shared(const void *kernel, size_t bytes)
{
    shared_bytes[kernel] = bytes;
}

size_t emu::allowed_shared(const void *kernel)
{
    const auto at = shared_bytes.find(kernel);
    return at == shared_bytes.end() ? 48 * 1024 : at->second;
}

/* Registers the device in every program that links this whole library. EMU_NAME=cuda
 * makes it replace the GPU. */
__attribute__((constructor)) static void register_emulation(void)
{
    const char *name = getenv("EMU_NAME");
    dev_register(name ? name : "cuda-emu", cuda_emu_fill);
}
