// What candle's kernels ask of CUDA besides what Darkroom's own do.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <utility>

#include "../emulation.hpp"

#define __host__
#define __forceinline__ inline
#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

using std::isnan;
using std::max;
using std::min;
using std::signbit;

inline size_t min(size_t a, unsigned b) { return std::min<size_t>(a, b); }
inline unsigned min(int a, unsigned b) { return std::min<unsigned>(unsigned(a), b); }

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752); }

// One thread runs at a time.
template <class T, class U> T atomicAdd(T* address, U value) {
    T old = *address;
    *address = T(old + value);
    return old;
}
template <class T, class U> T atomicMin(T* address, U value) { return std::exchange(*address, std::min(*address, T(value))); }
template <class T, class U> T atomicMax(T* address, U value) { return std::exchange(*address, std::max(*address, T(value))); }
template <class T, class U, class V> T atomicCAS(T* address, U compare, V value) {
    T old = *address;
    if (old == compare) *address = T(value);
    return old;
}

template <class To, class From> To with_bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned x) { return with_bits_of<float>(x); }
inline float __int_as_float(int x) { return with_bits_of<float>(x); }
inline unsigned __float_as_uint(float x) { return with_bits_of<unsigned>(x); }
inline int __float_as_int(float x) { return with_bits_of<int>(x); }
inline double __longlong_as_double(long long x) { return with_bits_of<double>(x); }
inline long long __double_as_longlong(double x) { return with_bits_of<long long>(x); }
inline __half __ushort_as_half(unsigned short x) { return __half::of_bits(x); }

// Numbers of 16 bits, in f32 and rounded.
#define OF_16_BITS(T)                                                                                                          \
    inline bool __hisnan(T x) { return std::isnan(float(x)); }                                                                 \
    inline T __hmax_nan(T x, T y) { return __hisnan(x) || x > y ? x : y; }                                                     \
    inline T __hmin_nan(T x, T y) { return __hisnan(x) || x < y ? x : y; }                                                     \
    inline T __habs(T x) { return std::fabs(float(x)); }                                                                       \
    inline T hsqrt(T x) { return std::sqrt(float(x)); }                                                                        \
    inline T hsin(T x) { return std::sin(float(x)); }                                                                          \
    inline T hcos(T x) { return std::cos(float(x)); }                                                                          \
    inline T hlog(T x) { return std::log(float(x)); }                                                                          \
    inline T hexp(T x) { return std::exp(float(x)); }                                                                          \
    struct T##2x {                                                                                                             \
        T x, y;                                                                                                                \
    };
OF_16_BITS(__half)
OF_16_BITS(__nv_bfloat16)
using __nv_bfloat162 = __nv_bfloat162x;
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) + b.x, float(a.y) + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) * b.x, float(a.y) * b.y}; }
