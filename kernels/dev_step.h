/* SPDX-License-Identifier: MIT
 *
 * Steps that are taken many times, of the same operations with the same arguments. A device that
 * queues work can record them once and then start all of them by one call:
 *
 *   put rates, copy a sample to its place | repeat( operations ... ) | send results
 *
 * What differs between steps lies in memory of the device, where the operations read it. */
#ifndef WKVQ_DEV_STEP_H
#define WKVQ_DEV_STEP_H

#include "kernels/dev.h"

#define DEV_REPEATS 64 /* keys that a device records; others are queued each time */

/* Queues what work(ctx) queues. A key stands for one sequence of operations and arguments, memory
 * included, until dev_forget(): the device may call work, or start by itself what an earlier call
 * has queued. So work neither waits for the device nor depends on what the host has changed, and it
 * allocates at most when a key is new. It may be called twice. Errors: those of work, ERR_DEVICE.
 */
enum err dev_repeat(struct dev *d, int64_t key, enum err (*work)(void *ctx), void *ctx);
/* Forgets all keys, after their work: before their operations change, or memory that they use is
 * freed. */
void dev_forget(struct dev *d);

/* Returns what of a step of AdamW differs from the next. A copy in memory of the device (dev_put)
 * is what struct adamw's `rates` points to. */
struct adamw_rates dev_adamw_rates(const struct adamw *o);

#endif
