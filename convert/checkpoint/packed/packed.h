/* SPDX-License-Identifier: MIT
 *
 * Projections that another tool quantized, in the files of a checkpoint. docs/import.md
 * describes what is read, and what is refused. Private to convert/checkpoint.
 *
 * A packed projection is several tensors. They leave the list of files, and one tensor
 * NAME.weight, F32 [out, in], takes their place. Its data is NULL: packed_read() makes its
 * codes, scales and zeros when a block is needed. */
#ifndef WKVQ_PACKED_H
#define WKVQ_PACKED_H

#include "convert/checkpoint/hf_files.h"
#include "data/json.h"
#include "kernels/tensor/qtensor.h"

/* The tensors of a packed projection. */
enum packed_part {
    PART_CODES,
    PART_SCALES,
    PART_ZEROS,
    PART_SHAPE,
    PART_G_IDX, /* the group of each column */
    N_PARTS
};

/* A format that config.json describes. A checkpoint may have several. */
struct packed_scheme {
    int bits;
    int64_t group_size; /* 0: the whole row */
    bool symmetric;     /* zero points are not stored; all are 2^(bits - 1) */
};

#define PACKED_SCHEMES_MAX 64

struct packed_config {
    const struct packed_layout *layout;
    struct packed_scheme scheme[PACKED_SCHEMES_MAX];
    int n_schemes;
    bool minus_one;   /* stored zero points are z - 1 */
    bool whole_words; /* the 1 was taken from whole words, borrows included */
    bool needs_g_idx; /* columns are in activation order */
};

struct packed_lin {
    const struct packed_layout *layout;
    const struct packed_config *config; /* borrowed */
    char *name;                         /* "model.layers.0.mlp.up_proj.weight", owned */
    struct st_tensor part[N_PARTS];     /* data NULL: the projection has no such part */
    int file[N_PARTS];
    int64_t slot[N_PARTS]; /* where the files' list has it */
    int64_t out, in;       /* of the stored tensors */
    int64_t first, rows;   /* the projection is rows [first, first + rows) of them */
    struct lin_format format;
    bool symmetric;
    /* [n_joined], owned: projections whose rows follow each other here, as those of experts; this
     * one then has no parts. NULL: it is none of several. */
    struct packed_lin *joined;
    int64_t n_joined;
};

/* What reading changes, over all projections. */
struct packed_changes {
    int64_t groups, rounded, mirrored;
    int64_t off_centre; /* groups whose zero point is not 2^(bits - 1) */
    double worst;       /* relative difference of a scale and its fp16 */
};

/* One tool's format. Rows and columns are those of W [out, in]. */
struct packed_layout {
    const char *about;         /* "compressed-tensors" */
    const char *tail[N_PARTS]; /* after the projection's name; NULL: no such part */
    /* Returns whether o, a quantization_config, is of this format. */
    bool (*describes)(const json_t *o);
    /* Reads o. Errors: ERR_SUPPORT, ERR_FORMAT. */
    enum err (*read_config)(struct packed_config *c, const json_t *o, const char *where);
    /* Checks types and shapes of the parts, and sets out, in, format and symmetric. */
    enum err (*measure)(struct packed_lin *l);
    /* Return the stored scale's place [element], and the zero point of row r in group g. */
    int64_t (*scale_at)(const struct packed_lin *l, int64_t r, int64_t g);
    int (*zero)(const struct packed_lin *l, int64_t r, int64_t g);
    /* codes [n][in] = stored rows [first, first + n). first: a multiple of PACKED_ALIGN. */
    void (*rows)(const struct packed_lin *l, uint8_t *codes, int64_t first, int64_t n);
};
extern const struct packed_layout packed_compressed, packed_gptq, packed_awq;

#define PACKED_ROWS 64 /* rows that one call of `rows` reads, at most */
#define PACKED_ALIGN 8

struct packed {
    struct packed_config config;
    struct packed_lin *lin; /* [n], by name, owned */
    int64_t n;
    struct packed_changes changes;
};

/* --- packed_config.c ----------------------------------------------------------------- */

/* Reads what the config.json of dir says of packed weights. Refuses what an engine would compute
 * beyond them, as in docs/import.md. Errors: those of packed_open(). */
enum err packed_read_config(struct packed_config *c, const char *dir, const char *wants);
/* Returns whether o, a quantization_config, is of a format that is read. Clears the last error. */
bool packed_reads(const json_t *o);

/* --- packed.c ------------------------------------------------------------------------ */

/* Finds the packed projections of the open files, checks all that can be checked without
 * reading codes, and replaces their tensors in f. Errors: ERR_SUPPORT, ERR_FORMAT,
 * ERR_NOT_FOUND with the tensor's name; ERR_USAGE as hf_open_packed() has it. Close in any case. */
enum err packed_open(struct packed *out, struct hf_files *f, const char *dir,
                     const char *wants);
void packed_close(struct packed *p); /* accepts a zeroed or half-built one */
/* Projections that take the places of others once all are made: until then those have their order,
 * by which they are found. */
struct packed_parts {
    struct packed_lin *lin; /* [n], names owned */
    int64_t n;
};
/* Adds to `to`, which must have room, n projections that are the rows of the one whose weight is
 * named `whole`, if there is one: part k has the name part[k] and rows[k] rows, which add up to its
 * own. Errors: ERR_SUPPORT for rows that are no multiple of PACKED_ALIGN; ERR_MEMORY. */
enum err packed_split(struct packed_parts *to, struct packed *p, const char *whole, int n,
                      const char *const *part, const int64_t *rows);
/* Replaces those that were split by their parts, whose names p then owns. ERR_MEMORY. */
enum err packed_replace(struct packed *p, const struct packed_parts *by);

struct hf_packed; /* convert/checkpoint/hf.h */
/* Says what was found, of all projections before any was joined. */
void packed_describe(struct hf_packed *out, const struct packed *p);
/* Returns the projection whose weight is named, or NULL. */
const struct packed_lin *packed_find(const struct packed *p, const char *weight);
/* *q = scales, zeros and codes; groups of negative scale are mirrored. The caller frees it
 * with qlinear_free(). */
enum err packed_read(struct qlinear *q, const struct packed_lin *l);

/* Calls tell for the tensors that l's parts are, and their files. */
void packed_tell(const struct packed_lin *l, const struct hf_files *f,
                 void (*tell)(const struct st_file *f, const struct st_tensor *t));

/* Puts the projections of p into the order of their names, after a change. */
void packed_sort(struct packed *p);

/* --- for layouts -------------------------------------------------------------------- */

/* Returns ERR_FORMAT unless part i has the type and shape; dim1 -1: one dimension. */
enum err packed_check_part(const struct packed_lin *l, enum packed_part i, enum dtype dtype,
                           int64_t dim0, int64_t dim1);
/* The same for the scales, which are F16, BF16 or F32. */
enum err packed_check_scales(const struct packed_lin *l, int64_t dim0, int64_t dim1);
/* Reads group_size of o, 1 or more, or -1 for whole rows: *out = 0. ERR_FORMAT. */
enum err packed_read_group_size(int64_t *out, const json_t *o, const char *where);
/* Returns the place of a scale where they are stored [groups][out]. */
int64_t packed_scale_by_group(const struct packed_lin *l, int64_t r, int64_t g);
/* Sets the group size of a row of `groups` groups: that of the first scheme, or else one that
 * divides the row. ERR_FORMAT if neither does. in must be set. */
enum err packed_find_group(struct packed_lin *l, int64_t groups);
/* Returns ERR_FORMAT unless the codes have two dimensions of at least 1; want names them. */
enum err packed_check_codes(const struct packed_lin *l, const char *want);
/* For a layout of I32 words with scales [groups][out] and zero points [groups][zero_words]: sets
 * the group size and checks all parts, codes [words0][words1] among them. in, out and bits must be
 * set. ERR_FORMAT; ERR_NOT_FOUND without zero points. */
enum err packed_check_by_group(struct packed_lin *l, int64_t words0, int64_t words1,
                               int64_t zero_words);
uint32_t packed_word(const struct packed_lin *l, enum packed_part i, int64_t at);

#endif
