/* SPDX-License-Identifier: MIT
 *
 * Devices of several ranks that are linked send their memory to each other without passing it
 * through the host's (GPUs by NCCL). All functions but dev_linked() are collective. */
#ifndef WKVQ_DEV_LINK_H
#define WKVQ_DEV_LINK_H

#include "kernels/base/ranks.h"
#include "kernels/dev.h"

#define DEV_LINK_TEXT 192

/* Links d with the devices of the other ranks: all of them, or none. r is borrowed until
 * dev_unlink(). Returns whether they are linked. about = by what, or why not; "" on a device that
 * works in host memory, and if d was linked, or refused to be, before. */
bool dev_link(struct dev *d, const struct ranks *r, char about[DEV_LINK_TEXT]);
/* Nothing if d is not linked. Without it, dev_close() leaves the link to the end of the process,
 * since it must not wait for other ranks after an error. */
void dev_unlink(struct dev *d);
bool dev_linked(const struct dev *d);

/* Sends from[q], from_n[q] floats, to every rank q, and receives to_n[q] floats into to[q]: device
 * memory, in order with the device's operations. Nothing overlaps to. from_n[q] here is to_n[this
 * rank] of rank q. A pointer is not used where its number is 0. ERR_DEVICE. */
enum err dev_transfer(struct dev *d, float *const *to, const int64_t *to_n,
                      const float *const *from, const int64_t *from_n);

#endif
