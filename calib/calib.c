/* SPDX-License-Identifier: MIT
 *
 * The loop over blocks: start values from the block's own keys and values, training, the
 * result handed over, and every stream moved on by one block. */
#include "calib/calib.h"

#include "calib/model/model.h"
#include "calib/run.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* --- settings ----------------------------------------------------------------------- */

static enum err check_bits(const char *key, int bits)
{
    FAIL_IF(!(bits >= 2 && bits <= 8) && bits != 16, ERR_USAGE,
            "%s is %d, want 2 to 8, or 16 to leave it alone", key, bits);
    return OK;
}

static enum err check_settings(const struct arch *a, const struct calib_settings *s,
                               int64_t first_block)
{
    const int64_t most = CALIB_EPOCHS_MAX;
    TRY(arch_check_length(a, s->seqlen));
    FAIL_IF(s->samples < 1 || s->seqlen < 1, ERR_USAGE,
            "calibration.samples and calibration.seqlen must be at least 1");
    FAIL_IF(s->epochs < 0 || s->epochs > most, ERR_USAGE,
            "calibration.epochs is %" PRId64 ", want 0 to %" PRId64, s->epochs, most);
    FAIL_IF(s->crr_blocks < 0, ERR_USAGE, "crr.blocks must not be negative");
    TRY(check_bits("weights.bits", s->weights.bits));
    TRY(mix_check_layers(s->weights.mixed, a->n_layers, ERR_USAGE, "weights.mixed"));
    TRY(check_bits("kv.bits", s->kv.bits));
    TRY(mix_check_layers(s->kv.mixed, a->n_layers, ERR_USAGE, "kv.mixed"));
    TRY(kv_rotate_check(&s->kv, a->head_dim));
    TRY(check_bits("activations.bits", s->act_bits ? s->act_bits : 16));
    FAIL_IF(s->weights.method == WEIGHT_GPTQ && !(s->gptq.damp >= 0 && s->gptq.damp <= 1),
            ERR_USAGE, "weights.damp is %g, want 0 to 1", s->gptq.damp);
    FAIL_IF(s->weights.group_size < 0 || s->kv.group_size < 0, ERR_USAGE,
            "weights.group_size and kv.group_size must not be negative");
    FAIL_IF(first_block < 0 || first_block > a->n_layers, ERR_SHAPE,
            "first block %" PRId64 " of %" PRId64, first_block, a->n_layers);
    return OK;
}

/* --- streams ------------------------------------------------------------------------ */

static enum err open_streams(struct run *r)
{
    const struct calib_settings *s = r->s;
    size_t one;
    char name[32];
    TRY(stream_bytes(&one, r->arch, s));
    const enum stream_place place =
        stream_place_of(s, (double)one * (double)(r->n_targets + 1));
    TRY(mem_calloc(&r->target, (size_t)r->n_targets, sizeof(*r->target)));
    TRY(stream_open(&r->x, r->io, r->dev, r->arch, s, "quantized", place));
    for (int64_t j = 0; j < r->n_targets; j++) {
        snprintf(name, sizeof(name), "target-%" PRId64, j);
        TRY(stream_open(&r->target[j], r->io, r->dev, r->arch, s, name, place));
    }
    return OK;
}

static enum err open_run(struct run *r)
{
    TRY(fakequant_open(&r->f, r->dev, r->arch, r->s));
    TRY(recon_open(&r->r, r->dev, r->arch, r->s));
    if (r->f.learn_weights && r->s->weights_init == INIT_SEARCH)
        TRY(search_open(&r->search, r->dev, r->arch, r->s));
    if (calib_searches_kv(r->s))
        TRY(kv_search_open(&r->kv, r->dev, r->arch));
    if (r->f.gptq || r->f.gptq_start)
        TRY(gptq_open(&r->g, r->dev, r->arch, r->s));
    r->n_targets = r->s->crr_terms == TERMS_ALL ? r->r.depth + 1 : 1;
    return open_streams(r);
}

static void close_run(struct run *r)
{
    stream_close(&r->x);
    for (int64_t j = 0; r->target && j < r->n_targets; j++)
        stream_close(&r->target[j]);
    mem_free(r->target);
    fakequant_close(&r->f);
    recon_close(&r->r);
    gptq_close(&r->g);
    search_close(&r->search);
    kv_search_close(&r->kv);
}

static enum err step_done(struct run *r, enum calib_event_kind kind)
{
    r->units_done++;
    run_event(r, kind, 0);
    FAIL_IF(run_stop(r), ERR_STOPPED,
            "stopped before training block %" PRId64 "; finished blocks are saved",
            r->block);
    return OK;
}

static struct stream *target_of(struct run *r, int64_t block)
{
    return &r->target[(block + r->n_targets) % r->n_targets];
}

/* Both streams' start: the embedding, which is "block -1's" output. */
static enum err embed_samples(struct run *r)
{
    struct host_mat embed, norm, head;
    TRY(r->src->ends(r->src->ctx, &embed, &norm, &head));
    for (int64_t i = 0; i < r->s->samples; i++) {
        TRY(model_embed(r->dev, &r->r.x, &embed, r->tokens + i * r->s->seqlen));
        TRY(stream_write(&r->x, i, &r->r.x));
        TRY(stream_write(target_of(r, -1), i, &r->r.x));
    }
    return OK;
}

/* Output of full-precision block b for every sample, from that of block b - 1. */
static enum err move_target(struct run *r, int64_t b, enum calib_event_kind kind)
{
    const struct block_weights *w;
    const struct tensor *out;
    TRY(recon_full(&r->r, &w, r->src, b));
    for (int64_t i = 0; i < r->s->samples; i++) {
        r->sample = i;
        TRY(stream_read(target_of(r, b - 1), &r->r.x, i));
        TRY(stream_prefetch(target_of(r, b - 1), i + 1));
        TRY(recon_plain(&r->r, w, NULL, &out));
        TRY(stream_write(target_of(r, b), i, out));
        TRY(step_done(r, kind));
    }
    return OK;
}

/* The quantized stream through the block in work, as f says. */
static enum err move_quantized(struct run *r, enum calib_event_kind kind)
{
    const struct tensor *out;
    for (int64_t i = 0; i < r->s->samples; i++) {
        r->sample = i;
        TRY(stream_read(&r->x, &r->r.x, i));
        TRY(stream_prefetch(&r->x, i + 1));
        TRY(recon_quantized(&r->r, &r->f, &out));
        TRY(stream_write(&r->x, i, out));
        TRY(step_done(r, kind));
    }
    return OK;
}

static enum err load_block(struct run *r)
{
    struct block_src src;
    TRY(r->src->block(r->src->ctx, r->block, &src));
    return fakequant_load(&r->f, &src, r->block);
}

/* A block that an earlier run finished: the stream passes it as it did then. */
static enum err replay_block(struct run *r)
{
    struct block_quant q = {0};
    TRY(load_block(r));
    TRY(r->io->load_block(r->io->ctx, r->block, &q));
    const enum err err = fakequant_import(&r->f, &q);
    block_quant_free(&q);
    return err ? err : move_quantized(r, CALIB_PREPARE);
}

static void release_block(struct run *r, int64_t b)
{
    if (r->src->release && b >= 0)
        r->src->release(r->src->ctx, b);
}

/* What the next block needs is read while this one trains: its own weights again, and those
 * of one more block behind. */
static void prefetch_next(const struct run *r)
{
    const int64_t next = r->block + 1, last = next + r->r.depth;
    if (!r->src->prefetch)
        return;
    if (next < r->arch->n_layers)
        r->src->prefetch(r->src->ctx, next);
    if (last > next && last < r->arch->n_layers)
        r->src->prefetch(r->src->ctx, last);
}

/* Streams as they are before block `first`. */
static enum err fill_streams(struct run *r, int64_t first)
{
    TRY(embed_samples(r));
    for (int64_t b = 0; b <= first + recon_reach(&r->r, first); b++) {
        TRY(move_target(r, b, CALIB_PREPARE));
        if (b < first)
            release_block(r, b);
    }
    for (r->block = 0; r->block < first; r->block++) {
        TRY(replay_block(r));
        release_block(r, r->block);
    }
    return OK;
}

/* --- start values ------------------------------------------------------------------- */

/* Every sample through the block in full precision, whose keys and values add() then
 * finds. */
static enum err
scan_kv(struct run *r, enum err (*add)(struct run *r, const struct block_kv *kv, void *ctx),
        void *ctx)
{
    struct block_kv plain = {.spec = r->s->kv, .layer = r->block};
    const struct tensor *out;
    plain.spec.method = KV_TOKEN;
    plain.spec.past_only = true;
    plain.spec.window = 1;
    plain.spec.sink = 0;
    for (int64_t i = 0; i < r->s->samples; i++) {
        r->sample = i;
        TRY(stream_read(&r->x, &r->r.x, i));
        TRY(stream_prefetch(&r->x, i + 1));
        TRY(recon_plain(&r->r, &r->f.wq, &plain, &out));
        TRY(add(r, &plain, ctx));
        TRY(step_done(r, CALIB_PREPARE));
    }
    return OK;
}

/* Into minima and maxima of K (as they are quantized) and V, [4][K*d] on the device: k_min,
 * k_max, v_min, v_max. */
static enum err add_range(struct run *r, const struct block_kv *kv, void *ctx)
{
    const struct tensor *range = ctx;
    const struct tensor k = block_keys(&r->r.acts[0], r->arch, &kv->spec);
    const struct tensor v = block_values(&r->r.acts[0], r->arch);
    TRY(dev_col_minmax(r->dev, &range[0], &range[1], &k));
    return dev_col_minmax(r->dev, &range[2], &range[3], &v);
}

static enum err scan_to_host(struct run *r, float *host, int64_t C)
{
    void *memory = NULL;
    struct tensor range[4];
    const size_t bytes = 4 * (size_t)C * sizeof(float);
    TRY(dev_alloc(r->dev, &memory, bytes));
    for (int64_t i = 0; i < 4 * C; i++)
        host[i] = i / C % 2 ? -INFINITY : INFINITY;
    enum err err = dev_upload(r->dev, memory, host, bytes);
    for (int64_t i = 0; i < 4; i++)
        range[i] = tensor_1d((float *)memory + i * C, DT_F32, C);
    if (!err)
        err = scan_kv(r, add_range, range);
    if (!err)
        err = dev_download(r->dev, host, memory, bytes);
    dev_free(r->dev, memory);
    return err;
}

static enum err check_range(const struct run *r, const float *host, int64_t C)
{
    for (int64_t i = 0; i < 4 * C; i++)
        FAIL_IF(!isfinite(host[i]), ERR_NUMERIC,
                "block %" PRId64 ": %s are not finite in full precision; look at the "
                "checkpoint's values in this block",
                r->block, i < 2 * C ? "keys" : "values");
    return OK;
}

static enum err add_errors(struct run *r, const struct block_kv *kv, void *ctx)
{
    return kv_search_add(ctx, &r->r.acts[0], kv);
}

/* From range [4][C]. */
static enum err choose_alpha(struct run *r, float alpha[2], const float *range, int64_t C)
{
    const float *const mn[] = {range, range + 2 * C}, *const mx[] = {range + C,
                                                                     range + 3 * C};
    alpha[KV_K] = alpha[KV_V] = KV_ALPHA;
    if (!r->kv.dev)
        return OK;
    TRY(kv_search_begin(&r->kv, mn, mx));
    TRY(scan_kv(r, add_errors, &r->kv));
    kv_search_finish(alpha, &r->kv);
    return OK;
}

static enum err start_values(struct run *r)
{
    const int64_t C = r->arch->n_kv * r->arch->head_dim;
    float *host = NULL, alpha[2];
    if (!run_scans_kv(r, r->block))
        return fakequant_start(&r->f, NULL, NULL, NULL, NULL, NULL);
    TRY(mem_alloc(&host, 4 * (size_t)C, sizeof(*host)));
    enum err err = scan_to_host(r, host, C);
    if (!err)
        err = check_range(r, host, C);
    if (!err)
        err = choose_alpha(r, alpha, host, C);
    if (!err)
        err = fakequant_start(&r->f, host, host + C, host + 2 * C, host + 3 * C, alpha);
    mem_free(host);
    return err;
}

/* --- from the inputs of projections --------------------------------------------------- */

/* Second moments of the inputs, as the block in full precision has them on the quantized
 * stream: for the search of clipping, and for GPTQ. */
static enum err gather_inputs(struct run *r)
{
    const struct tensor *out;
    if (r->search.dev)
        search_begin(&r->search);
    if (r->g.dev)
        TRY(gptq_begin(&r->g));
    for (int64_t i = 0; i < r->s->samples; i++) {
        r->sample = i;
        TRY(stream_read(&r->x, &r->r.x, i));
        TRY(stream_prefetch(&r->x, i + 1));
        TRY(recon_plain(&r->r, &r->f.wq, NULL, &out));
        if (r->search.dev)
            TRY(search_add(&r->search, &r->r.acts[0]));
        if (r->g.dev)
            TRY(gptq_add(&r->g, &r->r.acts[0]));
        TRY(step_done(r, CALIB_PREPARE));
    }
    return OK;
}

/* Weights take their codes at the next apply. */
static enum err choose_codes(struct run *r)
{
    const enum err err = gptq_finish(&r->g, &r->f);
    return err ? err_add(err, "block %" PRId64 ", ", r->block) : OK;
}

/* What learns, where it begins. */
static enum err start_block(struct run *r)
{
    if (run_gathers(r))
        TRY(gather_inputs(r));
    TRY(start_values(r));
    if (r->search.dev)
        TRY(search_finish(&r->search, &r->f));
    return r->f.gptq_start ? choose_codes(r) : OK;
}

/* --- one block ---------------------------------------------------------------------- */

static enum err hand_over(struct run *r)
{
    struct block_quant q = {0};
    TRY(fakequant_export(&r->f, &q));
    const enum err err = r->io->save_block(r->io->ctx, r->block, &q, &r->at.stats);
    block_quant_free(&q);
    return err;
}

static enum err calibrate_block(struct run *r)
{
    const double units = r->units_done;
    bool restored = false;
    r->at = (struct progress){.stats = {.block = r->block}};
    r->clock = clock_s();
    dev_gemm_seconds(r->dev, true);
    TRY(load_block(r));
    prefetch_next(r);
    if (r->f.gptq) {
        TRY(gather_inputs(r));
        TRY(choose_codes(r));
    }
    if (fakequant_learns(&r->f, r->block))
        TRY(run_load_partial(r, &restored));
    if (!restored)
        TRY(start_block(r));
    else
        r->units_done += run_units_so_far(r);
    TRY(run_train_block(r));
    r->units_done = units + run_block_units(r, r->block);
    run_take_time(r);
    TRY(hand_over(r));
    run_event(r, CALIB_BLOCK, r->at.stats.best_loss);
    return OK;
}

/* Every stream from before block r->block to before the next. */
static enum err advance(struct run *r)
{
    const int64_t next = r->block + 1;
    TRY(move_quantized(r, CALIB_ADVANCE));
    if (next + r->r.depth < r->arch->n_layers)
        TRY(move_target(r, next + r->r.depth, CALIB_ADVANCE));
    release_block(r, r->block);
    return OK;
}

static double all_units(const struct run *r, int64_t first)
{
    const int64_t L = r->arch->n_layers;
    const int64_t filled = 2 * first + recon_reach(&r->r, first) + 1;
    const int64_t moved = (L - 1 - first) + (L - 1 - first - recon_reach(&r->r, first));
    double units = (double)((filled + moved) * r->s->samples);
    for (int64_t b = first; b < L; b++)
        units += run_block_units(r, b);
    return units;
}

static enum err run_all(struct run *r, int64_t first)
{
    TRY(open_run(r));
    r->units_total = all_units(r, first);
    if (first == r->arch->n_layers)
        return OK;
    TRY(fill_streams(r, first));
    for (r->block = first; r->block < r->arch->n_layers; r->block++) {
        TRY(calibrate_block(r));
        if (r->block + 1 < r->arch->n_layers)
            TRY(advance(r));
    }
    return OK;
}

enum err calib_run(struct dev *d, const struct arch *a, const struct model_source *src,
                   const struct calib_settings *s, const int32_t *tokens,
                   int64_t first_block, const struct calib_io *io)
{
    TRY(check_settings(a, s, first_block));
    struct run r = {.dev = d, .arch = a, .src = src, .s = s, .io = io, .tokens = tokens};
    const enum err err = run_all(&r, first_block);
    close_run(&r);
    return err;
}
