#include "formats.hpp"

#include "../cuda_bf16.h"
#include "../cuda_fp16.h"

float emulated::read(const void* values, Format format, int64_t index) {
    switch (format) {
    case Format::F32: return static_cast<const float*>(values)[index];
    case Format::F16: return static_cast<const __half*>(values)[index];
    case Format::Bf16: return static_cast<const __nv_bfloat16*>(values)[index];
    }
    return 0;
}

void emulated::write(void* values, Format format, int64_t index, float value) {
    switch (format) {
    case Format::F32: static_cast<float*>(values)[index] = value; break;
    case Format::F16: static_cast<__half*>(values)[index] = value; break;
    case Format::Bf16: static_cast<__nv_bfloat16*>(values)[index] = value; break;
    }
}
