/* SPDX-License-Identifier: MIT
 *
 * Exports that are directories in the form of the Hugging Face hub: config.json,
 * safetensors, tokenizer files and a model card. A format adds its tensors and its part of
 * config.json; the rest is the same for all. Private to convert/export. */
#ifndef WKVQ_HUB_H
#define WKVQ_HUB_H

#include "convert/export/export.h"
#include "convert/output/out_plan.h"

#define F16_MAX 65504.0f /* beyond it a value is infinite in float16 */

/* A module of the exported checkpoint: a projection, the embedding, the head, or several
 * projections that the family's checkpoints have in one (hf_fused.h). */
struct hub_module {
    const struct export_linear *part; /* [n] in the order of their rows, borrowed */
    int n;
    int64_t out, in;
    char name[96]; /* "model.layers.3.self_attn.qkv_proj" */
};

/* How the bytes of a tensor are made: whole rows, by all threads. */
struct hub_tensor {
    const struct export_linear *linear; /* [n_linears] parts of a module; NULL: from src */
    int n_linears;
    /* Rows of a part that are one row of the tensor: a call of fill then gets rows of one
     * part, as if the tensor had no other. 0: a call gets the tensor with all its parts. */
    int64_t unit;
    const struct st_tensor *src; /* borrowed; of a part: its weight of 16 bits */
    int64_t rows;                /* [rows] of row_bytes each */
    size_t row_bytes;
    int64_t step; /* rows that one call of fill makes, at most */
    /* dst [n][row_bytes] = rows [first, first + n). scratch: the plan's bytes, for this
     * thread. The same call gives the same bytes. Returns ERR_SUPPORT for a value that the
     * format cannot hold, else OK. */
    enum err (*fill)(const struct hub_tensor *t, uint8_t *dst, int64_t first, int64_t n,
                     void *scratch);
    int64_t group;    /* the format's own: columns of an exported group, 0: whole rows */
    int bits;         /* the format's own: bits of an exported code */
    bool projection;  /* set by hub.c: part of a layer's projection */
    enum dtype dtype; /* of the exported tensor */
};

struct hub_plan {
    struct out_plan tensors; /* names, types, shapes and shards */
    struct hub_tensor *how;  /* [tensors.n], owned */
    size_t room;
    size_t scratch; /* bytes per thread for fill, at least */
    char *config;   /* text of config.json, owned */
    char *card;     /* text of README.md, owned */
};

/* --- hub_module.c -------------------------------------------------------------------- */

/* Returns the module of one matrix. */
struct hub_module hub_module_of(const struct export_linear *l);
/* Returns the module that begins with projection i; the next begins with i + n. */
struct hub_module hub_module_at(const struct export_source *s, int64_t i);
/* Returns true if all its parts have 16 bits. */
bool hub_module_is_plain(const struct hub_module *m);
/* Appends the names of the modules of 16 bits to list. All experts of a layer are one entry: with
 * patterns a pattern of compressed-tensors, else the name of the module that holds them. */
void hub_add_plain_names(json_t *list, const struct export_source *s, bool patterns);
/* Refuses (ERR_SUPPORT) a part whose rows end inside a word of so many rows, and such an expert's
 * projection, as engines put those of gate and up together. Another module of one part is never
 * refused. */
enum err hub_module_check_words(const struct hub_module *m, int64_t rows,
                                const char *format);
/* dst = rows [first, first + n) of t by t->fill, part by part. */
enum err hub_fill(const struct hub_tensor *t, uint8_t *dst, int64_t first, int64_t n,
                  void *scratch);

/* --- hub.c --------------------------------------------------------------------------- */

/* Returns a new, empty plan, which becomes j->plan. ERR_MEMORY. */
enum err hub_plan_new(struct hub_plan **out, struct export_job *j);
/* Adds a tensor NAME TAIL. how->rows and row_bytes are set here; the other fields are the
 * caller's. dim: n_dims numbers. A tensor of one dimension has one row. */
enum err hub_add(struct hub_plan *p, const struct hub_tensor *how, const char *name,
                 const char *tail, int n_dims, const int64_t *dim);
/* Adds all tensors of the source that are not projections, and the modules of 16 bits,
 * unchanged (as DT_OTHER) or converted to F32, F16 or BF16. */
enum err hub_add_rest(struct hub_plan *p, const struct export_source *s, enum dtype to);
/* Adds NAME.weight, the dequantized values of a module as F32, F16 or BF16. */
enum err hub_add_values(struct hub_plan *p, const struct hub_module *m, enum dtype to);
/* Returns true if the type holds every value of such codes and scales: code - zero has as
 * many bits as a code, and the product as many as both factors together. With bits 0, returns
 * true if it holds the scales. */
bool hub_is_exact(enum dtype to, int bits, int scale_bits);
/* Notes how many converted tensors hold values that their new type rounds, of each type that they
 * had; *n = how many in all. After they were added. */
enum err hub_note_rounded(struct export_job *j, enum dtype to, int64_t *n);
/* Completes the plan: config.json with `quantization` (NULL: none; the reference is
 * consumed) and torch_dtype, the model card, shards, and j->bytes. Refuses values that
 * do not fit F16 if torch_dtype is float16. */
enum err hub_finish(struct export_job *j, json_t *quantization, const char *torch_dtype);
/* Sets j->bytes and j->total from the plan's tensors and texts. A step of hub_finish(). */
enum err hub_measure(struct export_job *j);
/* dst [n] = x, rounded to F16 or BF16, or F32 unchanged. ERR_SUPPORT, with the tensor's
 * name, if a finite value becomes infinite. */
enum err hub_narrow(uint8_t *dst, const float *x, int64_t n, enum dtype to,
                    const char *name);
/* export_format.write and release of a format of this form. */
enum err hub_write(struct export_job *j, const char *out);
void hub_release(struct export_job *j);

/* --- hub_card.c ---------------------------------------------------------------------- */

/* *out = the text of README.md, which the caller frees with mem_free(). */
enum err hub_card(char **out, const struct export_job *j);

/* --- scheme.c ------------------------------------------------------------------------ */

/* How a projection's codes are exported: the same values, in wider codes or smaller groups
 * where the engines need that. */
struct scheme {
    int bits;      /* 4, 8, or 16: not quantized */
    int64_t group; /* columns; 0: whole rows */
};

/* Sets scheme [n_layers][N_LIN], and notes what changes. most: 4 or 8 bits. one_group: all
 * projections get the same group size. Refuses more bits, groups below 32 columns, and
 * projections that engines fuse (q, k, v; gate, up; those of experts) if only some are
 * quantized. */
enum err schemes_find(struct scheme *scheme, struct export_job *j, int most,
                      bool one_group);
/* *out = that of the quantized head, which is not tied; at most 4 bits. Refuses groups below
 * 32 columns. */
enum err scheme_of_head(struct scheme *out, const struct export_job *j);
bool scheme_same(struct scheme a, struct scheme b);
/* Returns that of a projection of a layer, or of one expert's. */
struct scheme scheme_of(const struct scheme *scheme, const struct export_linear *l);
/* Returns true if scheme[i] is quantized and no earlier one is the same. */
bool scheme_is_new(const struct scheme *scheme, int64_t i);
/* Returns the artifact's group that holds exported group g. */
int64_t scheme_source_group(const struct packed_linear *p, int64_t group, int64_t g);
/* Returns the number of exported groups in a row. */
int64_t scheme_groups(const struct packed_linear *p, int64_t group);

/* --- hub_packed.c -------------------------------------------------------------------- */

/* A format of packed codes. scheme [n_layers][N_LIN] in all functions; head: that of the head,
 * 16 bits if it is not packed. */
struct hub_packing {
    int most;        /* bits */
    bool one_group;  /* as in schemes_find() */
    bool packs_head; /* its engines have kernels for a packed head that is not tied */
    /* Adds the tensors of a quantized module. */
    enum err (*add)(struct hub_plan *p, const struct hub_module *m, const struct scheme *s);
    /* *out = quantization_config, a new reference. */
    enum err (*config)(json_t **out, const struct export_job *j,
                       const struct scheme *scheme, struct scheme head);
    /* Adds the tensors of a cache with j->carries_target; may be NULL. */
    enum err (*cache)(struct hub_plan *p, const struct export_job *j);
    /* Adds notes; may be NULL. */
    enum err (*note)(struct export_job *j, const struct scheme *scheme, struct scheme head);
};
/* export_format.check of such a format. */
enum err hub_check_packed(struct export_job *j, const struct hub_packing *how);

#endif
