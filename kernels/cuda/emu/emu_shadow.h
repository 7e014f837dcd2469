/* SPDX-License-Identifier: MIT
 *
 * Races. A shadow holds the last write and the last read of a unit of memory:
 *
 *   memory   [ .... bytes .... ]
 *   shadows  [w,r][w,r][w,r] ...     w, r = (block, thread, epoch, warp epoch)
 *
 * A barrier starts a new epoch of the block, a warp operation one of the warp. Two accesses
 * to one unit, one of them a write, are ordered if they have one thread, or one block and
 * different epochs, or one warp and different warp epochs. Nothing orders two blocks. */
#ifndef WKVQ_EMU_SHADOW_H
#define WKVQ_EMU_SHADOW_H

#include "kernels/cuda/emu/emu.h"

namespace emu
{

/* Threads of one block that a mark stands for; blocks of one mark. */
constexpr int NOBODY = -1, SEVERAL = -2, MANY_BLOCKS = -1;
/* Bytes that one shadow covers. */
constexpr size_t UNIT = 2;

struct mark {
    int block, thread, epoch, warp_epoch;
};

struct shadow {
    mark write, read;
};

/* All bits are set, so that memset() makes many of them. */
constexpr shadow UNTOUCHED = {{-1, NOBODY, -1, -1}, {-1, NOBODY, -1, -1}};

/* True if an access by `me` cannot race with the earlier one. Marks are passed by value, because
 * UBSan would check every use of a reference, of which each emulated access makes a dozen. */
inline bool ordered(mark earlier, mark me)
{
    if (earlier.thread == NOBODY)
        return true;
    if (earlier.block != me.block)
        return false;
    if (earlier.thread == me.thread || earlier.epoch != me.epoch)
        return true;
    return earlier.thread >= 0 && earlier.thread / WARP == me.thread / WARP &&
           earlier.warp_epoch != me.warp_epoch;
}

/* Checks and records an access; false if it races. */
inline bool record(shadow *s, mark me, bool write)
{
    const mark was = s->read;
    if (!ordered(s->write, me) || (write && !ordered(was, me)))
        return false;
    if (write) {
        s->write = me;
        return true;
    }
    const bool one_block = was.thread == NOBODY || was.block == me.block;
    const bool first =
        was.thread == NOBODY || was.thread == me.thread || was.epoch != me.epoch;
    /* The last reader of a warp stands for the earlier ones of that warp. */
    const bool same_warp = was.thread >= 0 && was.thread / WARP == me.thread / WARP;
    if (!one_block)
        me.block = MANY_BLOCKS;
    if (!first && !same_warp)
        me.thread = SEVERAL;
    s->read = me;
    return true;
}

/* Shadows of device memory, by address. They are forgotten at each launch. */
void shadows_forget(void);
shadow *shadow_of(uintptr_t unit);

} // namespace emu

#endif
