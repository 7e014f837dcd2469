/* SPDX-License-Identifier: MIT */
#include "tests/convert/hf_fixture.h"

#include "kernels/base/log.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

char hf_dir[64], hf_log[1024];

static void keep_log(void *ctx, enum log_level level, const char *line)
{
    snprintf(hf_log, sizeof(hf_log), "%s", line);
}

int hf_make_dir(void **state)
{
    log_set_sink(keep_log, NULL);
    strcpy(hf_dir, "/tmp/test_hf.XXXXXX");
    return mkdtemp(hf_dir) ? 0 : -1;
}

int hf_drop_dir(void **state)
{
    return !scratch_remove(hf_dir);
}

void hf_put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", hf_dir, name);
    assert_int_equal(file_write_all(path, text, strlen(text)), OK);
}

void hf_drop(const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", hf_dir, name);
    unlink(path);
}

/* Type and sizes, then further members (starting with a comma). */
struct arch hf_read(const char *type, const char *more)
{
    char text[2048];
    struct arch a = {0};
    snprintf(text, sizeof(text), "{\"model_type\":\"%s\"," SIZES "%s}", type, more);
    hf_put("config.json", text);
    err_clear();
    if (hf_read_config(&a, hf_dir))
        fail_msg("%s", err_text());
    return a;
}

void hf_refuse_open(enum err want, const char *word1, const char *word2)
{
    struct hf_model *m = NULL;
    err_clear();
    const enum err e = hf_open(&m, hf_dir);
    if (e != want || !strstr(err_text(), word1) || !strstr(err_text(), word2))
        fail_msg("want %s with \"%s\" and \"%s\", have %s: %s", err_name(want), word1,
                 word2, err_name(e), err_text());
    assert_null(m);
}

struct st_entry *hf_add(struct hf_spec *s, const char *name, int64_t rows, int64_t cols)
{
    struct st_entry *e = &s->e[s->n];
    assert_true(s->n < HF_MAX_TENSORS);
    snprintf(s->name[s->n], sizeof(s->name[0]), "%s", name);
    s->fill[s->n] = 0;
    *e = (struct st_entry){s->name[s->n], DT_F16, cols ? 2 : 1, {rows, cols}};
    s->n++;
    return e;
}

/* The tensors of hf_read("llama", ""), D = 32, F = 48, V = 64, two layers. */
void hf_llama_tensors(struct hf_spec *s)
{
    static const int64_t out[N_LIN] = {32, 32, 32, 32, 48, 48, 32};
    static const int64_t in[N_LIN] = {32, 32, 32, 32, 32, 32, 48};
    char name[96];
    s->n = 0;
    hf_add(s, "model.embed_tokens.weight", 64, 32);
    hf_add(s, "model.norm.weight", 32, 0);
    hf_add(s, "lm_head.weight", 64, 32);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.input_layernorm.weight", i);
        hf_add(s, name, 32, 0);
        snprintf(name, sizeof(name), "model.layers.%d.post_attention_layernorm.weight", i);
        hf_add(s, name, 32, 0);
        for (int l = 0; l < N_LIN; l++) {
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", i, lin_module[l]);
            hf_add(s, name, out[l], in[l]);
        }
    }
}

void hf_write(const char *file, const struct hf_spec *s, int first, int n)
{
    uint8_t data[64 * 64 * 4];
    char path[128];
    struct st_writer *w;
    snprintf(path, sizeof(path), "%s/%s", hf_dir, file);
    assert_int_equal(st_writer_open(&w, path, s->e + first, n, NULL, 0), OK);
    for (int i = first; i < first + n; i++) {
        memset(data, s->fill[i], sizeof(data));
        const int64_t cols = s->e[i].n_dims > 1 ? s->e[i].dim[1] : 1;
        assert_int_equal(
            st_write(w, data, (size_t)(s->e[i].dim[0] * cols) * dtype_bytes(s->e[i].dtype)),
            OK);
    }
    assert_int_equal(st_writer_commit(&w), OK);
}

struct st_entry *hf_entry(struct hf_spec *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->name[i], name))
            return &s->e[i];
    return NULL;
}
