/* SPDX-License-Identifier: MIT
 *
 * wkvq verify: is the artifact what calibration promised? Four parts, one verdict. */
#ifndef WKVQ_VERIFY_H
#define WKVQ_VERIFY_H

#include "calib/model/model.h"
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"

struct verify_settings {
    const char *against; /* MODEL_DIR or NULL */
    const struct quant_source
        *state;         /* the calibration's own scales; NULL: from artifact */
    const int32_t *ids; /* calibration or test tokens; NULL: parts 3 and 4 are skipped
                           and reported as skipped */
    int64_t n_ids;
    int64_t logit_tokens;   /* tokens of part 3 (token-by-token decode), default 256 */
    int64_t windows, ctx;   /* of part 4 */
    double max_kl;          /* default 1e-3 nats, mean over tokens */
    double max_ppl_gap;     /* default 0.005: relative, runtime against simulation, beyond
                               three standard errors of the difference */
    double max_block_error; /* default 0.01: of a block's own contribution */
    double min_cosine;      /* default 0.999: runtime's K^, V^ against the simulation's */
    enum dtype act;         /* of the simulation */
    int threads;
    double *layer_cosine[2]; /* [layers] each: K^ against K, V^ against V, worst head, for
                                the caller; NULL: not wanted */
};

enum verify_outcome { VERIFY_PASS, VERIFY_FAIL, VERIFY_SKIP };

struct verify_report {
    enum verify_outcome structure, weights, logits, perplexity;
    int64_t n_tensors, n_linears;                /* checked */
    int64_t weights_compared, weights_differing; /* elements, part 2 */
    int64_t weights_unchecked; /* chosen codes (GPTQ), and no state that has them */
    char first_difference[160];
    /* Part 3. Each block of the runtime starts from the simulation's hidden states, with
     * its own packed cache behind it; the logits are those of its last block and head. KL
     * in nats, differences relative to the logits' range and to what a block adds. */
    double mean_kl, worst_kl, max_logit_diff;
    int64_t worst_token, top1_agree, logit_tokens;
    double worst_block_error; /* mean over tokens, in the worst block */
    int64_t worst_block;
    double free_kl; /* the runtime left alone: rounding differences grow from block to */
    int64_t
        free_top1; /* block where codes flip (docs/decisions.md); reported, not judged */
    double worst_k_cosine,
        worst_v_cosine; /* K^ against K (quantization error) per worst head */
    int64_t worst_k_layer, worst_k_head, worst_v_layer, worst_v_head;
    double agree_k_cosine,
        agree_v_cosine; /* runtime's K^ against the simulation's, worst */
    double ppl_simulated, ppl_runtime, ppl_gap; /* part 4; the runtime left alone */
    double ppl_gap_stderr; /* of the gap, from the paired losses of the tokens */
    int64_t ppl_tokens;
    double weight_bits, kv_bits;
    uint64_t total_bytes;
    bool passed; /* nothing failed */
};

/* Returns OK whenever a verdict could be reached (also a failing one); errors are about
 * reaching it. */
enum err verify_run(struct verify_report *out, const char *artifact_dir,
                    const struct verify_settings *s);

#endif
