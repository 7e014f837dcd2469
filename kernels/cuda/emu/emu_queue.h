/* SPDX-License-Identifier: MIT
 *
 * The streams of the emulated card. Work runs as late as the program allows: when the host,
 * or other work that the host waits for, needs it. So a missing wait gives wrong results.
 * With emu_card()->early_copies, copies run as early as they may instead. */
#ifndef WKVQ_EMU_QUEUE_H
#define WKVQ_EMU_QUEUE_H

#include <functional>
#include <memory>
#include <vector>

namespace emu
{

/* The stream that always exists, and those of a device, in the order of their creation. */
enum { DEFAULT, COMPUTE, COPIES, N_STREAMS };

int open_stream(void);
/* Finishes its work. */
void close_stream(int stream);
/* Appends work to a stream. counts: as a launch; else it is the emulation's own. */
void queue(int stream, std::function<void()> work, bool counts = true);
/* Work appended to a stream so far. */
long queued(int stream);
/* Appends a wait for the first `count` pieces of another stream's work. */
void queue_wait(int stream, int other, long count);
/* Runs a stream until its first `count` pieces are done, with what they wait for. */
void run_queue(int stream, long count);
/* True if no work is left. */
bool idle(void);

/* A capture records what is appended to one stream instead of queueing it. */
typedef std::vector<std::function<void()>> recording;
void capture_begin(int stream);
/* The stream that is captured; -1: none. */
int captured(void);
std::shared_ptr<recording> capture_end(void);

} // namespace emu

#endif
