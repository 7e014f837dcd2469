/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_queue.h"

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_card.h"

#include <deque>

namespace emu
{

namespace
{

struct piece {
    std::function<void()> work; /* empty: a wait for `count` pieces of `other` */
    int other;
    long count;
};

struct stream {
    std::deque<piece> pieces;
    long queued, done;
    bool open;
};

stream streams[N_STREAMS];
int captured_stream = -1;
std::shared_ptr<recording> recorded;

void finish(stream *s)
{
    s->pieces.pop_front();
    s->done++;
}

void run_copies_that_may(void)
{
    stream *s = &streams[COPIES];
    while (!s->pieces.empty()) {
        const piece &p = s->pieces.front();
        if (!p.work && streams[p.other].done < p.count)
            return;
        if (p.work)
            p.work();
        finish(s);
    }
}

void run_first(int at)
{
    stream *s = &streams[at];
    const long done = s->done;
    const piece p = s->pieces.front();
    if (p.work)
        p.work();
    else
        run_queue(p.other, p.count);
    if (s->done == done) /* else run_copies_that_may() has finished the wait */
        finish(s);
    if (at == COMPUTE && emu_card()->early_copies)
        run_copies_that_may();
}

void append(int at, const piece &p)
{
    streams[at].pieces.push_back(p);
    streams[at].queued++;
    if (emu_card()->early_copies) {
        emu_fence(true);
        run_copies_that_may();
        emu_fence(false);
    }
}

} // namespace

int open_stream(void)
{
    for (int s = COMPUTE; s < N_STREAMS; s++)
        if (!streams[s].open) {
            streams[s].open = true;
            return s;
        }
    return DEFAULT;
}

void close_stream(int stream)
{
    run_queue(stream, queued(stream));
    streams[stream].open = false;
}

void queue(int stream, std::function<void()> work, bool counts)
{
    if (stream == captured_stream) {
        recorded->push_back(std::move(work));
        return;
    }
    emu_card()->launches += counts && stream == COMPUTE;
    append(stream, {std::move(work), 0, 0});
}

long queued(int stream)
{
    return streams[stream].queued;
}

void queue_wait(int stream, int other, long count)
{
    append(stream, {nullptr, other, count});
}

void run_queue(int stream, long count)
{
    if (streams[stream].done >= count)
        return;
    emu_fence(true);
    while (streams[stream].done < count)
        run_first(stream);
    emu_fence(false);
}

void capture_begin(int stream)
{
    captured_stream = stream;
    recorded = std::make_shared<recording>();
}

int captured(void)
{
    return captured_stream;
}

std::shared_ptr<recording> capture_end(void)
{
    captured_stream = -1;
    return std::move(recorded);
}

bool idle(void)
{
    for (const stream &s : streams)
        if (!s.pieces.empty())
            return false;
    return true;
}

} // namespace emu
