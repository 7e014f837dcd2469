/* SPDX-License-Identifier: MIT
 *
 * What a training step tells the host, without the host waiting for it: losses, and whether
 * anything was not finite. Both are collected on the device; the host reads a copy of them when it
 * likes, while the device works on the next step:
 *
 *   loss loss ... check   adamw(unless bad)   send   ...   read, a step later
 *
 * Once something was not finite, `bad` stays set, and operations that read it change nothing:
 * parameters stay as they were before the step. */
#ifndef WKVQ_DEV_REPORT_H
#define WKVQ_DEV_REPORT_H

#include "kernels/dev.h"

#define REPORT_SLOTS 2 /* reports that may be on their way at a time */

struct dev_report {
    struct dev *dev; /* NULL: closed */
    int64_t n;
    double *loss; /* [n], then bad; memory of the device */
    int32_t *bad;
    void *copy[REPORT_SLOTS]; /* page-locked */
};

/* Returns the device memory of a report of n losses. */
size_t dev_report_bytes(int64_t n);
/* A report of n losses, with nothing bad. d is borrowed. Errors: ERR_MEMORY, ERR_DEVICE; close in
 * any case. */
enum err dev_report_open(struct dev_report *r, struct dev *d, int64_t n);
void dev_report_close(struct dev_report *r); /* accepts a zeroed or half-built one */

/* As dev_loss(), but loss `at` < n of the report is written, and nothing waits. A loss that is not
 * finite sets bad. */
enum err dev_report_loss(struct dev_report *r, int64_t at, const struct tensor *dy,
                         const struct loss_inputs *in);
/* Sets bad if x, act, has a NaN or an infinity. */
enum err dev_report_check(struct dev_report *r, const struct tensor *x);

/* Queues the copy of the report to the host, behind the operations so far. slot < REPORT_SLOTS; its
 * last copy must have been read. */
enum err dev_report_send(struct dev_report *r, int slot);
/* Waits for that copy, but not for operations after it. *loss [n] is valid until the slot is sent
 * again. */
enum err dev_report_read(struct dev_report *r, int slot, const double **loss, bool *bad);

#endif
