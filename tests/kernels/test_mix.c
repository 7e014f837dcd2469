/* SPDX-License-Identifier: MIT
 *
 * Mixes of formats: their meaning, their canonical text, what is refused, and the formats
 * that result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/mem.h"
#include "kernels/tensor/qtensor.h"

#include <stdio.h>
#include <string.h>

static struct mix *parsed(enum mix_of of, const char *text)
{
    struct mix *m = NULL;
    err_clear();
    if (mix_parse(&m, of, text, ERR_USAGE, "here"))
        fail_msg("%s: %s", text, err_text());
    return m;
}

/* text has the canonical form want, and so has want. */
static void prints(enum mix_of of, const char *text, const char *want)
{
    for (int again = 0; again < 2; again++) {
        struct mix *m = parsed(of, again ? want : text);
        char *have = NULL;
        assert_int_equal(mix_text(&have, m), OK);
        assert_string_equal(have, want);
        mem_free(have);
        mix_free(m);
    }
}

static void one_text_for_a_meaning(void **state)
{
    prints(MIX_WEIGHTS, "", "");
    prints(MIX_WEIGHTS, " \n", "");
    prints(MIX_WEIGHTS, "v_proj=8:64,0-3.down_proj=5:128 ,\t29.o_proj=6",
           "v_proj=8:64, 29.o_proj=6, 0-3.down_proj=5:128");
    prints(MIX_WEIGHTS, "q_proj=2:0", "q_proj=2:0");
    prints(MIX_WEIGHTS, "007.k_proj=16", "7.k_proj=16");
    prints(MIX_KV, "0-3.v=8:32, k=5", "k=5, 0-3.v=8:32");
    /* The last rule wins, and neighbours join. */
    prints(MIX_WEIGHTS, "v_proj=8, v_proj=6:32", "v_proj=6:32");
    prints(MIX_WEIGHTS, "3.v_proj=8, v_proj=6", "v_proj=6");
    prints(MIX_WEIGHTS, "v_proj=6, 3.v_proj=8, 4.v_proj=8, 2.v_proj=6",
           "v_proj=6, 3-4.v_proj=8");
    prints(MIX_WEIGHTS, "0-9.v_proj=6, 5.v_proj=3",
           "0-4.v_proj=6, 5.v_proj=3, 6-9.v_proj=6");
    prints(MIX_WEIGHTS, "1.v_proj=6, 0.v_proj=6:128", "0.v_proj=6:128, 1.v_proj=6");
    prints(MIX_WEIGHTS, "4095.up_proj=3:16777216", "4095.up_proj=3:16777216");
}

/* As many rules as a search may produce: 80 layers, no two neighbours alike. */
static void long_texts(void **state)
{
    struct mix *m = NULL;
    char *text = NULL, *again = NULL;
    assert_int_equal(mix_new(&m, MIX_WEIGHTS), OK);
    for (int64_t layer = 0; layer < 80; layer++)
        for (int lin = 0; lin < N_LIN; lin++) {
            const struct mix_format f = {2 + (int)((layer + lin) % 7), 32 << layer % 3};
            assert_int_equal(mix_set(m, layer, layer, lin, f), OK);
        }
    assert_int_equal(mix_text(&text, m), OK);
    int rules = 1;
    for (const char *p = text; *p; p++)
        rules += *p == ',';
    assert_int_equal(rules, 560);
    mix_free(m);
    m = parsed(MIX_WEIGHTS, text);
    for (int64_t layer = 0; layer < 80; layer++)
        for (int lin = 0; lin < N_LIN; lin++) {
            struct mix_format f;
            assert_true(mix_find(&f, m, layer, lin));
            assert_int_equal(f.bits, 2 + (layer + lin) % 7);
            assert_int_equal(f.group_size, 32 << layer % 3);
        }
    assert_int_equal(mix_text(&again, m), OK);
    assert_string_equal(again, text);
    mem_free(text);
    mem_free(again);
    mix_free(m);
}

/* text is refused; the message names the rule and contains the word. */
static void refused(enum mix_of of, const char *text, const char *rule, const char *word)
{
    struct mix *m = (struct mix *)&m;
    char named[80];
    snprintf(named, sizeof(named), "here: rule '%s'", rule);
    err_clear();
    if (mix_parse(&m, of, text, ERR_FORMAT, "here") != ERR_FORMAT ||
        strncmp(err_text(), named, strlen(named)) || !strstr(err_text(), word))
        fail_msg("%s: %s", text, err_text());
    assert_ptr_equal(m, (struct mix *)&m); /* untouched */
}

static void refuses_by_rule(void **state)
{
    refused(MIX_WEIGHTS, "v_proj=8,", "", "is empty; want [LAYERS.]KIND=BITS[:GROUP]");
    refused(MIX_WEIGHTS, ",v_proj=8", "", "is empty");
    refused(MIX_WEIGHTS, "v_proj=8,,q_proj=8", "", "is empty");
    refused(MIX_WEIGHTS, "v_proj=8, v=8", "v=8", "want q_proj, k_proj");
    refused(MIX_KV, "v_proj=8", "v_proj=8", "want k or v");
    refused(MIX_WEIGHTS, "v_proj", "v_proj", "want q_proj, k_proj");
    refused(MIX_WEIGHTS, "v_proj =8", "v_proj =8", "want q_proj, k_proj");
    refused(MIX_WEIGHTS, "V_PROJ=8", "V_PROJ=8", "want q_proj, k_proj");
    refused(MIX_WEIGHTS, "v_proj=", "v_proj=", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=1", "v_proj=1", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=9", "v_proj=9", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=+4", "v_proj=+4", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=4 64", "v_proj=4 64", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=4.5", "v_proj=4.5", "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=99999999999999999999", "v_proj=99999999999999999999",
            "want 2 to 8 bits");
    refused(MIX_WEIGHTS, "v_proj=4:", "v_proj=4:", "want a group size from 0");
    refused(MIX_WEIGHTS, "v_proj=4:-1", "v_proj=4:-1", "want a group size from 0");
    refused(MIX_WEIGHTS, "v_proj=4:64:2", "v_proj=4:64:2", "want a group size from 0");
    refused(MIX_WEIGHTS, "v_proj=4:16777217", "v_proj=4:16777217", "want a group size");
    refused(MIX_KV, "k=4:0", "k=4:0", "want a group size from 1");
    refused(MIX_WEIGHTS, "3v_proj=4", "3v_proj=4", "want layers from 0 to 4095");
    refused(MIX_WEIGHTS, "3-.v_proj=4", "3-.v_proj=4", "want layers from 0 to 4095");
    refused(MIX_WEIGHTS, "3-2.v_proj=4", "3-2.v_proj=4", "want layers from 0 to 4095");
    refused(MIX_WEIGHTS, "4096.v_proj=4", "4096.v_proj=4", "want layers from 0 to 4095");
    refused(MIX_WEIGHTS, "-1.v_proj=4", "-1.v_proj=4", "want q_proj, k_proj");
    refused(MIX_WEIGHTS, "3", "3", "want layers from 0 to 4095");
    refused(MIX_WEIGHTS, "3.", "3.", "want q_proj, k_proj");
    /* A long rule is shortened in the message. */
    refused(MIX_WEIGHTS,
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "want q_proj");
}

static void layers_of_the_model(void **state)
{
    struct mix *m = parsed(MIX_WEIGHTS, "v_proj=8, 20-30.o_proj=6, 40.v_proj=8");
    assert_int_equal(mix_check_layers(m, 31, ERR_USAGE, "weights.mixed"), OK);
    assert_int_equal(mix_check_layers(NULL, 1, ERR_USAGE, "weights.mixed"), OK);
    err_clear();
    assert_int_equal(mix_check_layers(m, 30, ERR_USAGE, "weights.mixed"), ERR_USAGE);
    assert_string_equal(err_text(),
                        "weights.mixed: rule '30.o_proj=6': the model has layers 0 to 29");
    mix_free(m);
}

static void weight_formats(void **state)
{
    struct mix *m = parsed(MIX_WEIGHTS, "v_proj=8:64, 3.down_proj=5, 2-3.v_proj=16:0");
    const struct weight_spec w = {.bits = 4, .group_size = 128, .mixed = m};
    struct lin_format f = weight_format(&w, 0, LIN_V);
    assert_true(f.bits == 8 && f.group_size == 64);
    f = weight_format(&w, 3, LIN_V);
    assert_true(f.bits == 16 && f.group_size == 0);
    f = weight_format(&w, 77, LIN_V);
    assert_true(f.bits == 8 && f.group_size == 64);
    f = weight_format(&w, 3, LIN_DOWN);
    assert_true(f.bits == 5 && f.group_size == 128);
    f = weight_format(&w, 4, LIN_DOWN);
    assert_true(f.bits == 4 && f.group_size == 128);
    const struct weight_spec plain = {.bits = 3, .group_size = 0};
    f = weight_format(&plain, 5, LIN_Q);
    assert_true(f.bits == 3 && f.group_size == 0);
    mix_free(m);
}

static void what_quantizes(void **state)
{
    struct mix *one = parsed(MIX_WEIGHTS, "7.v_proj=8"), *none = parsed(MIX_KV, "k=16");
    struct weight_spec w = {.bits = 16, .round = ROUND_LEARNED};
    struct kv_spec kv = {.bits = 16, .mixed = none};
    assert_false(weight_quantizes(&w) || weight_chooses_codes(&w));
    w.mixed = one;
    assert_true(weight_quantizes(&w) && weight_chooses_codes(&w));
    assert_false(kv_quantizes(&kv));
    kv.bits = 4;
    assert_true(kv_quantizes(&kv));
    mix_free(one);
    mix_free(none);
}

static void kv_formats(void **state)
{
    struct mix *m = parsed(MIX_KV, "k=5, 0-1.v=8:32");
    const struct kv_spec kv = {.bits = 4, .group_size = 64, .mixed = m};
    struct kv_format f = kv_format(&kv, 9, KV_K);
    assert_true(f.bits == 5 && f.group_size == 64);
    f = kv_format(&kv, 1, KV_V);
    assert_true(f.bits == 8 && f.group_size == 32);
    f = kv_format(&kv, 2, KV_V);
    assert_true(f.bits == 4 && f.group_size == 64);
    mix_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_text_for_a_meaning),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(refuses_by_rule),
        cmocka_unit_test(layers_of_the_model),
        cmocka_unit_test(weight_formats),
        cmocka_unit_test(what_quantizes),
        cmocka_unit_test(kv_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
