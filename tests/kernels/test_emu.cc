/* SPDX-License-Identifier: MIT
 *
 * The emulation computes what a GPU would. It detects a missing barrier, an index one past
 * the end, and a barrier that some threads miss. */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
}

#include "kernels/cuda/port.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace
{

constexpr int N = 96; /* threads: three warps */

enum plant {
    SOUND,
    NO_BARRIER,
    ONE_BEHIND,
    SOME_MISS_BARRIER,
    SOME_MISS_SHUFFLE,
    TWO_BARRIERS
};

/* y = sum of x over the block, in every thread, with one mistake on request. */
__global__ void sum_kernel(float *y, const float *x, plant p)
{
    SHARED_ARRAY(float, part, N / WARP_SIZE);
    SHARED_DYNAMIC(float, copy);
    const int t = (int)threadIdx.x;
    copy[t + (p == ONE_BEHIND)] = x[blockIdx.x * N + (unsigned)t];
    if (p == SOME_MISS_BARRIER && t >= 64)
        return;
    if (p == TWO_BARRIERS && t >= 64)
        __syncthreads();
    else if (p != NO_BARRIER)
        __syncthreads();
    float v = copy[N - 1 - t];
    if (p == SOME_MISS_SHUFFLE && t == 5)
        return;
    for (int o = WARP_SIZE / 2; o; o /= 2)
        v += __shfl_xor_sync(FULL_WARP, v, o);
    if (t % WARP_SIZE == 0)
        part[t / WARP_SIZE] = v;
    __syncthreads();
    y[blockIdx.x * N + (unsigned)t] = part[0] + part[1] + part[2];
}

/* Lane l hands its value to lane l + 1 through shared memory, ordered by the warp only. */
__global__ void neighbour_kernel(float *y, bool sync)
{
    SHARED_ARRAY(float, s, WARP_SIZE);
    const int t = (int)threadIdx.x;
    s[t] = (float)t;
    if (sync)
        __syncwarp();
    y[t] = s[(t + 1) % WARP_SIZE];
}

/* The order in which threads run. */
__global__ void order_kernel(int *order, int *n)
{
    order[(*n)++] = (int)threadIdx.x;
}

const char *run_sum(plant p, uint64_t seed, float *y)
{
    static float x[2 * N];
    for (int i = 0; i < 2 * N; i++)
        x[i] = (float)i;
    emu_clear();
    emu_set_seed(seed);
    CUDA_LAUNCH(sum_kernel, 2, N, N * sizeof(float), 0, y, x, p);
    return emu_error();
}

void sound_kernels_run(void **)
{
    float y[2 * N];
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_string_equal(run_sum(SOUND, seed, y), "");
        for (int i = 0; i < 2 * N; i++)
            assert_true(y[i] == (i < N ? 4560.0f : 13776.0f));
    }
}

void planted_bugs_are_found(void **)
{
    float y[2 * N];
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_non_null(strstr(run_sum(NO_BARRIER, seed, y), "no barrier between"));
        assert_non_null(strstr(run_sum(ONE_BEHIND, seed, y),
                               "shared memory index 96, the array ends at 96"));
        assert_non_null(
            strstr(run_sum(SOME_MISS_BARRIER, seed, y), "is not reached by thread 64"));
        assert_non_null(
            strstr(run_sum(SOME_MISS_SHUFFLE, seed, y), "is not reached by thread 5"));
        assert_non_null(strstr(run_sum(TWO_BARRIERS, seed, y), "the barrier in line"));
    }
    emu_clear();
}

void warps_order_their_lanes(void **)
{
    float y[WARP_SIZE];
    emu_clear();
    emu_set_seed(3);
    CUDA_LAUNCH(neighbour_kernel, 1, WARP_SIZE, 0, 0, y, true);
    assert_string_equal(emu_error(), "");
    for (int i = 0; i < WARP_SIZE; i++)
        assert_true(y[i] == (float)((i + 1) % WARP_SIZE));
    CUDA_LAUNCH(neighbour_kernel, 1, WARP_SIZE, 0, 0, y, false);
    assert_non_null(strstr(emu_error(), "no barrier between"));
    emu_clear();
}

void launches_are_checked(void **)
{
    float y[WARP_SIZE];
    emu_clear();
    CUDA_LAUNCH(neighbour_kernel, 1, 2048, 0, 0, y, true);
    assert_non_null(strstr(emu_error(), "1 to 1024 threads"));
    emu_clear();
}

void a_seed_changes_the_order(void **)
{
    int order[2][64], n[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        emu_set_seed(i ? 7 : 0);
        CUDA_LAUNCH(order_kernel, 1, 64, 0, 0, order[i], &n[i]);
        assert_int_equal(n[i], 64);
    }
    int moved = 0;
    for (int i = 0; i < 64; i++) {
        assert_int_equal(order[0][i], i);
        moved += order[1][i] != i;
    }
    assert_true(moved > 32);
}

__global__ void store_kernel(int *p)
{
    p[threadIdx.x] = (int)threadIdx.x;
}

/* Kernels and copies reach device memory, the host does not. */
void device_memory_is_fenced(void **)
{
    void *p = nullptr;
    int host[WARP_SIZE] = {0};
    assert_int_equal(cudaMalloc(&p, sizeof(host)), cudaSuccess);
    CUDA_LAUNCH(store_kernel, 1, WARP_SIZE, 0, 0, (int *)p);
    assert_int_equal(cudaMemcpyAsync(host, p, sizeof(host), cudaMemcpyDeviceToHost, 0),
                     cudaSuccess);
    assert_int_equal(host[31], 31);
    const pid_t child = fork();
    if (child == 0) {
        /* cmocka's handler would continue with the parent's tests */
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        close(STDERR_FILENO);
        _exit(((volatile int *)p)[0]); /* 0 if it could be read */
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_true(WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

} // namespace

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_kernels_run),
        cmocka_unit_test(planted_bugs_are_found),
        cmocka_unit_test(warps_order_their_lanes),
        cmocka_unit_test(launches_are_checked),
        cmocka_unit_test(a_seed_changes_the_order),
        cmocka_unit_test(device_memory_is_fenced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
