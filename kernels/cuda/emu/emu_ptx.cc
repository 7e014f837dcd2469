/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_ptx.h"

extern "C" {
#include "kernels/base/half.h"
}

#include <stdlib.h>

namespace emu
{

namespace
{

constexpr int MOST = 14; /* operands of an instruction */

/* A text, taken apart once. */
struct instruction {
    const char *text;
    bool transposed;
    int operand[MOST];
};

bool begins(const char *text, const char *head)
{
    return !strncmp(text, head, strlen(head));
}

/* The numbers of the operands, in the order of the text; the rest stays -1. */
void read_operands(instruction *i)
{
    int n = 0;
    for (int &o : i->operand)
        o = -1;
    for (const char *p = strchr(i->text, '%'); p && n < MOST; p = strchr(p + 1, '%'))
        i->operand[n++] = atoi(p + 1);
}

const instruction &parsed_ldmatrix(const char *text)
{
    static instruction i;
    if (i.text == text)
        return i;
    i.text = text;
    i.transposed = begins(text, "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {");
    read_operands(&i);
    if (!i.transposed && !begins(text, "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {"))
        mistake("an unknown ldmatrix");
    if (i.operand[2] != 2 || i.operand[0] == i.operand[1])
        mistake("the operands of ldmatrix");
    return i;
}

const instruction &parsed_mma(const char *text)
{
    static instruction i;
    if (i.text == text)
        return i;
    i.text = text;
    read_operands(&i);
    if (!begins(text, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {"))
        mistake("an unknown mma");
    for (int n = 0; n < 4; n++)
        if (i.operand[n] != i.operand[10 + n])
            mistake("an mma that does not add to its result");
    return i;
}

struct lane_fragments {
    unsigned reg[6]; /* a, b */
};

float half_of(unsigned pair, int odd)
{
    return f32_from_bits(odd ? pair & 0xffff0000u : pair << 16);
}

/* Register n of a list that begins at `first` in the text. */
unsigned reg_of(const instruction &i, int first, int n, const lane_fragments &f)
{
    const int operand = i.operand[first + n] - 4;
    return operand >= 0 && operand < 6 ? f.reg[operand] : 0x7fff7fff;
}

} // namespace

void ptx_ldmatrix(const char *text, unsigned *const (&r)[2], const shared<uint16_t> &row,
                  int line)
{
    const instruction &i = parsed_ldmatrix(text);
    const int lane = here.thread % WARP, g = lane / 4, t = lane % 4 * 2;
    const int slot = exchange(&row, sizeof(row), line, ALL_LANES);
    (void)row.as<uint4>()[0]; /* a row is aligned to its 16 bytes, and inside the array */
    for (int n = 0; n < 2; n++) {
        shared<uint16_t> at(0, 0, 0), next(0, 0, 0);
        peek(&at, sizeof(at), 8 * n + (i.transposed ? t : g), slot);
        peek(&next, sizeof(next), 8 * n + (i.transposed ? t + 1 : g), slot);
        const int col = i.transposed ? g : t;
        *r[i.operand[n] & 1] = at[col] | (unsigned)next[i.transposed ? col : col + 1] << 16;
    }
}

/* Element (row, k) is in register (row >= 8) + 2 (k >= 8) of lane 4 (row % 8) + (k % 8) /
 * 2, and (k, n) in register (k >= 8) of lane 4 n + (k % 8) / 2. */
void ptx_mma(const char *text, float *const (&c)[4], const unsigned (&a)[4],
             const unsigned (&b)[2], int line)
{
    const instruction &i = parsed_mma(text);
    const int lane = here.thread % WARP, g = lane / 4, t = lane % 4 * 2;
    const lane_fragments mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const int slot = exchange(&mine, sizeof(mine), line, ALL_LANES);
    lane_fragments of_a[4], of_b[2][4]; /* of row g, and of columns t and t + 1 */
    for (int q = 0; q < 4; q++) {
        peek(&of_a[q], sizeof(of_a[q]), 4 * g + q, slot);
        for (int n = 0; n < 2; n++)
            peek(&of_b[n][q], sizeof(of_b[n][q]), 4 * (t + n) + q, slot);
    }
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++)
            *c[i.operand[e] & 3] +=
                half_of(reg_of(i, 4, e / 2 + k / 8 * 2, of_a[k % 8 / 2]), k % 2) *
                half_of(reg_of(i, 8, k / 8, of_b[e % 2][k % 8 / 2]), k % 2);
}

} // namespace emu
