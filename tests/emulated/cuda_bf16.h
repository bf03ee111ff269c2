// Numbers of 16 bits with 8 of exponent, with CUDA's names: conversions alone, for the kernels compute in f32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint32_t wide;
    std::memcpy(&wide, &x, sizeof wide);
    return {uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}
