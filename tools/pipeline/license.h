/* SPDX-License-Identifier: MIT
 *
 * What the checkpoint's model card states about its license. */
#ifndef WKVQ_LICENSE_H
#define WKVQ_LICENSE_H

#include "kernels/base/error.h"

/* *out = the `license` of the front matter of MODEL_DIR/README.md in a fresh string, or NULL
 * if there is none that is an identifier, as apache-2.0. A card that cannot be read is no
 * error. ERR_MEMORY. */
enum err checkpoint_license(char **out, const char *model_dir);

#endif
