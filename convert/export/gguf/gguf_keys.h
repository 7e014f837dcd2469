/* SPDX-License-Identifier: MIT
 *
 * An architecture in GGUF: llama.cpp's name for it, its hyper-parameters, its tensors. */
#ifndef WKVQ_GGUF_KEYS_H
#define WKVQ_GGUF_KEYS_H

#include "convert/export/export.h"
#include "convert/export/gguf/gguf_copy.h"
#include "convert/export/gguf/gguf_file.h"
#include "convert/export/gguf/gguf_vocab.h"

/* Limits of llama.cpp, LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of its src/llama-hparams.h. The
 * second was lower before August 2026. */
#define GGUF_MAX_LAYERS 512
#define GGUF_MAX_EXPERTS 1024
#define GGUF_MAX_EXPERTS_BEFORE 512

/* A tensor. Its values are those of linear if that is quantized, as codes if its type is one
 * of blocks, and otherwise those of m, of m's type or as F32. */
struct gguf_item {
    char name[GGUF_NAME_BYTES]; /* "blk.3.attn_q.weight" */
    enum gguf_type type;
    int64_t rows, cols;
    int n_dims;  /* of the tensor: 1, its rows is 1; 2; 3, it is a matrix of each expert */
    bool widens; /* small and unquantized: its values become F32 */
    bool plus_one; /* where it widens: 1 is added to its elements */
    /* NULL: not a projection's weight, nor the quantized embedding or head */
    const struct export_linear *linear;
    struct host_mat m; /* borrowed from the artifact or the plan */
    /* Rows, or the elements of a vector, are interleaved head by head as
     * gguf_row_source() says. 0: they stay as stored. */
    int64_t head_dim;
    bool
        continues; /* its rows are of the tensor before, which has the same type and cols */
};

/* Biases of one layer with the shift of values in them. */
struct gguf_folded {
    float *v, *o; /* [kv heads * head_dim], [hidden_size] */
};

/* What llama.cpp's graph for a family computes. */
struct gguf_graph {
    const char *arch;  /* "llama", "qwen2", ... */
    bool has_llama3;   /* reads rope_freqs.weight */
    bool has_biases;   /* of o_proj and the MLP */
    bool fuses;        /* attn_qkv has the rows of q, k, v, and ffn_up those of gate, up */
    bool renormalizes; /* of experts: divides their weights by the sum */
    bool heads_fill_width; /* needs H d = D */
    bool has_own_head;     /* none that is tied to the embedding */
    /* Gemma's: every layer of so many sees the whole text, the others a window, which it computes;
     * 0: computes no windows */
    int64_t full_step;
    int64_t no_rope_step; /* every layer of so many has no rope; 0: all have one */
};

/* What a file will hold. */
struct gguf_plan {
    const struct gguf_graph *graph; /* static */
    struct gguf_vocab vocab;
    struct gguf_copy copy;  /* in place of vocab, if it has keys */
    struct gguf_item *item; /* [n] in the file's order, owned */
    size_t n, room;
    float *rope; /* factors of a scaling, by pair; longrope: short, long; owned */
    struct gguf_folded *folded; /* [layers] NULL: nothing is folded; owned */
    float *biases;              /* their memory, owned */
    struct gguf_writer *w;      /* with all keys and tensors; owned */
};

/* Refuses, with ERR_SUPPORT, what llama.cpp's graph for the family does not compute. */
enum err gguf_check_arch(struct gguf_plan *p, const struct export_source *s);
/* gguf_fold.c: computes the biases of --fold v-shift. ERR_SUPPORT for an architecture
 * without a bias of o_proj; ERR_MEMORY. */
enum err gguf_fold_shift(struct gguf_plan *p, const struct export_source *s);
/* gguf_tensors.c: lists the tensors. only_q8: quantized matrices are Q8_0, and otherwise of
 * the smallest type that holds their bits. Errors: ERR_SUPPORT for a projection that no type
 * can hold; ERR_MEMORY. */
enum err gguf_list_tensors(struct gguf_plan *p, const struct export_source *s,
                           bool only_q8);
/* Adds general.* and the architecture's keys to p->w, the tokenizer's unless p->vocab is
 * empty, and announces the tensors. */
enum err gguf_add_keys(struct gguf_plan *p, const struct export_job *j);

/* Returns positions up to which llama.cpp computes the same as the model: those before a
 * sliding window or a scaling that it does not have. */
int64_t gguf_context(const struct arch *a);

#endif
