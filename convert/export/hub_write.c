/* SPDX-License-Identifier: MIT
 *
 * Writes the files of a planned directory, and adds up their sizes. */
#include "convert/artifact/artifact_files.h"
#include "convert/export/hub.h"
#include "convert/output/outdir.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdatomic.h>
#include <string.h>

#define PIECE_BYTES ((size_t)8 << 20) /* made between two writes */

/* --- sizes -------------------------------------------------------------------------- */

/* Writes the files that are copied, and the index; dir NULL: adds up their sizes. */
static enum err write_copies(struct export_job *j, const char *dir)
{
    struct manifest_file file[ARTIFACT_FILES_MAX], index = {0};
    const struct out_plan *p = &((struct hub_plan *)j->plan)->tensors;
    size_t n;
    TRY(artifact_copy_tokenizer(dir, j->source->dir, file, &n));
    if (p->n_shards > 1)
        TRY(artifact_write_index(dir, p, &index));
    for (size_t i = 0; !dir && i < n; i++)
        j->bytes += file[i].bytes;
    if (!dir)
        j->bytes += index.bytes;
    return OK;
}

enum err hub_measure(struct export_job *j)
{
    struct hub_plan *p = j->plan;
    j->bytes = strlen(p->config) + strlen(p->card);
    TRY(out_plan_measure(&p->tensors));
    for (int k = 0; k < p->tensors.n_shards; k++)
        j->bytes += p->tensors.shard[k].bytes;
    for (size_t i = 0; i < p->tensors.n; i++)
        j->total += p->tensors.tensor[i].bytes;
    return write_copies(j, NULL);
}

/* --- tensors ------------------------------------------------------------------------ */

/* Rows of one tensor, made by all threads. */
struct piece {
    const struct hub_plan *p;
    const struct hub_tensor *t;
    uint8_t *dst, *scratch;
    int64_t first, rows;
    atomic_int_least64_t bad; /* a chunk that failed, or -1 */
};

static enum err fill(const struct piece *w, int64_t chunk, int thread)
{
    const int64_t begin = chunk * w->t->step, left = w->rows - begin;
    return hub_fill(w->t, w->dst + (size_t)begin * w->t->row_bytes, w->first + begin,
                    left < w->t->step ? left : w->t->step,
                    w->scratch + (size_t)thread * w->p->scratch);
}

static void fill_chunk(void *ctx, int64_t chunk, int thread)
{
    struct piece *w = ctx;
    if (!fill(w, chunk, thread))
        return;
    err_clear(); /* this thread's; the main thread records it again */
    atomic_store(&w->bad, chunk);
}

/* The tensors of one export while they are written. */
struct tensors {
    struct export_job *j;
    uint8_t *piece, *scratch;
};

/* Returns the rows made between two writes: whole steps. */
static int64_t piece_rows(const struct hub_tensor *t)
{
    const int64_t fit = (int64_t)(PIECE_BYTES / (t->row_bytes + 1)) / t->step * t->step;
    return fit ? fit : t->step;
}

static enum err write_rows(struct tensors *of, struct st_writer *f,
                           const struct hub_tensor *t)
{
    struct export_job *j = of->j;
    struct piece w = {.p = j->plan, .t = t, .dst = of->piece, .scratch = of->scratch};
    const int64_t most = piece_rows(t);
    atomic_init(&w.bad, -1);
    for (; w.first < t->rows; w.first += w.rows) {
        w.rows = t->rows - w.first < most ? t->rows - w.first : most;
        pool_run(j->pool, (w.rows + t->step - 1) / t->step, fill_chunk, &w);
        const int64_t bad = atomic_load(&w.bad);
        if (bad >= 0)
            return fill(&w, bad, 0);
        TRY(st_write(f, of->piece, (size_t)w.rows * t->row_bytes));
        TRY(export_advance(j, (size_t)w.rows * t->row_bytes));
    }
    return OK;
}

/* The last tensor of a module comes before those of the next, or of none. */
static void release_pages(const struct export_job *j, size_t i)
{
    const struct hub_plan *p = j->plan;
    const struct hub_tensor *t = &p->how[i];
    if (!t->linear)
        artifact_release(j->source->artifact, t->src->name);
    else if (i + 1 == p->tensors.n || p->how[i + 1].linear != t->linear)
        for (int k = 0; k < t->n_linears; k++)
            export_release(j->source, &t->linear[k]);
}

/* Writes tensor number i of the plan. */
static enum err write_tensor(void *ctx, struct st_writer *f, size_t i)
{
    struct tensors *of = ctx;
    const struct hub_plan *p = of->j->plan;
    TRY(write_rows(of, f, &p->how[i]));
    release_pages(of->j, i);
    return OK;
}

static enum err alloc_buffers(struct tensors *of)
{
    const struct hub_plan *p = of->j->plan;
    size_t most = 0;
    for (size_t i = 0; i < p->tensors.n; i++) {
        const size_t n = (size_t)piece_rows(&p->how[i]) * p->how[i].row_bytes;
        most = n > most ? n : most;
    }
    TRY(mem_alloc(&of->piece, most, 1));
    return mem_alloc(&of->scratch, (size_t)pool_threads(of->j->pool), p->scratch);
}

static enum err write_tensors(struct export_job *j, const char *dir)
{
    enum err err = OK;
    struct tensors of = {.j = j};
    struct hub_plan *p = j->plan;
    TRY_OUT(alloc_buffers(&of));
    err = out_plan_write(&p->tensors, dir, write_tensor, &of);
out:
    mem_free(of.piece);
    mem_free(of.scratch);
    return err;
}

/* --- the directory ------------------------------------------------------------------ */

static enum err write_text(const char *dir, const char *name, const char *text)
{
    char *path = NULL;
    TRY(file_join(&path, dir, name));
    const enum err err = file_write_all(path, text, strlen(text));
    mem_free(path);
    return err;
}

static enum err write_all(struct export_job *j, const struct outdir *d)
{
    const struct hub_plan *p = j->plan;
    TRY(write_tensors(j, d->tmp));
    TRY(write_copies(j, d->tmp));
    TRY(outdir_write_card(d, p->card));
    return write_text(d->tmp, "config.json", p->config);
}

enum err hub_write(struct export_job *j, const char *out)
{
    enum err err = OK;
    struct outdir dir = {0};
    TRY_OUT(outdir_open(&dir, out, OUTDIR_NEW));
    TRY_OUT(write_all(j, &dir));
    TRY_OUT(outdir_commit(&dir));
out:
    outdir_abort(&dir);
    return err;
}
