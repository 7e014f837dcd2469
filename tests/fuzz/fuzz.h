/* SPDX-License-Identifier: MIT
 *
 * Functions of the fuzz targets: a scratch directory in memory, the valid files beside the
 * hostile one, and the rule that they check. */
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

/* Returns "DIR/NAME" of the scratch directory, in one of a few static buffers. "" is DIR
 * itself. */
const char *fuzz_path(const char *name);
/* Writes a file to the scratch directory. */
void fuzz_put(const char *name, const void *data, size_t n);
/* Copies BASE/FROM, which seeds.py made, to NAME. */
void fuzz_copy(const char *from, const char *name);

/* Checks the rule: untrusted bytes lead to OK, or to an input error (exit 2) with a
 * message. Aborts otherwise, and clears the record. */
void fuzz_check(enum err e);

/* Writes the CRC-32 at the end of a manifest, as an attacker can, too. text has room for a
 * NUL. */
void fuzz_seal(char *text, size_t n);
/* Calls read with the n bytes unchanged, then with a seal at their end. */
void fuzz_sealed(const void *data, size_t n, void (*read)(const void *data, size_t n));

/* Reads n bytes, so that the sanitizers check them. */
void fuzz_use(const void *p, size_t n);

#endif
