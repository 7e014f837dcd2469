/* SPDX-License-Identifier: MIT
 *
 * Calibrations of random models that keep everything in memory. */
#ifndef WKVQ_CALIB_FIXTURE_H
#define WKVQ_CALIB_FIXTURE_H

#include "calib/calib.h"
#include "tests/model/model_fixture.h"

#define MEMORY_BLOCKS 8
#define MEMORY_TENSORS 32

/* struct calib_io over plain memory. */
struct memory_io {
    struct calib_io io;
    struct block_quant block[MEMORY_BLOCKS];
    struct calib_block_stats stats[MEMORY_BLOCKS];
    int64_t n_blocks; /* saved, from 0 */
    struct named_tensor partial[MEMORY_TENSORS];
    int n_partial;
    int64_t partial_block, n_saves;
    int64_t stop_after; /* stop() returns true at this call; 0: never */
    int64_t asked;
    int64_t n_on_disk, n_streams, open_streams;
    int64_t n_steps, n_evals; /* events: training steps, losses measured */
    int64_t n_events[MEMORY_BLOCKS][CALIB_ADVANCE + 1]; /* of each kind */
    double last_done, last_own;
    bool done_fell;  /* the share of work done went backwards or left [0,1] */
    bool own_jumped; /* that of this run alone fell, or rose by more than steps do */
};

void memory_io_open(struct memory_io *m);
void memory_io_close(struct memory_io *m);

/* Tiny architectures: 0 = llama (GQA), 1 = qwen3-like (q/k norm, biases, H*d != D), 2 = granite
 * with a rope for some channels of a head, 3 = olmo2 (norms behind, q/k norm
 * of all heads), 4 = qwen3_moe. */
struct arch tiny_arch(int which, int64_t n_layers);
struct calib_settings tiny_settings(void);
/* tokens [samples][seqlen] */
void tiny_tokens(int32_t *ids, const struct calib_settings *s, const struct arch *a);

/* calib_run from the first block that m lacks, on tiny_tokens. */
enum err run_on(const char *device, struct memory_io *m, const struct fixture *f,
                const struct calib_settings *s);
/* A fresh run that must succeed, with every block no worse than its start. Opens m. */
void calibrate(const char *device, struct memory_io *m, const struct fixture *f,
               const struct calib_settings *s);

/* Stops at every `every`th call of stop() and resumes, until the run is complete. Every
 * resumed run repeats the preparation, so each one gets further than the last. Opens m. */
void stop_and_go(struct memory_io *m, const struct fixture *f,
                 const struct calib_settings *s, int64_t every);

/* Whether blocks agree bit for bit, except for gains of norms. */
bool same_block(const struct block_quant *x, const struct block_quant *y);
/* Whether all saved blocks (scales, zeros, s, delta) and their losses agree bit for bit. */
bool same_result(const struct memory_io *x, const struct memory_io *y);
/* Checks that the blocks in work are saved alike, apart from their seconds. */
void check_same_partial(const struct memory_io *x, const struct memory_io *y);

#endif
