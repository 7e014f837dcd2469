/* SPDX-License-Identifier: MIT
 *
 * How close a generated answer is to a wanted one: the word F1 of extractive question
 * answering (SQuAD's normalization), and the similarity of two lines of code. Both in
 * [0,1]. Texts are UTF-8; what is not is read as U+FFFD. */
#ifndef WKVQ_TEXT_SCORE_H
#define WKVQ_TEXT_SCORE_H

#include "kernels/base/error.h"

#include <stddef.h>

/* A piece of a text, borrowed. */
struct span {
    const char *p;
    size_t n;
};

/* F1 of the words that both have, counted with repetition, after score_normalize. */
enum err score_f1(double *out, struct span answer, struct span want);
/* Lower case, without ASCII punctuation and without the words a, an, the; words separated
 * by one space. NUL-terminated, released with mem_free. */
enum err score_normalize(char **out, struct span text);

/* round(100 * ratio) / 100 of score_code_line(answer) and want, where ratio is 2 M / T: M
 * the characters in blocks that both share, found longest first, T those of both (what
 * Python's difflib.SequenceMatcher computes, its rule for popular characters included). */
enum err score_code(double *out, struct span answer, struct span want);
enum err score_ratio(double *out, struct span a, struct span b);
/* The answer's first line that is neither a comment nor a code fence: without '`', '#' and
 * "//". Empty if there is none. */
struct span score_code_line(struct span answer);
/* The first line, newlines in front skipped. */
struct span score_first_line(struct span answer);

#endif
