/* SPDX-License-Identifier: MIT
 *
 * What the fuzz targets share: a scratch directory in memory, the sane files that lie
 * beside the hostile one, and the law that they check. */
#ifndef WKVQ_FUZZ_H
#define WKVQ_FUZZ_H

#include "kernels/base/error.h"

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's entry points. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Called once before the first input; every target has one. */
void fuzz_setup(void);

/* Of the scratch directory: "DIR/NAME", one of a few static buffers. "" is DIR itself. */
const char *fuzz_path(const char *name);
/* Write a file there. */
void fuzz_put(const char *name, const void *data, size_t n);
/* Copy BASE/FROM, of what seeds.py made, to NAME. */
void fuzz_copy(const char *from, const char *name);

/* The law: a stranger's bytes lead to OK, or to an error of the input (exit 2) with a
 * sentence. Aborts otherwise; clears the record. */
void fuzz_check(enum err e);

/* Put the CRC-32 that a manifest ends with into its last bytes, as a stranger can, too.
 * text has room for a NUL. */
void fuzz_seal(char *text, size_t n);
/* read of the n bytes as they are, then with a seal at their end. */
void fuzz_sealed(const void *data, size_t n, void (*read)(const void *data, size_t n));

/* Read n bytes, which the sanitizers then check. */
void fuzz_use(const void *p, size_t n);

#endif
