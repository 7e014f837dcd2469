/* SPDX-License-Identifier: MIT
 *
 * Models named as on the Hugging Face hub: "org/name" or "org/name@revision". They are found
 * in the local cache of the hub's own tools; nothing is downloaded.
 *
 *   CACHE/models--ORG--NAME/refs/REVISION      the commit of a branch or tag, 40 digits
 *   CACHE/models--ORG--NAME/snapshots/COMMIT   the files, links into blobs/
 *
 * CACHE is HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, its older name, else HF_HOME/hub, else
 * XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. */
#ifndef WKVQ_HUB_CACHE_H
#define WKVQ_HUB_CACHE_H

#include "kernels/base/error.h"

/* Returns the directory of a model. A path that exists is returned as it is, and so is a name
 * that the hub cannot have, such as one with "..", or an absolute path. Release *out with
 * mem_free. ERR_NOT_FOUND, with the command that downloads the model, if the cache lacks it or
 * a file of it is missing; ERR_FORMAT for a reference that is not a commit. */
enum err hub_find(char **out, const char *name);
/* Returns "org/name" of a directory inside such a cache, or NULL for any other path. Release
 * *out with mem_free. */
enum err hub_name_of(char **out, const char *dir);

#endif
