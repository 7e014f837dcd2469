/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_plain.h"

#include "convert/artifact/reader_check.h"
#include "kernels/base/mem.h"

#include <string.h>

static enum err bind_block(struct artifact *a, const struct model_source *src, int64_t i)
{
    struct block_src s;
    struct packed_block *b = &a->block[i];
    const int64_t channels = a->arch.n_kv * a->arch.head_dim;
    TRY(src->block(src->ctx, i, &s));
    *b = (struct packed_block){.k_scale = a->channels,
                               .k_shift = a->channels + channels,
                               .v_scale = a->channels,
                               .v_shift = a->channels + channels};
    memcpy(b->norm, s.norm, sizeof(b->norm));
    b->router = s.router;
    for (int l = 0; l < N_LIN; l++)
        b->lin[l] = (struct packed_linear){.out = arch_out(&a->arch, l),
                                           .in = arch_in(&a->arch, l),
                                           .groups = 1,
                                           .bits = 16,
                                           .w = s.lin[l],
                                           .bias = s.bias[l]};
    return OK;
}

static struct packed_linear plain_end(struct host_mat m)
{
    return (struct packed_linear){
        .out = m.rows, .in = m.cols, .groups = 1, .bits = 16, .w = m};
}

static enum err bind_all(struct artifact *a, struct hf_model *m)
{
    const struct model_source *src = hf_source(m);
    const size_t channels = (size_t)(a->arch.n_kv * a->arch.head_dim);
    const size_t blocks = (size_t)a->arch.n_layers;
    TRY(mem_calloc(&a->manifest, 1, sizeof(*a->manifest)));
    TRY(mem_calloc(&a->block, blocks, sizeof(*a->block)));
    TRY(mem_calloc(&a->unpacked, blocks, sizeof(*a->unpacked)));
    TRY(mem_calloc(&a->channels, 2 * channels, sizeof(*a->channels)));
    for (size_t c = 0; c < channels; c++) /* smoothing 1, shift 0 */
        a->channels[c] = 1;
    struct host_mat embed, head;
    TRY(src->ends(src->ctx, &embed, &a->final_norm, &head));
    a->embed = plain_end(embed);
    a->head = plain_end(head);
    for (int64_t i = 0; i < a->arch.n_layers; i++)
        TRY(bind_block(a, src, i));
    return OK;
}

enum err artifact_plain(struct artifact **out, struct hf_model *m)
{
    struct artifact *a = NULL;
    TRY(mem_calloc(&a, 1, sizeof(*a)));
    a->arch = *hf_arch(m);
    a->weights = (struct weight_spec){.method = WEIGHT_RTN, .bits = 16};
    a->kv = (struct kv_spec){.method = KV_TOKEN, .past_only = true, .window = 1};
    kv_set_unquantized(&a->kv);
    const enum err err = bind_all(a, m);
    if (err)
        artifact_close(&a);
    else
        *out = a;
    return err;
}
