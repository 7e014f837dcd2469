/* SPDX-License-Identifier: MIT
 *
 * A checkpoint as an artifact without files, so that the packed runtime can run it in full
 * precision. */
#ifndef WKVQ_ARTIFACT_PLAIN_H
#define WKVQ_ARTIFACT_PLAIN_H

#include "convert/artifact/reader.h"
#include "convert/checkpoint/hf.h"

/* Creates an artifact of 16-bit weights and a 16-bit cache. Its tensors are views of m,
 * which must outlive it and must not rotate its values. It has no manifest text and no
 * files. Release it with artifact_close(). Errors: ERR_MEMORY, those of the source. */
enum err artifact_plain(struct artifact **out, struct hf_model *m);

#endif
