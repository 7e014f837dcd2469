/* SPDX-License-Identifier: MIT
 *
 * oneDNN is C++ behind a C interface, and lets std::bad_alloc through. */
extern "C" bool gemm_guarded(void (*call)(void *ctx), void *ctx) noexcept
{
    try {
        call(ctx);
        return true;
    } catch (...) {
        return false;
    }
}
