// Numbers of 16 bits with 8 of exponent, with CUDA's names. Whatever is computed with them is computed in f32 and rounded when it is
// stored, as kernels do that spell it out.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : bits(rounded(x)) {}
    operator float() const { return wide(bits); }
    __nv_bfloat16& operator+=(float x) { return *this = __nv_bfloat16(*this + x); }
    __nv_bfloat16& operator*=(float x) { return *this = __nv_bfloat16(*this * x); }

    static __nv_bfloat16 of_bits(uint16_t bits) {
        __nv_bfloat16 x;
        x.bits = bits;
        return x;
    }

    static float wide(uint16_t bits) {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }

    // To the nearest, ties to even.
    static uint16_t rounded(float x) {
        if (std::isnan(x)) return 0x7fff;
        uint32_t wide;
        std::memcpy(&wide, &x, sizeof wide);
        return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
};

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
