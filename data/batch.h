/* SPDX-License-Identifier: MIT
 *
 * Windows of tokens: the random calibration segments of the literature, and evaluation
 * windows that do not overlap. All functions are thread-safe. */
#ifndef WKVQ_BATCH_H
#define WKVQ_BATCH_H

#include "kernels/base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Draws the offsets of `samples` windows of seqlen tokens: random.seed(seed), then
 * randint(0, n - seqlen - 1) for each (GPTQ's recipe). offset [samples]. ERR_USAGE if n <=
 * seqlen; the message has both numbers. */
enum err batch_random_offsets(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                              uint64_t seed);
/* Copies the windows to out [samples][seqlen]. */
/* Does the same with windows that overlap none of the n_avoid windows of seqlen tokens at avoid.
 * ERR_USAGE as well if the text has too little room beside them. */
enum err batch_random_apart(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                            uint64_t seed, const int64_t *avoid, int64_t n_avoid);
void batch_gather(int32_t *out, const int32_t *ids, const int64_t *offset, int64_t samples,
                  int64_t seqlen);
/* Returns the number of whole windows of ctx tokens in n tokens: n / ctx. */
int64_t batch_windows(int64_t n, int64_t ctx);
/* Returns the CRC-32 of ids as little-endian int32. */
uint32_t batch_crc(const int32_t *ids, size_t n);

#endif
