// What kernels ask of a GPU, on the CPU.
//
// By default a thread of the system for each thread of a block, one block after the other. It is no faster than that sounds. They meet
// at barriers as the GPU's do, so that the compiler's sanitizers see what kernels do wrong: an index out of bounds, a line of shared
// memory that is read while another thread writes it.
//
// With `EMULATED_FIBERS` the threads of a block take turns in one, each until it waits: enough for whole models of tests. Where they are
// created and switched is the business of `device/fibers.cpp`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifndef EMULATED_FIBERS
#include <pthread.h>
#endif

#include "cuda_bf16.h"
#include "cuda_fp16.h"

#define __global__
#define __device__
// One block runs at a time.
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x, y, z;
};

#ifdef EMULATED_FIBERS
#define EMULATED_OF_THREAD
#else
#define EMULATED_OF_THREAD thread_local
#endif

inline dim3 gridDim, blockDim;
inline EMULATED_OF_THREAD dim3 blockIdx, threadIdx;

namespace emulated {

constexpr int LANES = 32;
constexpr int WARPS_MAX = 32;

// The number of a thread in its block.
inline EMULATED_OF_THREAD int thread;

#ifdef EMULATED_FIBERS
// Lets the block's other threads go on.
void yield();

struct Barrier {
    int members, arrived, round;

    void open() {
        arrived = 0;
        round++;
    }
    // Those that have returned are not waited for.
    void leave() {
        members--;
        if (arrived > 0 && arrived == members) open();
    }
};

inline void wait(Barrier& barrier) {
    int round = barrier.round;
    if (++barrier.arrived == barrier.members) barrier.open();
    while (barrier.round == round) yield();
}
#else
using Barrier = pthread_barrier_t;

inline void wait(Barrier& barrier) { pthread_barrier_wait(&barrier); }
#endif

inline Barrier block;
inline Barrier warps[WARPS_MAX];

// What the lanes of a warp show each other.
struct Lane {
    char value[8];
    uint32_t left[4], right[2];
};
inline Lane lanes[WARPS_MAX][LANES];

// Calls `read` with the lanes of the warp after each has called `write` with its own.
template <class Write, class Read> void exchange(Write write, Read read) {
    int warp = thread / LANES;
    write(lanes[warp][thread % LANES]);
    wait(warps[warp]);
    read(lanes[warp]);
    wait(warps[warp]);
}

} // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::block); }

template <class T> T __shfl_xor_sync(unsigned, T value, int distance, int = emulated::LANES) {
    T other = value;
    static_assert(sizeof value <= sizeof emulated::Lane::value);
    emulated::exchange(
        [&](emulated::Lane& mine) { std::memcpy(mine.value, &value, sizeof value); },
        [&](const emulated::Lane* lanes) {
            std::memcpy(&other, lanes[emulated::thread % emulated::LANES ^ distance].value, sizeof other);
        });
    return other;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// `mma.m16n8k16`, with the values of each lane where the PTX manual says.
template <class T> void multiply(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], T) {
    auto half = [](uint32_t pair, int side) { return float(T::of_bits(uint16_t(pair >> 16 * side))); };
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
