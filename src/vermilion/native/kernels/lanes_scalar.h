// Sixteen lanes in plain C++: the reference that every instruction set must equal bit for bit.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

namespace {

constexpr const char* kInstructionSet = "scalar";
constexpr int kRowsPerSweep = 4;
constexpr int kRowsPerPairSweep = 0;  // too few registers for two tiles
constexpr int kValueVectors = 1;
constexpr int kScoreSums = 1;

struct Floats { float at[16]; };
struct Ints { int32_t at[16]; };
struct Bytes { uint8_t at[64]; };
using Sum4 = Ints;
using Sum8 = Ints;

template <class Function> inline Floats each(Function function) {
    Floats made;
    for (int i = 0; i < 16; i++) made.at[i] = function(i);
    return made;
}

inline Floats zero() { return Floats{}; }
inline Floats splat(float x) { return each([&](int) { return x; }); }
inline Floats load(const float* from) { return each([&](int i) { return from[i]; }); }
inline void store(float* to, const Floats& x) { memcpy(to, x.at, sizeof x.at); }
inline Floats load_half(const uint16_t* from) { return each([&](int i) { return half_to_float(from[i]); }); }
inline void store_half(uint16_t* to, const Floats& x) {
    for (int i = 0; i < 16; i++) to[i] = float_to_half(x.at[i]);
}
inline Floats add(const Floats& a, const Floats& b) { return each([&](int i) { return a.at[i] + b.at[i]; }); }
inline Floats sub(const Floats& a, const Floats& b) { return each([&](int i) { return a.at[i] - b.at[i]; }); }
inline Floats mul(const Floats& a, const Floats& b) { return each([&](int i) { return a.at[i] * b.at[i]; }); }
inline Floats div(const Floats& a, const Floats& b) { return each([&](int i) { return a.at[i] / b.at[i]; }); }
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](int i) { return fmaf(a.at[i], b.at[i], c.at[i]); });
}
inline Floats lower(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}
inline Floats higher(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
inline Floats magnitude(const Floats& x) { return each([&](int i) { return fabsf(x.at[i]); }); }
inline Floats nearest(const Floats& x) { return each([&](int i) { return rintf(x.at[i]); }); }
inline Floats power_of_two(const Floats& n) {
    return each([&](int i) {
        const int32_t bits = ((int32_t)n.at[i] + 127) << 23;
        float made;
        memcpy(&made, &bits, 4);
        return made;
    });
}
// `value` where x > limit, else 0.
inline Floats where_above(const Floats& x, float limit, const Floats& value) {
    return each([&](int i) { return x.at[i] > limit ? value.at[i] : 0.0f; });
}
inline unsigned mask_not_below(const Floats& x, float limit) {
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (unsigned)(x.at[i] >= limit) << i;
    return mask;
}
// Sums by halves: lane i with i + 8, then i + 4, i + 2, i + 1.
inline float total(Floats x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x.at[i] += x.at[i + half];
    return x.at[0];
}
inline float highest(const Floats& x) {
    float most = x.at[0];
    for (int i = 1; i < 16; i++) most = x.at[i] > most ? x.at[i] : most;
    return most;
}

inline Ints to_ints(const Floats& x) {
    Ints made;
    for (int i = 0; i < 16; i++) made.at[i] = (int32_t)rintf(x.at[i]);
    return made;
}
inline Ints add(const Ints& a, const Ints& b) {
    Ints made;
    for (int i = 0; i < 16; i++) made.at[i] = a.at[i] + b.at[i];
    return made;
}
inline int32_t total(const Ints& x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += x.at[i];
    return sum;
}
inline void store_codes(int8_t* to, const Ints& x) {
    for (int i = 0; i < 16; i++) to[i] = (int8_t)x.at[i];
}

inline Bytes load_bytes(const uint8_t* from) {
    Bytes made;
    memcpy(made.at, from, 64);
    return made;
}
inline Bytes low_nibbles(const Bytes& x) {
    Bytes made;
    for (int i = 0; i < 64; i++) made.at[i] = x.at[i] & 15;
    return made;
}
inline Bytes high_nibbles(const Bytes& x) {
    Bytes made;
    for (int i = 0; i < 64; i++) made.at[i] = x.at[i] >> 4;
    return made;
}
inline Ints dot(Ints sum, const Bytes& codes, const int8_t* x, int taken_off) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sum.at[i] += ((int)codes.at[4 * i + j] - taken_off) * x[j];
    return sum;
}
inline Sum4 start4() { return Ints{}; }
inline Sum4 dot4(const Sum4& sum, const Bytes& codes, const int8_t* x) { return dot(sum, codes, x, 0); }
inline Sum8 start8(int32_t) { return Ints{}; }
inline Sum8 dot8(const Sum8& sum, const Bytes& codes, const int8_t* x) { return dot(sum, codes, x, 128); }
inline Floats to_floats(const Ints& x) { return each([&](int i) { return (float)x.at[i]; }); }

}  // namespace
