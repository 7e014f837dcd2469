/* SPDX-License-Identifier: MIT
 *
 * The names and orders of the packed formats of other tools, for their readers
 * (packed.h) and their writers (convert/export). docs/export.md has the layouts. Words are
 * little-endian, 32 bits. */
#ifndef WKVQ_PACK_LAYOUT_H
#define WKVQ_PACK_LAYOUT_H

#define PACK_WORD_BITS 32

/* compressed-tensors: its quant_method, its format, and what follows a projection's name. */
#define PACK_COMPRESSED "compressed-tensors"
#define PACK_COMPRESSED_FORMAT "pack-quantized"
#define PACK_COMPRESSED_CODES ".weight_packed"
#define PACK_COMPRESSED_SCALES ".weight_scale"
#define PACK_COMPRESSED_ZEROS ".weight_zero_point"
#define PACK_COMPRESSED_SHAPE ".weight_shape"
#define PACK_COMPRESSED_G_IDX ".weight_g_idx"

/* GPTQ: its quant_method, which is also its version 1, and version 2. AutoRound has a
 * quant_method of its own for the layouts of GPTQ and AWQ. */
#define PACK_GPTQ "gptq"
#define PACK_GPTQ_V1 "gptq"
#define PACK_GPTQ_V2 "gptq_v2"
#define PACK_AUTO_ROUND "auto-round"
#define PACK_QWEIGHT ".qweight"
#define PACK_QZEROS ".qzeros"
#define PACK_SCALES ".scales"
#define PACK_G_IDX ".g_idx"

/* AWQ: nibble i of a word holds row 8 j + pack_awq_order[i]. Tensors have GPTQ's names. */
#define PACK_AWQ "awq"
#define PACK_AWQ_VERSION "gemm"
#define PACK_AWQ_ROWS 8
extern const int pack_awq_order[PACK_AWQ_ROWS];

#endif
