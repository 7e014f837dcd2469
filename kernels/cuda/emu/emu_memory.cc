/* SPDX-License-Identifier: MIT
 *
 * Device memory: one reserved range of addresses, never used twice. An allocation ends at
 * the end of a page, and the next page stays inaccessible:
 *
 *   | slack | allocation ... | guard page | slack | allocation ...
 *
 * Slack and new memory are 0xff, which is NaN in every type. All of it is inaccessible
 * while the fence is closed, so that a host access crashes as with a GPU. */
#include "kernels/cuda/emu/emu.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

namespace
{

constexpr size_t ARENA = (size_t)64 << 30, PAGE = 4096, ALIGN = 64;

struct allocation {
    unsigned char *p, *pages;
    size_t bytes; /* of the pages */
};

unsigned char *arena;
size_t arena_used;
std::vector<allocation> live;
int open_fences;

void protect(const allocation &a, bool open)
{
    if (mprotect(a.pages, a.bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE))
        abort();
}

size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

bool open_arena(void)
{
    void *p =
        mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED)
        arena = (unsigned char *)p;
    return p != MAP_FAILED;
}

} // namespace

void emu_fence(bool open)
{
    if (open ? open_fences++ : --open_fences)
        return;
    for (const allocation &a : live)
        protect(a, open);
}

void *emu_alloc(size_t bytes)
{
    if (!arena && !open_arena())
        return NULL;
    if (bytes > ARENA || round_up(bytes, PAGE) + PAGE > ARENA - arena_used)
        return NULL;
    allocation a = {NULL, arena + arena_used, round_up(bytes, PAGE)};
    a.p = a.pages + a.bytes - round_up(bytes, ALIGN);
    arena_used += a.bytes + PAGE;
    protect(a, true);
    memset(a.pages, 0xff, a.bytes);
    if (!open_fences)
        protect(a, false);
    live.push_back(a);
    return a.p;
}

void emu_free(void *p)
{
    for (size_t i = 0; i < live.size(); i++)
        if (live[i].p == p) {
            protect(live[i], false);
            madvise(live[i].pages, live[i].bytes, MADV_DONTNEED);
            live.erase(live.begin() + (long)i);
            return;
        }
}
