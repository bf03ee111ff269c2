// What kernels ask of a GPU, on the CPU: a thread for each thread of a block, one block after the other.
//
// It is no faster than that sounds. Threads of the system meet at barriers as the GPU's do, so that the compiler's sanitizers see what
// kernels do wrong: an index out of bounds, a line of shared memory that is read while another thread writes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <pthread.h>

#define __global__
#define __device__
// One block runs at a time.
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x, y, z;
};

inline dim3 gridDim, blockDim;
inline thread_local dim3 blockIdx, threadIdx;

namespace emulated {

constexpr int LANES = 32;
constexpr int WARPS_MAX = 32;

// The number of a thread in its block.
inline thread_local int thread;
inline pthread_barrier_t block;
inline pthread_barrier_t warps[WARPS_MAX];

// What the lanes of a warp show each other.
struct Lane {
    float value;
    uint32_t left[4], right[2];
};
inline Lane lanes[WARPS_MAX][LANES];

inline void wait(pthread_barrier_t& barrier) { pthread_barrier_wait(&barrier); }

// Calls `read` with the lanes of the warp after each has called `write` with its own.
template <class Write, class Read> void exchange(Write write, Read read) {
    int warp = thread / LANES;
    write(lanes[warp][thread % LANES]);
    wait(warps[warp]);
    read(lanes[warp]);
    wait(warps[warp]);
}

inline float widen(__half x) { return __half2float(x); }
inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

} // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::block); }

inline float __shfl_xor_sync(unsigned, float value, int distance) {
    float other = 0;
    emulated::exchange(
        [&](emulated::Lane& mine) { mine.value = value; },
        [&](const emulated::Lane* lanes) { other = lanes[emulated::thread % emulated::LANES ^ distance].value; });
    return other;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// `mma.m16n8k16`, with the values of each lane where the PTX manual says.
template <class T> void multiply(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], T) {
    auto half = [](uint32_t pair, int side) { return emulated::widen(T{uint16_t(pair >> 16 * side)}); };
    emulated::exchange(
        [&](emulated::Lane& mine) {
            std::memcpy(mine.left, left, sizeof left);
            std::memcpy(mine.right, right, sizeof right);
        },
        [&](const emulated::Lane* lanes) {
            int lane = emulated::thread % emulated::LANES;
            for (int index = 0; index < 4; index++) {
                int line = lane / 4 + 8 * (index / 2), column = lane % 4 * 2 + index % 2;
                for (int term = 0; term < 16; term++) {
                    int owner = term % 8 / 2;
                    float factor = half(lanes[line % 8 * 4 + owner].left[line / 8 + 2 * (term / 8)], term % 2);
                    sums[index] += factor * half(lanes[column * 4 + owner].right[term / 8], term % 2);
                }
            }
        });
}
