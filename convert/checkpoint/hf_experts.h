/* SPDX-License-Identifier: MIT
 *
 * The experts of a mixture, in config.json and in tensors. Private to convert/checkpoint. */
#ifndef WKVQ_HF_EXPERTS_H
#define WKVQ_HF_EXPERTS_H

#include "convert/checkpoint/hf_config.h"
#include "convert/checkpoint/hf_files.h"

struct packed; /* packed.h */

/* Reads the experts of a->family into a: num_experts (or num_local_experts),
 * num_experts_per_tok, norm_topk_prob, and the size of one. Of a family without experts, it
 * refuses them. where: the file's path. Errors: ERR_SUPPORT, ERR_FORMAT. */
enum err hf_read_experts(struct arch *a, const json_t *o, const char *where);

/* A tensor that was joined to others, and its file. */
struct hf_part {
    struct st_tensor t;
    int file;
};

/* Where the experts' weights are. */
struct hf_experts {
    struct hf_part *from; /* [layers][3][E] of gate, up and down */
    const void **data;    /* [layers][3][E] */
    char *names;          /* of the tensors that stand for them */
};

/* Returns ERR_NOT_FOUND with the first one that is missing if config.json claims more weights of
 * experts than f has tensors: memory and time of the functions that follow are in proportion to
 * their number. dir: for messages. */
enum err hf_need_experts(const struct hf_files *f, const struct arch *a, const char *dir);
/* Replaces the weights of the experts of a layer in f by one tensor for each of gate, up and down,
 * with all rows, the name of arch_lin_module(), and data NULL. Places found before become
 * invalid. dir: for messages. Errors: ERR_NOT_FOUND, ERR_FORMAT for another shape or two types,
 * ERR_MEMORY. Close in any case. */
enum err hf_join_experts(struct hf_experts *x, struct hf_files *f, const struct arch *a,
                         const char *dir);
/* Joins the packed projections of the experts of each layer alike. Those of gate, up or down
 * stay if none of them is packed. Nothing to do without experts. Errors: ERR_SUPPORT if some of a
 * layer's are packed and some not, or differ in bits, group size or columns; ERR_MEMORY. */
enum err hf_join_packed(struct packed *p, const struct arch *a);
void hf_experts_close(struct hf_experts *x); /* accepts a zeroed or half-built one */

/* Points m, the weight of projection lin in a layer, at its parts; nothing to do for q, k, v, o
 * and without experts. */
void hf_experts_set(struct host_mat *m, const struct hf_experts *x, const struct arch *a,
                    int64_t layer, int lin);
/* Calls tell for the tensors that m's parts are. */
void hf_experts_tell(const struct hf_experts *x, const struct hf_files *f,
                     const struct host_mat *m,
                     void (*tell)(const struct st_file *f, const struct st_tensor *t));

#endif
