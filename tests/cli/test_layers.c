/* SPDX-License-Identifier: MIT
 *
 * Layers of a configuration: what --set makes of the mixes of a file, and what one key makes of
 * another. */
#include "kernels/base/file/file.h"
#include "tools/recipe/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char yaml_file[] = "test_layers.tmp.yaml";

/* What --set makes of a file with mixes of both sides. */
static struct recipe layered(const char *const *set, int n)
{
    static const char text[] = "weights: {mixed: q_proj=8, bits: 3}\nkv.mixed: v=8\n";
    struct recipe r;
    const struct recipe_input in = {
        .threads = -1, .config = yaml_file, .set = set, .n_set = n};
    err_clear();
    assert_int_equal(file_write_all(yaml_file, text, strlen(text)), OK);
    assert_int_equal(recipe_from_input(&r, &in), OK);
    return r;
}

/* Bits or a group size above a file's mix mean all layers, unless their layer has a mix, too. */
static void layers_end_mixes(void **state)
{
    static const char *const group[] = {"weights.group_size=64"},
                             *const cache[] = {"kv.bits=16"},
                             *const both[] = {"weights.bits=16", "weights.mixed=q_proj=4"},
                             *const other[] = {"weights.damp=0.02", "kv.sink=4"};
    struct recipe r = layered(NULL, 0);
    assert_non_null(r.weight_mix); /* in one file, the mix stands above bits */
    assert_non_null(r.kv_mix);
    recipe_free(&r);
    r = layered(group, 1);
    assert_null(r.weight_mix);
    assert_non_null(r.kv_mix);
    assert_int_equal(r.weight_bits, 3);
    recipe_free(&r);
    r = layered(cache, 1);
    assert_non_null(r.weight_mix);
    assert_null(r.kv_mix);
    assert_false(recipe_quantizes_kv(&r));
    recipe_free(&r);
    r = layered(both, 2);
    const struct weight_spec w = recipe_weight_spec(&r);
    assert_int_equal(weight_format(&w, 0, LIN_Q).bits, 4);
    assert_int_equal(weight_format(&w, 0, LIN_K).bits, 16);
    recipe_free(&r);
    r = layered(other, 2);
    assert_non_null(r.weight_mix);
    assert_non_null(r.kv_mix);
    recipe_free(&r);
    assert_string_equal(recipe_ends_mix(MIX_KV, cache, 1), "kv.bits");
    assert_null(recipe_ends_mix(MIX_WEIGHTS, both, 2));
}

/* kv.learn: false keeps the cache in refinement as well, unless refine.learn names it. */
static void refines_what_learns(void **state)
{
    struct recipe r;
    (void)state;
    recipe_init(&r);
    assert_true(recipe_refine_settings(&r, NULL).lr[REFINE_SMOOTH] > 0);
    for (int method = WEIGHT_LWC; method <= WEIGHT_GIVEN; method += 2) {
        r.weight_method = method;
        r.learn = false;
        r.refine.learn = LEARN_AUTO;
        const struct refine_settings kept = recipe_refine_settings(&r, NULL);
        assert_true(kept.lr[REFINE_SMOOTH] == 0 && kept.lr[REFINE_SHIFT] == 0);
        assert_true(kept.lr[REFINE_NORMS] > 0);
        assert_int_equal(kept.lr[REFINE_SCALES] > 0, method == WEIGHT_LWC);
        r.refine.learn = LEARN_CACHE;
        const struct refine_settings named = recipe_refine_settings(&r, NULL);
        assert_true(named.lr[REFINE_SMOOTH] > 0 && named.lr[REFINE_SHIFT] > 0);
    }
    recipe_free(&r);
}

static int remove_file(void **state)
{
    return unlink(yaml_file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_end_mixes),
        cmocka_unit_test(refines_what_learns),
    };
    return cmocka_run_group_tests(tests, NULL, remove_file);
}
