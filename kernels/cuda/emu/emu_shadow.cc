/* SPDX-License-Identifier: MIT
 *
 * The shadows of device memory: a hash table with open addressing. An entry of an earlier
 * launch counts as empty. */
#include "kernels/cuda/emu/emu_shadow.h"

#include <vector>

namespace emu
{

namespace
{

struct entry {
    uintptr_t unit;
    uint64_t launch;
    shadow s;
};

std::vector<entry> table;
size_t used;
uint64_t launches = 1; /* 0: an entry was never used */

entry *find(uintptr_t unit)
{
    const size_t mask = table.size() - 1;
    size_t at = (unit * 0x9e3779b97f4a7c15u >> 20) & mask;
    while (table[at].launch == launches && table[at].unit != unit)
        at = (at + 1) & mask;
    return &table[at];
}

void grow(void)
{
    std::vector<entry> old(table.empty() ? 4096 : 2 * table.size());
    old.swap(table);
    for (const entry &e : old)
        if (e.launch == launches)
            *find(e.unit) = e;
}

} // namespace

void shadows_forget(void)
{
    launches++;
    used = 0;
}

shadow *shadow_of(uintptr_t unit)
{
    if (2 * (used + 1) > table.size())
        grow();
    entry *e = find(unit);
    if (e->launch != launches) {
        *e = {unit, launches, UNTOUCHED};
        used++;
    }
    return &e->s;
}

} // namespace emu
