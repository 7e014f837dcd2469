/* SPDX-License-Identifier: MIT
 *
 * Words that options and configuration keys share. The index of a word in its list is the
 * value of its enum. */
#ifndef WKVQ_CHOICES_H
#define WKVQ_CHOICES_H

#define CHOICES_JOIN "auto|rows|file|space" /* enum corpus_join */
#define CHOICES_BOS "auto|never|always"     /* enum bos_rule */

enum recipe_device { DEVICE_CPU, DEVICE_REF, DEVICE_CUDA };
#define CHOICES_DEVICE "cpu|ref|cuda"

enum recipe_compute { COMPUTE_AUTO, COMPUTE_F32, COMPUTE_BF16 };
#define CHOICES_COMPUTE "auto|f32|bf16"

#endif
