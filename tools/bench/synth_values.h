/* SPDX-License-Identifier: MIT
 *
 * Fast normal numbers: each draw looks up one of 2^16 quantiles. */
#ifndef WKVQ_SYNTH_VALUES_H
#define WKVQ_SYNTH_VALUES_H

#include <stdint.h>

#define SYNTH_QUANTILES (1 << 16)

/* F16 values of mean + sigma * z; z are the middles of 2^16 equally likely intervals,
 * |z| < 4.4. */
struct normal_table {
    uint16_t value[SYNTH_QUANTILES];
};

void normal_table_fill(struct normal_table *t, double mean, double sigma);

/* Makes n draws. The stream depends on (seed, tensor, row) only, so any thread may fill
 * rows in any order. */
void synth_row(uint16_t *out, int64_t n, const struct normal_table *t, uint64_t seed,
               uint64_t tensor, uint64_t row);

#endif
