/* SPDX-License-Identifier: MIT
 *
 * Products with packed weights. For one token, codes are decoded as they are read. For
 * several tokens, a panel of rows is unpacked once and multiplied with every token, in F32 or
 * in 16-bit integers (rt_linear.int16).
 *
 * The rows of up to three projections of one input are cut into pieces that the threads
 * take in turn. Each row is computed by itself, so no result depends on the cut.
 *
 *   one token     4 bits, group a multiple of 128   rows_nibbles, several rows at once
 *                 4 bits, group a multiple of 8     dot_nibbles, row by row
 *                 8 bits                            rows_bytes, several rows at once
 *                 any other format                  unpacked to bytes, then rows_bytes
 *                 unquantized                       rows_plain
 *   more tokens   4 bits, group a multiple of 8     panel->fill_nibbles, then multiply
 *                 any other format                  rows to F32, panel->fill_rows, multiply
 *   in 16 bits    4 bits, group a multiple of 8     int16->fill_nibbles, then multiply
 *                 2 to 8 bits, the same groups      rows to bytes, int16->fill_row, multiply
 */
#include "convert/format/bitpack.h"
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <string.h>

/* Rows of a piece. Longer pieces mean longer sequential reads; rows of many bytes reach the
 * same with fewer of them. */
#define MIN_PIECE_ROWS 32
#define MAX_LONG_ROWS 256
#define MAX_PIECE_ROWS 768
#define LONG_PIECE_BYTES (256 << 10) /* MAX_LONG_ROWS applies above this */

/* Columns of a panel that are unpacked and multiplied at a time: with their part of x they
 * fit the first-level cache. A multiple of RT_PAD_COLUMNS. */
#define PANEL_COLUMNS 256

/* Rows unpacked at a time, to bytes or F32, for formats that the kernels do not read
 * directly. */
#define UNPACKED_ROWS 4

/* Bytes of codes prefetched before a piece begins; the kernels prefetch the rest. */
#define PREFETCH_BYTES 8192

/* One call of rt_linear_run. */
struct linear_job {
    struct rt_linear *l;
    const struct packed_linear *const *p;
    float *const *y;
    int64_t first[4]; /* pieces before projection i */
    int count;
    int64_t rows;   /* of a piece */
    const float *x; /* [n][in] */
    int64_t n;
};

/* A thread's share of rt_linear.scratch. */
struct scratch {
    float *panel;   /* [widest][RT_PANEL] */
    float *w;       /* [UNPACKED_ROWS][widest] */
    float *h;       /* [MAX_PIECE_ROWS][most_groups] */
    uint8_t *z;     /* [MAX_PIECE_ROWS][most_groups + 1] */
    uint8_t *bytes; /* [UNPACKED_ROWS][widest] */
};

static size_t scratch_bytes(const struct rt_linear *l)
{
    const size_t groups = (size_t)l->most_groups, widest = (size_t)l->widest;
    const size_t n = (UNPACKED_ROWS + RT_PANEL) * widest * sizeof(float) +
                     MAX_PIECE_ROWS * (groups * sizeof(float) + groups + 1) +
                     UNPACKED_ROWS * widest;
    return (n + MEM_ALIGN + 63) / MEM_ALIGN * MEM_ALIGN;
}

static struct scratch scratch_of(const struct rt_linear *l, int thread)
{
    struct scratch s;
    s.panel = (float *)((char *)l->scratch + (size_t)thread * l->thread_bytes);
    s.w = s.panel + RT_PANEL * l->widest;
    s.h = s.w + UNPACKED_ROWS * l->widest;
    s.z = (uint8_t *)(s.h + MAX_PIECE_ROWS * l->most_groups);
    s.bytes = s.z + MAX_PIECE_ROWS * (l->most_groups + 1);
    return s;
}

static void widen(struct rt_linear *l, int64_t in, int64_t groups)
{
    l->widest = in > l->widest ? in : l->widest;
    l->most_groups = groups > l->most_groups ? groups : l->most_groups;
}

enum err rt_linear_open(struct rt_linear *l, struct pool *pool, const struct artifact *a)
{
    const struct arch *arch = artifact_arch(a);
    l->pool = pool;
    l->kern = rt_kernels_best();
    widen(l, artifact_head(a)->in, artifact_head(a)->groups);
    for (int64_t i = 0; i < arch->n_layers; i++)
        for (int j = 0; j < N_LIN; j++)
            widen(l, artifact_block(a, i)->lin[j].in, artifact_block(a, i)->lin[j].groups);
    l->widest = rt_padded(l->widest);
    l->thread_bytes = scratch_bytes(l);
    TRY(mem_alloc(&l->interleaved, (size_t)l->widest, sizeof(float)));
    TRY(mem_alloc(&l->fixed, (size_t)rt_interleaved_floats(l->widest), sizeof(float)));
    return mem_alloc(&l->scratch, (size_t)pool_threads(pool), l->thread_bytes);
}

void rt_linear_close(struct rt_linear *l)
{
    mem_free(l->interleaved);
    mem_free(l->fixed);
    mem_free(l->scratch);
    mem_free(l->rounded.x);
    mem_free(l->rounded.unit);
    mem_free(l->rounded.sums);
    *l = (struct rt_linear){0};
}

enum err rt_linear_reserve(struct rt_linear *l, int64_t n)
{
    struct rt_rounded *r = &l->rounded;
    if (!l->int16 || n <= r->room)
        return OK;
    mem_free(r->x);
    mem_free(r->unit);
    mem_free(r->sums);
    *r = (struct rt_rounded){0};
    TRY(mem_alloc(&r->sums, (size_t)pool_threads(l->pool),
                  (size_t)n * RT_PANEL * sizeof(*r->sums)));
    TRY(mem_alloc(&r->x, (size_t)n, (size_t)l->widest * sizeof(*r->x)));
    TRY(mem_alloc(&r->unit, (size_t)n,
                  (size_t)(l->widest / RT_PAD_COLUMNS) * sizeof(*r->unit)));
    r->room = n;
    return OK;
}

/* --- rows --------------------------------------------------------------------------- */

/* Returns row r, its scales unpacked to F32 and its zeros to bytes. */
static struct rt_row row_of(const struct packed_linear *p, int64_t r,
                            const struct scratch *s, const struct rt_kernels *kern)
{
    kern->to_f32(s->h, p->scales + 2 * r * p->groups, DT_F16, p->groups);
    bitpack_unpack_row(s->z, p->zeros + r * bitpack_bytes(p->groups, p->bits), p->groups,
                       p->bits);
    return (struct rt_row){
        .codes = p->qweight + r * bitpack_bytes(p->in, p->bits),
        .h = s->h,
        .z = s->z,
        .in = p->in,
        .group = p->group_size > 0 ? p->group_size : p->in,
        .bits = p->bits,
    };
}

static bool takes_dot_nibbles(const struct packed_linear *p)
{
    return p->bits == 4 && (p->group_size % 8 == 0 || p->groups == 1);
}

/* Groups begin with a pair of columns. */
static bool takes_int16(const struct rt_linear *l, const struct packed_linear *p)
{
    return l->int16 && p->bits < 16 && (p->group_size % 8 == 0 || p->groups == 1);
}

static const void *plain_row(const struct host_mat *w, int64_t r)
{
    return (const char *)w->data + (size_t)(r * w->cols) * dtype_bytes(w->dtype);
}

static bool takes_rows_nibbles(const struct packed_linear *p)
{
    return p->bits == 4 && (p->group_size % RT_PAD_COLUMNS == 0 || p->groups == 1);
}

/* Spreads the eight nibbles of 32 bits over eight bytes. */
static inline void unpack_word(uint8_t *z, const uint8_t *packed)
{
    uint64_t w = 0;
    memcpy(&w, packed, 4);
    w = (w | w << 16) & 0x0000ffff0000ffff;
    w = (w | w << 8) & 0x00ff00ff00ff00ff;
    w = (w | w << 4) & 0x0f0f0f0f0f0f0f0f;
    memcpy(z, &w, 8);
}

static void unpack_nibbles(uint8_t *z, const uint8_t *packed, int64_t bytes)
{
    int64_t i = 0;
    for (; i + 4 <= bytes; i += 4)
        unpack_word(z + 2 * i, packed + i);
    for (; i < bytes; i++) {
        z[2 * i] = packed[i] & 15;
        z[2 * i + 1] = packed[i] >> 4;
    }
}

/* Unpacks the zeros of `rows` rows from `row` on, [rows][groups]. A row with an odd number
 * of groups ends in half a byte. It is read and written in whole words where rows follow:
 * they own the bytes beyond, and are unpacked over what was written there. */
static void unpack_zeros(uint8_t *z, const struct packed_linear *p, int64_t row,
                         int64_t rows)
{
    const int64_t groups = p->groups, bytes = bitpack_bytes(groups, 4);
    const uint8_t *packed = p->zeros + row * bytes;
    if (groups % 2 == 0) {
        unpack_nibbles(z, packed, rows * bytes);
        return;
    }
    for (int64_t r = 0; r < rows; r++, z += groups, packed += bytes)
        if (r + 4 < rows)
            for (int64_t i = 0; i < bytes; i += 4)
                unpack_word(z + 2 * i, packed + i);
        else
            unpack_nibbles(z, packed, bytes);
}

/* Returns rows [first, end), all scales and zeros unpacked into s. */
static struct rt_rows rows_of(const struct linear_job *j, const struct packed_linear *p,
                              int64_t first, int64_t end, const struct scratch *s)
{
    const int64_t stride = bitpack_bytes(p->in, 4);
    unpack_zeros(s->z, p, first, end - first);
    j->l->kern->to_f32(s->h, p->scales + 2 * first * p->groups, DT_F16,
                       (end - first) * p->groups);
    return (struct rt_rows){.codes = p->qweight + first * stride,
                            .h = s->h,
                            .code_stride = stride,
                            .z = s->z,
                            .pair_stride = p->groups,
                            .in = p->in,
                            .group = p->groups > 1 ? p->group_size : rt_padded(p->in),
                            .groups = p->groups};
}

/* Returns rows [first, first + n) of 8 bits, or of any other width unpacked to bytes; then n
 * is at most UNPACKED_ROWS. */
static struct rt_rows byte_rows_of(const struct linear_job *j,
                                   const struct packed_linear *p, int64_t first, int64_t n,
                                   const struct scratch *s)
{
    const int64_t stride = bitpack_bytes(p->in, p->bits),
                  zeros = bitpack_bytes(p->groups, p->bits);
    struct rt_rows rows = {.codes = p->qweight + first * stride,
                           .h = s->h,
                           .code_stride = p->in,
                           .z = p->zeros + first * zeros,
                           .pair_stride = p->groups,
                           .in = p->in,
                           .group = p->groups > 1 ? p->group_size : p->in,
                           .groups = p->groups};
    j->l->kern->to_f32(s->h, p->scales + 2 * first * p->groups, DT_F16, n * p->groups);
    if (p->bits == 8)
        return rows;
    for (int64_t i = 0; i < n; i++) {
        bitpack_unpack_row(s->bytes + i * p->in, rows.codes + i * stride, p->in, p->bits);
        bitpack_unpack_row(s->z + i * p->groups, rows.z + i * zeros, p->groups, p->bits);
    }
    rows.codes = s->bytes;
    rows.z = s->z;
    return rows;
}

static void dot_byte_rows(const struct linear_job *j, const struct packed_linear *p,
                          float *y, int64_t first, int64_t end, const struct scratch *s)
{
    const int64_t step = p->bits == 8 ? MAX_PIECE_ROWS : UNPACKED_ROWS;
    for (int64_t r = first; r < end; r += step) {
        const int64_t n = end - r < step ? end - r : step;
        const struct rt_rows rows = byte_rows_of(j, p, r, n, s);
        j->l->kern->rows_bytes(y + r, &rows, n, j->x);
    }
}

/* y[first .. end) of one token. */
static void dot_rows(const struct linear_job *j, const struct packed_linear *p, float *y,
                     int64_t first, int64_t end, const struct scratch *s)
{
    const struct rt_kernels *kern = j->l->kern;
    if (p->bits == 16) {
        kern->rows_plain(y + first, plain_row(&p->w, first), p->w.dtype, end - first, j->x,
                         p->in);
        return;
    }
    if (takes_rows_nibbles(p)) {
        const struct rt_rows rows = rows_of(j, p, first, end, s);
        kern->rows_nibbles(y + first, &rows, end - first, j->l->fixed);
        return;
    }
    if (!takes_dot_nibbles(p)) {
        dot_byte_rows(j, p, y, first, end, s);
        return;
    }
    for (int64_t r = first; r < end; r++) {
        const struct rt_row row = row_of(p, r, s, kern);
        y[r] = kern->dot_nibbles(&row, j->l->interleaved, s->w);
    }
}

static void unpack_row(float *w, const struct linear_job *j, const struct packed_linear *p,
                       int64_t r, const struct scratch *s)
{
    if (p->bits == 16) {
        j->l->kern->to_f32(w, plain_row(&p->w, r), p->w.dtype, p->in);
        return;
    }
    const struct rt_row row = row_of(p, r, s, j->l->kern);
    j->l->kern->unpack(w, &row, s->bytes);
}

/* Fills a panel with n rows by way of F32 rows. */
static void fill_panel(const struct linear_job *j, const struct packed_linear *p,
                       int64_t first, int64_t n, const struct scratch *s)
{
    for (int64_t r = 0; r < n; r += UNPACKED_ROWS) {
        const int64_t rows = n - r < UNPACKED_ROWS ? n - r : UNPACKED_ROWS;
        for (int64_t i = 0; i < rows; i++)
            unpack_row(s->w + i * p->in, j, p, first + r + i, s);
        j->l->kern->panel->fill_rows(s->panel + r, s->w, p->in, rows);
    }
}

/* y = or += columns [from, to) of a panel's rows times those of x. */
static void multiply_panel(const struct linear_job *j, const struct packed_linear *p,
                           float *y, int64_t rows, int64_t from, int64_t to,
                           const float *panel)
{
    const struct rt_panel args = {.y = y,
                                  .ldy = p->out,
                                  .panel = panel,
                                  .rows = rows,
                                  .x = j->x + from,
                                  .ldx = p->in,
                                  .n = j->n,
                                  .in = to - from,
                                  .add = from > 0};
    j->l->kern->panel->multiply(&args);
}

/* y[.. first .. end) of several tokens, panel by panel. */
static void panel_rows(const struct linear_job *j, const struct packed_linear *p, float *y,
                       int64_t first, int64_t end, const struct scratch *s)
{
    const bool direct = takes_dot_nibbles(p);
    struct rt_rows rows = {0};
    if (direct)
        rows = rows_of(j, p, first, end, s);
    for (int64_t r = first; r < end; r += RT_PANEL) {
        const int64_t n = end - r < RT_PANEL ? end - r : RT_PANEL;
        if (!direct)
            fill_panel(j, p, r, n, s);
        for (int64_t c = 0, to; c < p->in; c = to) {
            to = p->in - c < PANEL_COLUMNS ? p->in : c + PANEL_COLUMNS;
            if (direct)
                j->l->kern->panel->fill_nibbles(s->panel + c * RT_PANEL, &rows, r - first,
                                                n, c, to);
            multiply_panel(j, p, y + r, n, c, to, s->panel + c * RT_PANEL);
        }
    }
}

/* --- in 16-bit integers --------------------------------------------------------------- */

/* Fills a whole panel with rows [first, first + n) of any width but 4 bits. Returns their
 * h; their codes are only in the panel. */
static struct rt_rows fill_int16(const struct linear_job *j, const struct packed_linear *p,
                                 int64_t first, int64_t n, const struct scratch *s)
{
    const int64_t group = p->group_size > 0 ? p->group_size : p->in;
    const int64_t stride = bitpack_bytes(p->in, p->bits);
    const int64_t zeros = bitpack_bytes(p->groups, p->bits);
    j->l->kern->to_f32(s->h, p->scales + 2 * first * p->groups, DT_F16, n * p->groups);
    for (int64_t i = 0; i < n; i++) {
        uint8_t *z = s->z + i * p->groups;
        bitpack_unpack_row(z, p->zeros + (first + i) * zeros, p->groups, p->bits);
        bitpack_unpack_row(s->bytes, p->qweight + (first + i) * stride, p->in, p->bits);
        j->l->kern->int16->fill_row((int16_t *)s->panel, i, s->bytes, z, p->in, group);
    }
    return (struct rt_rows){.h = s->h, .pair_stride = p->groups, .group = group};
}

/* Adds columns [from, to), of one block of x and one group, to the panel's sums. h: of the
 * first row and group. */
static void multiply_int16(const struct linear_job *j, float *sums, const float *h_at,
                           int64_t h_stride, int64_t n, int64_t from, int64_t to,
                           const int16_t *panel)
{
    const struct rt_rounded *x = &j->l->rounded;
    const int64_t block = from / RT_PAD_COLUMNS * j->n;
    float h[RT_PANEL] = {0};
    for (int64_t i = 0; i < n; i++)
        h[i] = h_at[i * h_stride];
    const struct rt_int16_panel args = {.y = sums,
                                        .panel = panel,
                                        .h = h,
                                        .x = x->x + block * RT_PAD_COLUMNS +
                                             from % RT_PAD_COLUMNS,
                                        .unit = x->unit + block,
                                        .n = j->n,
                                        .pairs = (to - from + 1) / 2,
                                        .add = from > 0};
    j->l->kern->int16->multiply(&args);
}

/* Returns where the segment from column c on ends: with its group, its block, or the row. */
static int64_t segment_end(int64_t c, int64_t group, int64_t in)
{
    const int64_t block = (c / RT_PAD_COLUMNS + 1) * RT_PAD_COLUMNS;
    const int64_t next = (c / group + 1) * group, end = next < block ? next : block;
    return end < in ? end : in;
}

/* sums [j->n][RT_PANEL] of rows [row, row + n) of r. 4-bit codes are unpacked block by
 * block; of other widths the panel holds the whole rows. */
static void panel_sums(const struct linear_job *j, float *sums, const struct rt_rows *r,
                       int64_t row, int64_t n, int64_t in, int16_t *panel)
{
    const float *h = r->h + row * r->pair_stride;
    for (int64_t c = 0, to; c < in; c = to) {
        const int64_t in_block = c % RT_PAD_COLUMNS, left = in - c;
        if (r->codes && in_block == 0)
            j->l->kern->int16->fill_nibbles(
                panel, r, row, n, c, left < RT_PAD_COLUMNS ? in : c + RT_PAD_COLUMNS);
        to = segment_end(c, r->group, in);
        multiply_int16(j, sums, h + c / r->group, r->pair_stride, n, c, to,
                       panel + (r->codes ? in_block : c) * RT_PANEL);
    }
}

/* y[.. first .. end) of several tokens in 16-bit integers, panel by panel. */
static void int16_rows(const struct linear_job *j, const struct packed_linear *p, float *y,
                       int64_t first, int64_t end, const struct scratch *s, int thread)
{
    float *const sums = j->l->rounded.sums + thread * j->l->rounded.room * RT_PANEL;
    const bool direct = p->bits == 4;
    struct rt_rows rows = {0};
    if (direct)
        rows = rows_of(j, p, first, end, s);
    for (int64_t r = first; r < end; r += RT_PANEL) {
        const int64_t n = end - r < RT_PANEL ? end - r : RT_PANEL;
        if (!direct)
            rows = fill_int16(j, p, r, n, s);
        panel_sums(j, sums, &rows, direct ? r - first : 0, n, p->in, (int16_t *)s->panel);
        for (int64_t t = 0; t < j->n; t++)
            memcpy(y + t * p->out + r, sums + t * RT_PANEL, (size_t)n * sizeof(*y));
    }
}

static void round_token(void *ctx, int64_t t, int thread)
{
    const struct linear_job *j = ctx;
    const int64_t in = j->p[0]->in;
    j->l->kern->int16->round(j->l->rounded.x + t * RT_PAD_COLUMNS, j->l->rounded.unit + t,
                             j->n, j->x + t * in, in);
}

static void round_x(struct linear_job *j)
{
    bool any = false;
    for (int i = 0; i < j->count; i++)
        any |= takes_int16(j->l, j->p[i]);
    if (any)
        pool_run(j->l->pool, j->n, round_token, j);
}

static void add_bias(const struct linear_job *j, const struct packed_linear *p, float *y,
                     int64_t first, int64_t end)
{
    const size_t unit = dtype_bytes(p->bias.dtype);
    float b[MAX_PIECE_ROWS];
    if (!p->bias.data)
        return;
    host_to_f32(b, (const char *)p->bias.data + (size_t)first * unit, p->bias.dtype,
                end - first);
    for (int64_t t = 0; t < j->n; t++)
        for (int64_t r = first; r < end; r++)
            y[t * p->out + r] += b[r - first];
}

/* Prefetches scales and zeros of rows [first, first + n) (too short for the hardware
 * prefetcher) and the first bytes of their codes. */
static void prefetch_rows(const struct packed_linear *p, int64_t first, int64_t n)
{
    const int64_t left = p->out - first, rows = n < left ? n : left;
    if (rows <= 0)
        return;
    if (p->bits == 16) {
        rt_prefetch(plain_row(&p->w, first), PREFETCH_BYTES);
        return;
    }
    const int64_t row = bitpack_bytes(p->in, p->bits), all = rows * row;
    const int64_t zeros = bitpack_bytes(p->groups, p->bits);
    rt_prefetch(p->scales + 2 * first * p->groups, 2 * rows * p->groups);
    rt_prefetch(p->zeros + first * zeros, rows * zeros);
    rt_prefetch(p->qweight + first * row, all < PREFETCH_BYTES ? all : PREFETCH_BYTES);
}

/* Threads take pieces in turn, so this thread's next one is about `threads` further: in
 * this job, or at the start of the next projection. */
static void prefetch_next(const struct linear_job *j, int64_t piece)
{
    const int64_t total = j->first[j->count], ahead = piece + pool_threads(j->l->pool);
    int i = 0;
    if (ahead >= total) {
        if (j->l->next)
            prefetch_rows(j->l->next, (ahead - total) * j->rows, j->rows);
        return;
    }
    while (ahead >= j->first[i + 1])
        i++;
    prefetch_rows(j->p[i], (ahead - j->first[i]) * j->rows, j->rows);
}

static void run_piece(void *ctx, int64_t piece, int thread)
{
    const struct linear_job *j = ctx;
    const struct scratch s = scratch_of(j->l, thread);
    int i = 0;
    while (piece >= j->first[i + 1])
        i++;
    const struct packed_linear *p = j->p[i];
    float *y = j->y[i];
    const int64_t first = (piece - j->first[i]) * j->rows;
    const int64_t end = p->out - first < j->rows ? p->out : first + j->rows;
    if (j->n > 1 && takes_int16(j->l, p)) {
        int16_rows(j, p, y, first, end, &s, thread);
    } else if (j->n > 1) {
        panel_rows(j, p, y, first, end, &s);
    } else {
        prefetch_next(j, piece);
        dot_rows(j, p, y, first, end, &s);
    }
    add_bias(j, p, y, first, end);
}

/* Chooses the rows of a piece. One token: a piece per thread, rounded up, since a piece
 * takes microseconds and each start waits for memory. Several tokens: four per thread,
 * which balances cores of unequal load. */
static int64_t piece_rows(const struct linear_job *j, int threads)
{
    const int64_t row = bitpack_bytes(j->p[0]->in, j->p[0]->bits);
    const int64_t most =
        row * MAX_LONG_ROWS < LONG_PIECE_BYTES ? MAX_PIECE_ROWS : MAX_LONG_ROWS;
    int64_t rows = 0;
    for (int i = 0; i < j->count; i++)
        rows += j->p[i]->out;
    rows = j->n > 1 ? rows / (4 * (int64_t)threads) / RT_PANEL * RT_PANEL
                    : (rows + 4 * threads - 1) / (4 * (int64_t)threads) * 4;
    return rows < MIN_PIECE_ROWS ? MIN_PIECE_ROWS : rows > most ? most : rows;
}

/* Reorders x for each kind of kernel that the projections use. */
static void interleave_x(const struct linear_job *j)
{
    bool blocks = false, nibbles = false;
    for (int i = 0; i < j->count; i++) {
        blocks |= takes_rows_nibbles(j->p[i]);
        nibbles |= takes_dot_nibbles(j->p[i]) && !takes_rows_nibbles(j->p[i]);
    }
    if (blocks)
        j->l->kern->interleave_rows(j->l->fixed, j->x, j->p[0]->in);
    if (nibbles)
        j->l->kern->interleave(j->l->interleaved, j->x, j->p[0]->in);
}

void rt_linear_run(struct rt_linear *l, float *const *y,
                   const struct packed_linear *const *p, int count, const float *x,
                   int64_t n)
{
    struct linear_job j = {.l = l, .p = p, .y = y, .count = count, .x = x, .n = n};
    j.rows = piece_rows(&j, pool_threads(l->pool));
    for (int i = 0; i < count; i++)
        j.first[i + 1] = j.first[i] + (p[i]->out + j.rows - 1) / j.rows;
    if (n == 1)
        interleave_x(&j);
    else
        round_x(&j);
    pool_run(l->pool, j.first[count], run_piece, &j);
}
