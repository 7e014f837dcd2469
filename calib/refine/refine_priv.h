/* SPDX-License-Identifier: MIT
 *
 * A refinement in work: refine.c runs it, refine_saved.c saves and restores it. Private to
 * calib/refine. */
#ifndef WKVQ_REFINE_PRIV_H
#define WKVQ_REFINE_PRIV_H

#include "calib/model/ends.h"
#include "calib/refine/distill.h"
#include "calib/refine/refine.h"
#include "calib/refine/student.h"
#include "calib/streams.h"

struct refine {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src; /* what is quantized */
    /* The student's source: src, or where the head is quantized src with the quantized ends. */
    const struct model_source *served;
    struct ends_source ends;
    const struct refine_settings *s;
    const struct refine_io *io;
    const int32_t *tokens;
    struct student st;
    struct stream teacher; /* normalized last hidden states, act */
    int64_t *order;        /* [samples] of the epoch in work */
    int64_t epoch_of_order;
    struct distiller distill;
    struct share share; /* the windows of a batch */
    struct tensor *dx;  /* [batch] [T,D] F32: of the windows of this process */
    void *dx_memory;
    int64_t *chosen;     /* [batch] windows in work, of all processes */
    const int32_t **ids; /* [batch] tokens of those of this process */
    uint8_t *best_codes; /* host, as st.codes; NULL: codes are fixed */
    struct refine_result *out;
    int64_t step, steps;
    double saved; /* when the last step was saved, or the first one began */
    double units_done, units_total; /* windows through the model once, forward */
};

/* Save position, parameters and moments through the caller's callbacks, and restore them.
 * *restored = false: there was nothing to restore. ERR_MISMATCH: what is saved is not of this
 * model or these settings. */
enum err refine_save(struct refine *r);
enum err refine_restore(struct refine *r, bool *restored);

#endif
