// Numbers of 16 bits with 5 of exponent, with CUDA's names.
#pragma once

#include "narrow.hpp"

namespace emulated {

struct F16 {
    static float wide(uint16_t bits) {
        int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float size = exponent == 0    ? std::ldexp(float(fraction), -24)
                     : exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : std::ldexp(float(fraction | 1024), exponent - 25);
        return bits & 0x8000 ? -size : size;
    }

    static uint16_t rounded(float x) {
        uint16_t sign = std::signbit(x) ? 0x8000 : 0;
        float size = std::fabs(x);
        if (std::isnan(x)) return 0x7fff;
        if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
        int exponent = size < 6.103515625e-5f ? -14 : std::ilogb(size);
        // The default mode of rounding is that one.
        int steps = int(std::nearbyint(std::ldexp(size, 10 - exponent)));
        int biased = steps < 1024 ? 0 : exponent + 15;
        // What was rounded up to the next power of two carries into the exponent.
        return uint16_t(sign | ((biased ? (biased << 10) + (steps - 1024) : steps)));
    }
};

} // namespace emulated

using __half = emulated::Narrow<emulated::F16>;

inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
