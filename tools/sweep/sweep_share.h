/* SPDX-License-Identifier: MIT
 *
 * What the processes of one sweep on many machines compute once, in OUT/shared:
 *
 *   OUT/shared/checkpoint    CRC-32 of the checkpoint
 *   OUT/shared/HASH.tokens   the tokens of a text
 *
 * The first line of a file is its key: the rules of the text, and the name, size and times of
 * every file that was read. A file with another key is ignored and replaced, so nothing stale
 * is ever used. Files appear complete, and several processes may write one at the same time.
 * They are read by every sweep, and written if settings.share is true. */
#ifndef WKVQ_SWEEP_SHARE_H
#define WKVQ_SWEEP_SHARE_H

#include "convert/checkpoint/hf.h"
#include "tools/sweep/sweep.h"

/* Sets s->model_crc, the hf_identity of m. Errors: those of hf_identity(), ERR_IO, ERR_MEMORY. */
enum err sweep_share_checkpoint(struct sweep *s, const struct hf_model *m);
/* Sets t->texts; the other fields of t are set already. Errors: those of texts_read(), and with
 * settings.share ERR_USAGE for a pipe, which only one process can read. */
enum err sweep_share_text(struct sweep_text *t, const struct sweep *s,
                          const struct recipe *r);

#endif
