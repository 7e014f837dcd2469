/* SPDX-License-Identifier: MIT
 *
 * A mapped file that is cut short, or that its disk can no longer read, while it is in use: the
 * system tells by SIGBUS. */
#ifndef WKVQ_LOST_PAGE_H
#define WKVQ_LOST_PAGE_H

/* Ends the process from then on with the status of ERR_IO and a message that names the file and
 * what is kept (stop_keeps). A SIGBUS that has another cause ends it as before. */
void lost_page_watch(void);

#endif
