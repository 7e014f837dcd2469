/* SPDX-License-Identifier: MIT
 *
 * The GPU and driver that the emulation presents: its memory, a call that fails on request,
 * and copies on a second stream. Such a copy happens as late as the program allows, when
 * compute or the host waits for it, so that a missing wait gives wrong results. */
#ifndef WKVQ_EMU_CARD_H
#define WKVQ_EMU_CARD_H

#include <stddef.h>
#include <stdint.h>

struct emu_card {
    int devices, driver;       /* driver: 13000 for 13.0 */
    int major, minor;          /* compute capability */
    uint64_t total, pinned;    /* bytes of device memory; of page-locked host memory */
    uint64_t live, peak, held; /* device bytes now and at most; page-locked now */
    long calls;                /* runtime calls since a device was opened */
    long fail_at;              /* this call and all later ones fail; 0: none */
    int failed;                /* the sticky error */
    long copies;               /* queued on the second stream so far */
};

#ifdef __cplusplus
extern "C" {
#endif
/* The only card. Tests may change it while no device is open. EMU_DEVICES, EMU_DRIVER,
 * EMU_MEMORY and EMU_FAIL_AT in the environment set its start values. */
struct emu_card *emu_card(void);
/* Called when a device is closed: resets the call counter and the sticky error. */
void emu_card_closed(void);
/* Counts a runtime call and returns its error. */
int emu_card_call(void);
/* cudaMalloc and cudaFree. */
int emu_card_alloc(void **out, size_t bytes);
void emu_card_free(void *p);
int emu_card_pin(void **out, size_t bytes);
void emu_card_unpin(void *p);
/* Queues a copy. */
void emu_card_copy_later(void *dst, const void *src, size_t bytes);
/* Executes queued copies until the first n of all copies are done. */
void emu_card_copies_done(long n);
#ifdef __cplusplus
}
#endif

#endif
