// Numbers of 8 bits: no model has them, and candle's kernels name them.
#pragma once

#include "../cuda_fp16.h"

struct __nv_fp8_e4m3 {
    uint8_t __x;

    __nv_fp8_e4m3() = default;
    __nv_fp8_e4m3(float) : __x(0) { __builtin_trap(); }
    operator float() const { __builtin_trap(); }
};

enum __nv_fp8_interpretation_t { __NV_E4M3 };

inline __half __nv_cvt_fp8_to_halfraw(uint8_t, __nv_fp8_interpretation_t) { __builtin_trap(); }
