/* SPDX-License-Identifier: MIT
 *
 * \w of the reference's regular expressions. It needs a property (Alphabetic) that only
 * PCRE2 has. Used only around added tokens with single_word. */
#include "data/tokenizer/tok_text.h"

#include <pthread.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

static pcre2_code *word_class; /* compiled once, kept until the process ends */
static pthread_once_t word_once = PTHREAD_ONCE_INIT;

static void compile_word_class(void)
{
    static const char pattern[] =
        "^[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]";
    int code;
    PCRE2_SIZE at;
    word_class = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                               PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
}

bool char_is_word(int32_t c)
{
    char s[4];
    if (c < 0 || pthread_once(&word_once, compile_word_class) || !word_class)
        return false;
    pcre2_match_data *m = pcre2_match_data_create(1, NULL);
    const size_t n = utf8_put(s, c);
    const bool yes = m && pcre2_match(word_class, (PCRE2_SPTR)s, n, 0, 0, m, NULL) >= 0;
    pcre2_match_data_free(m);
    return yes;
}
