/* SPDX-License-Identifier: MIT
 *
 * wkvq verify: does an artifact keep what calibration promised? Four parts, one verdict:
 *
 *   structure   checksums, shapes, and every number finite
 *   weights     every weight against the source checkpoint under the scales of calibration,
 *               bit for bit
 *   logits      the packed runtime against the calibrator's simulation, token by token
 *   perplexity  both again over whole windows, judged by paired losses */
#ifndef WKVQ_VERIFY_H
#define WKVQ_VERIFY_H

#include "calib/model/model.h"
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"

/* The end of a message of hf_open_packed(). */
#define VERIFY_WANTS_GIVEN                                                                 \
    "the artifact's were quantized by another tool: give their checkpoint as --against"

/* All pointers are borrowed for the call. A limit that is not above 0 takes its default. */
struct verify_settings {
    /* MODEL_DIR; NULL: the weights are skipped, and what a state has of them (scales, zeros, chosen
     * codes, refined gains, s and delta) is compared alone */
    const char *against;
    /* Scales and codes of the calibration. NULL: recomputed for round to nearest, otherwise
     * those of the artifact. */
    const struct quant_source *state;
    const int32_t *ids; /* [n_ids] text; NULL: logits and perplexity are skipped */
    int64_t n_ids;
    int64_t
        logit_tokens; /* of the logits part, default 256; up to four times as many if so many are
                           * needed until the cache packs some */
    int64_t windows, ctx; /* of the perplexity part, defaults 1 and 512 */
    double max_kl;        /* nats, mean over tokens; default 1e-3 */
    /* Relative, beyond three standard errors of the difference; default 0.005. */
    double max_ppl_gap;
    double max_block_error; /* share of what a block adds; default 0.01 */
    double min_cosine;      /* of K^ and V^, runtime and simulation; default 0.999 */
    /* Of K^ and K, V^ and V: a head below it is warned about, not judged; default 0.5, where the
     * best multiple of what is stored misses three quarters of the energy. */
    double min_head_cosine;
    enum dtype act; /* of the simulation: DT_F32 or DT_BF16 */
    int threads;    /* 0: all cores */
    /* [layers] each, written: cosine of K^ and K, of V^ and V, worst head; NaN if no token was
     * packed. NULL: not wanted. */
    double *layer_cosine[2];
};

enum verify_outcome { VERIFY_PASS, VERIFY_FAIL, VERIFY_SKIP };

struct verify_report {
    enum verify_outcome structure, weights, logits, perplexity;
    bool passed; /* no part failed */

    /* Structure. */
    int64_t n_tensors, n_linears; /* checked */
    double weight_bits, kv_bits;  /* per element, scales included */
    uint64_t total_bytes;

    /* Weights. */
    int64_t weights_compared, weights_differing; /* elements */
    /* Elements whose codes were chosen (GPTQ, learned rounding) while no state has them. */
    int64_t weights_unchecked;
    char first_difference[160]; /* a sentence, of any part; "" if there is none */

    /* Logits. Each block of the runtime starts from the simulation's hidden states and its
     * own packed cache; the logits are those of the last block and head. KL in nats;
     * differences relative to the range of the logits, and to what a block adds. */
    int64_t logit_tokens;
    double mean_kl, worst_kl, max_logit_diff;
    int64_t worst_token, top1_agree;
    double worst_block_error; /* mean over tokens, of the worst block */
    int64_t worst_block;
    /* The runtime on its own: rounding differences grow from block to block where codes
     * flip (docs/decisions.md). Reported, not judged. */
    double free_kl;
    int64_t free_top1;
    /* Tokens that the cache held packed, which the cosines compare. 0: none, since sink and window
     * cover all tokens; the cosines are NaN and not judged. */
    int64_t cache_tokens;
    double worst_k_cosine, worst_v_cosine; /* quantization error: K^ and K, worst head */
    int64_t worst_k_layer, worst_k_head, worst_v_layer, worst_v_head;
    int64_t low_heads; /* below min_head_cosine, of keys and of values */
    double agree_k_cosine, agree_v_cosine; /* K^ of runtime and simulation, worst head */
    /* The cache is another engine's (kv.target): both ran with one in full precision, and agree_*
     * compare K and V. */
    enum kv_target target;
    /* The artifact rounds inputs of projections (activations.bits), but both ran without it: each
     * of their differences would flip codes in the projections after it. */
    bool inputs_left;

    /* Perplexity, with the runtime on its own. */
    double ppl_simulated, ppl_runtime, ppl_gap;
    double ppl_gap_stderr; /* of the gap, from the paired losses of the tokens */
    int64_t ppl_tokens;
};

/* Verifies artifact_dir. Returns OK whenever there is a verdict, failing ones included, and
 * only then writes *out. Errors are those that prevent one: ERR_IO, ERR_MISMATCH for a
 * checkpoint or state of another model, ERR_MEMORY, ERR_FORMAT. */
enum err verify_run(struct verify_report *out, const char *artifact_dir,
                    const struct verify_settings *s);

#endif
