/* SPDX-License-Identifier: MIT
 *
 * A recipe, and the YAML layer below it. An accepted recipe must survive the round trip
 * through the JSON of states and artifacts. */
#include "data/yaml.h"
#include "tests/fuzz/fuzz.h"
#include "tools/recipe/recipe.h"

void fuzz_setup(void)
{
}

static void round_trip(const struct recipe *r)
{
    struct recipe again;
    json_t *o = NULL;
    recipe_init(&again);
    fuzz_check(recipe_json(&o, r, false));
    fuzz_check(recipe_load_json(&again, o, "json"));
    recipe_free(&again);
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct yaml *y = NULL;
    struct recipe r;
    fuzz_check(yaml_parse_text(&y, (const char *)data, n, "x.yaml"));
    yaml_free(&y);
    fuzz_put("x.yaml", data, n);
    recipe_init(&r);
    const enum err e = recipe_load_yaml(&r, fuzz_path("x.yaml"));
    fuzz_check(e);
    if (!e)
        round_trip(&r);
    recipe_free(&r);
    return 0;
}
