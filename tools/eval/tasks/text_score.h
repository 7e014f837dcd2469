/* SPDX-License-Identifier: MIT
 *
 * Scores of a generated answer against a wanted one, in [0,1]. They are the word F1 of
 * extractive question answering (SQuAD's normalization), and the similarity of two lines of
 * code. Texts are UTF-8; invalid bytes are read as U+FFFD. Thread-safe. */
#ifndef WKVQ_TEXT_SCORE_H
#define WKVQ_TEXT_SCORE_H

#include "kernels/base/error.h"

#include <stddef.h>

/* A piece of a text, borrowed. */
struct span {
    const char *p;
    size_t n;
};

/* Computes the F1 of the common words, counted with repetition, after score_normalize. */
enum err score_f1(double *out, struct span answer, struct span want);
/* Makes lower case without ASCII punctuation and without the words a, an, the; words are
 * separated by one space. *out has *n bytes, which may include NULs, and a NUL after them;
 * release it with mem_free. */
enum err score_normalize(char **out, size_t *n, struct span text);

/* Computes round(100 * ratio) / 100 of score_code_line(answer) and want. ratio is 2 M / T,
 * where M counts the characters in common blocks, longest first, and T those of both. It
 * equals Python's difflib.SequenceMatcher, including its rule for popular characters. */
enum err score_code(double *out, struct span answer, struct span want);
enum err score_ratio(double *out, struct span a, struct span b);
/* Returns the answer's first line that is neither a comment nor a code fence: without '`',
 * '#' and "//". Empty if there is none. */
struct span score_code_line(struct span answer);
/* Returns the first line after leading newlines. */
struct span score_first_line(struct span answer);

#endif
