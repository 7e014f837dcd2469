/* SPDX-License-Identifier: MIT
 *
 * The card and the driver that the emulation shows: how much memory there is, which call
 * fails, and copies on a second stream. Those are carried out as late as the program allows
 * (when compute or the host waits for them), so that a missing wait gives wrong results. */
#ifndef WKVQ_EMU_CARD_H
#define WKVQ_EMU_CARD_H

#include <stddef.h>
#include <stdint.h>

struct emu_card {
    int devices, driver;       /* driver: 13000 for 13.0 */
    int major, minor;          /* compute capability */
    uint64_t total, pinned;    /* bytes of device memory; of page-locked host memory */
    uint64_t live, peak, held; /* device bytes now and at most; page-locked now */
    long calls, fail_at; /* the fail_at-th call of the runtime since opening fails, and
                            with it all that follow; 0: none */
    int failed;          /* the sticky error */
    long copies;         /* begun on the second stream */
};

#ifdef __cplusplus
extern "C" {
#endif
/* The one card. Tests may set it while no device is open. It begins as EMU_DEVICES,
 * EMU_DRIVER, EMU_MEMORY and EMU_FAIL_AT in the environment say. */
struct emu_card *emu_card(void);
/* A device is closed: the next is another process, as it were. */
void emu_card_closed(void);
/* One call of the runtime: its error. */
int emu_card_call(void);
/* cudaMalloc and cudaFree. */
int emu_card_alloc(void **out, size_t bytes);
void emu_card_free(void *p);
int emu_card_pin(void **out, size_t bytes);
void emu_card_unpin(void *p);
/* Copies that wait: one more, and as many as n begun in all carried out. */
void emu_card_copy_later(void *dst, const void *src, size_t bytes);
void emu_card_copies_done(long n);
#ifdef __cplusplus
}
#endif

#endif
