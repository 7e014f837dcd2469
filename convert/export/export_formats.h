/* SPDX-License-Identifier: MIT
 *
 * The formats, one per file: export_NAME.c. Private to convert/export. */
#ifndef WKVQ_EXPORT_FORMATS_H
#define WKVQ_EXPORT_FORMATS_H

#include "convert/export/export.h"

#define ROTATED_HEADS 64 /* llama.cpp rotates heads of a multiple of this */

extern const struct export_format export_dense;
extern const struct export_format export_compressed;
extern const struct export_format export_awq;
extern const struct export_format export_gguf;

#endif
