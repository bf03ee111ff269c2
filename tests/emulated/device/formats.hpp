// Numbers in memory, as the emulated libraries see them, without CUDA's names.
#pragma once

#include <cstdint>

namespace emulated {

enum class Format { F32, F16, Bf16 };

float read(const void* values, Format format, int64_t index);
void write(void* values, Format format, int64_t index, float value);

} // namespace emulated
