/* SPDX-License-Identifier: MIT
 *
 * Tensors of a checkpoint that are not part of its model, such as those of a vision tower. Nothing
 * is computed with them, but artifacts have them. Private to convert/checkpoint. */
#ifndef WKVQ_HF_REST_H
#define WKVQ_HF_REST_H

#include "calib/model/arch.h"
#include "convert/checkpoint/hf_files.h"

#include <stdbool.h>

/* All are borrowed. */
struct hf_rest {
    const struct hf_files *files;
    const bool *taken; /* [files->n_places], by name: the model uses the tensor */
    const struct arch *arch;
};

/* Warns of them, once for all; dir is for the message. */
void hf_rest_report(const struct hf_rest *r, const char *dir);
/* Reads all of them once and releases their pages. ERR_FORMAT if one holds a NaN or an infinity. */
enum err hf_rest_check(const struct hf_rest *r);

#endif
