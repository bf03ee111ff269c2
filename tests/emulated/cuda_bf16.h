// Numbers of 16 bits with 8 of exponent, with CUDA's names.
#pragma once

#include "narrow.hpp"

namespace emulated {

struct Bf16 {
    static float wide(uint16_t bits) {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }

    static uint16_t rounded(float x) {
        if (std::isnan(x)) return 0x7fff;
        uint32_t wide;
        std::memcpy(&wide, &x, sizeof wide);
        return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
};

} // namespace emulated

using __nv_bfloat16 = emulated::Narrow<emulated::Bf16>;

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
