/* SPDX-License-Identifier: MIT
 *
 * The shadows of device memory: pages of them in a hash table with open addressing. A page of an
 * earlier launch counts as empty. Most accesses are near the one before, so its page is tried
 * first. */
#include "kernels/cuda/emu/emu_shadow.h"

#include <algorithm>
#include <vector>

namespace emu
{

namespace
{

constexpr size_t PAGE = 32; /* units */

struct page {
    uintptr_t number; /* of its first unit, divided by PAGE */
    uint64_t launch;
    shadow s[PAGE];
};

std::vector<page> table;
size_t used;
uint64_t launches = 1; /* 0: a page was never used */
page *last;            /* of the access before; NULL after the table has changed */

page *find(uintptr_t number)
{
    const size_t mask = table.size() - 1;
    size_t at = (number * 0x9e3779b97f4a7c15u >> 20) & mask;
    while (table[at].launch == launches && table[at].number != number)
        at = (at + 1) & mask;
    return &table[at];
}

void grow(void)
{
    std::vector<page> old(table.empty() ? 256 : 2 * table.size());
    old.swap(table);
    for (const page &p : old)
        if (p.launch == launches)
            *find(p.number) = p;
}

page *page_of(uintptr_t number)
{
    if (2 * (used + 1) > table.size())
        grow();
    page *p = find(number);
    if (p->launch != launches) {
        p->number = number;
        p->launch = launches;
        std::fill(p->s, p->s + PAGE, UNTOUCHED);
        used++;
    }
    return p;
}

} // namespace

void shadows_forget(void)
{
    launches++;
    used = 0;
    last = NULL;
}

shadow *shadow_of(uintptr_t unit)
{
    const uintptr_t number = unit / PAGE;
    if (!last || last->number != number)
        last = page_of(number);
    return &last->s[unit % PAGE];
}

} // namespace emu
