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

#include "kernels/cuda/cuda.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
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

/* Runs what is queued; false after a report. */
bool ran(void)
{
    return cudaStreamSynchronize(0) == cudaSuccess;
}

const char *run_sum(plant p, uint64_t seed, float *y)
{
    static float x[2 * N];
    for (int i = 0; i < 2 * N; i++)
        x[i] = (float)i;
    emu_clear();
    emu_set_seed(seed);
    CUDA_LAUNCH(sum_kernel, 2, N, N * sizeof(float), 0, y, x, p);
    ran();
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
    assert_true(ran());
    assert_string_equal(emu_error(), "");
    for (int i = 0; i < WARP_SIZE; i++)
        assert_true(y[i] == (float)((i + 1) % WARP_SIZE));
    CUDA_LAUNCH(neighbour_kernel, 1, WARP_SIZE, 0, 0, y, false);
    assert_false(ran());
    assert_non_null(strstr(emu_error(), "no barrier between"));
    emu_clear();
}

void launches_are_checked(void **)
{
    float y[WARP_SIZE];
    emu_clear();
    CUDA_LAUNCH(neighbour_kernel, 1, 2048, 0, 0, y, true);
    assert_false(ran());
    assert_non_null(strstr(emu_error(), "1 to 1024 threads"));
    emu_clear();
}

void a_seed_changes_the_order(void **)
{
    int order[2][64], n[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        emu_set_seed(i ? 7 : 0);
        CUDA_LAUNCH(order_kernel, 1, 64, 0, 0, order[i], &n[i]);
        assert_true(ran());
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

/* Every thread reads its neighbour's element. `lanes` is the mask of a warp operation that
 * all lanes take part in. */
enum mistake { NONE, RACE, MISALIGNED, WRONG_MASK };

__global__ void global_kernel(GLOBAL(float) y, mistake p)
{
    const int t = (int)threadIdx.x;
    if (p == MISALIGNED)
        (void)load_wide<uint2>(&y.p[1]);
    const float v = y[t];
    (void)__shfl_xor_sync(p == WRONG_MASK ? 0xffffu : FULL_WARP, v, 1);
    y[p == RACE ? 0 : t] = v + 1;
}

void device_memory_is_watched(void **)
{
    static const struct {
        mistake p;
        const char *text;
    } cases[] = {{NONE, ""},
                 {RACE, "race for device memory"},
                 {MISALIGNED, "not aligned to its 8 bytes"},
                 {WRONG_MASK, "mask 0x0000ffff is not that of the lanes that meet"}};
    alignas(16) static float y[WARP_SIZE];
    for (const auto &c : cases) {
        emu_clear();
        CUDA_LAUNCH(global_kernel, 1, WARP_SIZE, 0, 0, y, c.p);
        ran();
        assert_non_null(strstr(emu_error(), c.text));
        assert_int_equal(*c.text == 0, *emu_error() == 0);
    }
    emu_clear();
}

/* Blocks run one after the other, so a race between two of them shows in the shadows only. */
__global__ void blocks_kernel(GLOBAL(float) y, bool apart)
{
    if (threadIdx.x == 0)
        y[apart ? (int)blockIdx.x : 0] += 1;
}

void blocks_race_too(void **)
{
    static float y[4];
    for (int apart = 0; apart < 2; apart++) {
        emu_clear();
        CUDA_LAUNCH(blocks_kernel, 4, WARP_SIZE, 0, 0, y, apart);
        assert_int_equal(ran(), apart);
    }
    emu_clear();
}

void much_shared_memory_must_be_allowed(void **)
{
    constexpr size_t BYTES = 64 * 1024;
    float y[WARP_SIZE];
    emu_clear();
    CUDA_LAUNCH(neighbour_kernel, 1, WARP_SIZE, BYTES, 0, y, true);
    assert_non_null(strstr(emu_error(), "more shared memory than cuda_allow_shared()"));
    emu_clear();
    assert_int_equal(cuda_allow_shared(neighbour_kernel, BYTES), cudaSuccess);
    CUDA_LAUNCH(neighbour_kernel, 1, WARP_SIZE, BYTES, 0, y, true);
    assert_true(ran());
}

/* Nothing runs before something waits for it. */
void work_is_queued(void **)
{
    int order[WARP_SIZE], n = 0;
    void *p = nullptr;
    emu_clear();
    CUDA_LAUNCH(order_kernel, 1, WARP_SIZE, 0, 0, order, &n);
    assert_int_equal(n, 0);
    assert_true(ran());
    assert_int_equal(n, WARP_SIZE);
    assert_int_equal(cudaMalloc(&p, 64), cudaSuccess);
    assert_int_equal(cudaMemsetAsync(p, 0, 64, 0), cudaSuccess);
    cudaFree(p);
    assert_non_null(strstr(emu_error(), "memory is freed while work is queued"));
    emu_clear();
}

/* True if a process that reads element i of p from the host dies. */
bool host_access_is_fatal(const void *p, int i)
{
    int status = 0;
    const pid_t child = fork();
    if (child == 0) {
        /* cmocka's handler would continue with the parent's tests */
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        close(STDERR_FILENO);
        _exit(((const volatile int *)p)[i] == 12345);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) &&
           (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}

/* Kernels and copies reach device memory, the host does not. */
void device_memory_is_fenced(void **)
{
    void *p = nullptr;
    int host[WARP_SIZE] = {0};
    assert_int_equal(cudaMalloc(&p, sizeof(host)), cudaSuccess);
    CUDA_LAUNCH(store_kernel, 1, WARP_SIZE, 0, 0, (int *)p);
    assert_true(ran());
    assert_int_equal(cudaMemcpyAsync(host, p, sizeof(host), cudaMemcpyDeviceToHost, 0),
                     cudaSuccess);
    assert_true(ran());
    assert_int_equal(host[31], 31);
    assert_true(host_access_is_fatal(p, 0));
    emu_fence(true); /* even then there is a page after the end that cannot be read */
    assert_true(host_access_is_fatal(p, WARP_SIZE));
    assert_false(host_access_is_fatal(p, WARP_SIZE - 1));
    emu_fence(false);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* New device memory is NaN. */
void device_memory_starts_as_nan(void **)
{
    void *p = nullptr;
    float host[WARP_SIZE] = {0};
    assert_int_equal(cudaMalloc(&p, sizeof(host)), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(host, p, sizeof(host), cudaMemcpyDeviceToHost, 0),
                     cudaSuccess);
    assert_true(ran());
    for (float v : host)
        assert_true(v != v);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* A library is found by its path in a variable, and below CUDA_HOME. */
void libraries_are_found(void **)
{
    constexpr char NAME[] = "libwkvq_stand_in.so.9", VARIABLE[] = "WKVQ_STAND_IN";
    char dir[] = "/tmp/wkvq-emu-XXXXXX", folder[64], file[128];
    Dl_info any;
    assert_non_null(mkdtemp(dir));
    snprintf(folder, sizeof(folder), "%s/lib64", dir);
    snprintf(file, sizeof(file), "%s/%s", folder, NAME);
    assert_true(dladdr((void *)_cmocka_run_group_tests, &any));
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(symlink(any.dli_fname, file), 0);
    unsetenv("CUDA_HOME");
    assert_null(cuda_emu::find_library(NAME, VARIABLE));
    setenv("CUDA_HOME", dir, 1);
    assert_non_null(cuda_emu::find_library(NAME, VARIABLE));
    setenv(VARIABLE, "/nowhere/lib.so", 1);
    assert_null(cuda_emu::find_library(NAME, VARIABLE));
    unsetenv("CUDA_HOME");
    setenv(VARIABLE, file, 1);
    assert_non_null(cuda_emu::find_library(NAME, VARIABLE));
    unlink(file);
    rmdir(folder);
    rmdir(dir);
}

} // namespace

int main(void)
{
    setenv("EMU_WATCH", "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_kernels_run),
        cmocka_unit_test(planted_bugs_are_found),
        cmocka_unit_test(warps_order_their_lanes),
        cmocka_unit_test(launches_are_checked),
        cmocka_unit_test(a_seed_changes_the_order),
        cmocka_unit_test(device_memory_is_watched),
        cmocka_unit_test(blocks_race_too),
        cmocka_unit_test(much_shared_memory_must_be_allowed),
        cmocka_unit_test(work_is_queued),
        cmocka_unit_test(device_memory_is_fenced),
        cmocka_unit_test(device_memory_starts_as_nan),
        cmocka_unit_test(libraries_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
