/* SPDX-License-Identifier: MIT
 *
 * The style of a page: light or dark as the reader's system, from 320 pixels to paper. */
#ifndef WKVQ_HTML_STYLE_H
#define WKVQ_HTML_STYLE_H

extern const char html_style[]; /* CSS */

#endif
