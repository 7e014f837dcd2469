/* SPDX-License-Identifier: MIT
 *
 * Normal numbers by the gigabyte: a draw is one of 2^16 quantiles, looked up. */
#ifndef WKVQ_SYNTH_VALUES_H
#define WKVQ_SYNTH_VALUES_H

#include <stdint.h>

#define SYNTH_QUANTILES (1 << 16)

/* F16 of mean + sigma * z at the middles of 2^16 equally likely intervals; |z| < 4.4. */
struct normal_table {
    uint16_t value[SYNTH_QUANTILES];
};

void normal_table_fill(struct normal_table *t, double mean, double sigma);

/* n draws. The stream belongs to (seed, tensor, row) alone, so rows may be filled in any
 * order by any thread. */
void synth_row(uint16_t *out, int64_t n, const struct normal_table *t, uint64_t seed,
               uint64_t tensor, uint64_t row);

#endif
