// Numbers of 16 bits. Whatever is computed with them is computed in f32 and rounded when it is stored, as kernels do that spell it
// out.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

// `Format` says what bits mean: `wide` makes f32 of them, `rounded` them of f32, to the nearest, ties to even.
template <class Format> struct Narrow {
    uint16_t bits;

    Narrow() = default;
    Narrow(float x) : bits(Format::rounded(x)) {}
    operator float() const { return Format::wide(bits); }
    Narrow& operator+=(float x) { return *this = Narrow(*this + x); }
    Narrow& operator*=(float x) { return *this = Narrow(*this * x); }

    static Narrow of_bits(uint16_t bits) {
        Narrow x;
        x.bits = bits;
        return x;
    }
};

} // namespace emulated
