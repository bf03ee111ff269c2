// Kernels as the emulated driver sees them, without CUDA's names.
#pragma once

#include <functional>

namespace emulated {

// Runs a kernel to its end. One at a time.
void launch(const unsigned (&grid)[3], const unsigned (&block)[3], const std::function<void()>& run);

} // namespace emulated
