// Sixteen lanes as four 128-bit registers: AArch64 with the dot product (Armv8.2-A).
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr const char* kInstructionSet = "neon";
constexpr int kRowsPerSweep = 4;
constexpr int kRowsPerPairSweep = 0;  // too few registers for two tiles
constexpr int kValueVectors = 1;
constexpr int kScoreSums = 6;

struct Floats { float32x4_t at[4]; };
struct Ints { int32x4_t at[4]; };
struct Bytes { uint8x16_t at[4]; };
using Sum4 = Ints;
using Sum8 = Ints;

template <class Function> inline Floats each(Function function) {
    return {{function(0), function(1), function(2), function(3)}};
}

inline Floats zero() { return each([](int) { return vdupq_n_f32(0.0f); }); }
inline Floats splat(float x) { return each([&](int) { return vdupq_n_f32(x); }); }
inline Floats load(const float* from) { return each([&](int i) { return vld1q_f32(from + 4 * i); }); }
inline void store(float* to, Floats x) {
    for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, x.at[i]);
}
inline Floats load_half(const uint16_t* from) {
    return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))); });
}
inline void store_half(uint16_t* to, Floats x) {
    for (int i = 0; i < 4; i++) vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.at[i])));
}
inline Floats add(Floats a, Floats b) { return each([&](int i) { return vaddq_f32(a.at[i], b.at[i]); }); }
inline Floats sub(Floats a, Floats b) { return each([&](int i) { return vsubq_f32(a.at[i], b.at[i]); }); }
inline Floats mul(Floats a, Floats b) { return each([&](int i) { return vmulq_f32(a.at[i], b.at[i]); }); }
inline Floats div(Floats a, Floats b) { return each([&](int i) { return vdivq_f32(a.at[i], b.at[i]); }); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) { return vfmaq_f32(c.at[i], a.at[i], b.at[i]); });
}
inline Floats lower(Floats a, Floats b) { return each([&](int i) { return vminq_f32(a.at[i], b.at[i]); }); }
inline Floats higher(Floats a, Floats b) { return each([&](int i) { return vmaxq_f32(a.at[i], b.at[i]); }); }
inline Floats magnitude(Floats x) { return each([&](int i) { return vabsq_f32(x.at[i]); }); }
inline Floats nearest(Floats x) { return each([&](int i) { return vrndnq_f32(x.at[i]); }); }
inline Floats power_of_two(Floats n) {
    return each([&](int i) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.at[i]), vdupq_n_s32(127)), 23));
    });
}
inline Floats where_above(Floats x, float limit, Floats value) {
    return each([&](int i) {
        const uint32x4_t above = vcgtq_f32(x.at[i], vdupq_n_f32(limit));
        return vreinterpretq_f32_u32(vandq_u32(above, vreinterpretq_u32_f32(value.at[i])));
    });
}
inline unsigned mask_not_below(Floats x, float limit) {
    const uint32_t weights[4] = {1, 2, 4, 8};
    const uint32x4_t bits = vld1q_u32(weights);
    unsigned mask = 0;
    for (int i = 0; i < 4; i++)
        mask |= vaddvq_u32(vandq_u32(vcgeq_f32(x.at[i], vdupq_n_f32(limit)), bits)) << (4 * i);
    return mask;
}
inline float total(Floats x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.at[0], x.at[2]), vaddq_f32(x.at[1], x.at[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float highest(Floats x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.at[0], x.at[1]), vmaxq_f32(x.at[2], x.at[3])));
}

inline Ints to_ints(Floats x) {
    Ints made;
    for (int i = 0; i < 4; i++) made.at[i] = vcvtnq_s32_f32(x.at[i]);
    return made;
}
inline Floats to_floats(Ints x) { return each([&](int i) { return vcvtq_f32_s32(x.at[i]); }); }
inline Ints add(Ints a, Ints b) {
    for (int i = 0; i < 4; i++) a.at[i] = vaddq_s32(a.at[i], b.at[i]);
    return a;
}
inline int32_t total(Ints x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.at[0], x.at[1]), vaddq_s32(x.at[2], x.at[3])));
}
inline void store_codes(int8_t* to, Ints x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.at[0]), vmovn_s32(x.at[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.at[2]), vmovn_s32(x.at[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

inline Bytes load_bytes(const uint8_t* from) {
    return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}
inline Bytes low_nibbles(Bytes x) {
    for (auto& part : x.at) part = vandq_u8(part, vdupq_n_u8(15));
    return x;
}
inline Bytes high_nibbles(Bytes x) {
    for (auto& part : x.at) part = vshrq_n_u8(part, 4);
    return x;
}
inline int8x16_t four_codes(const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
inline Sum4 start4() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
inline Sum4 dot4(Sum4 sum, Bytes codes, const int8_t* x) {
    const int8x16_t four = four_codes(x);
    for (int i = 0; i < 4; i++) sum.at[i] = vdotq_s32(sum.at[i], vreinterpretq_s8_u8(codes.at[i]), four);
    return sum;
}
inline Sum8 start8(int32_t) { return start4(); }
inline Sum8 dot8(Sum8 sum, Bytes codes, const int8_t* x) {
    for (auto& part : codes.at) part = veorq_u8(part, vdupq_n_u8(128));
    return dot4(sum, codes, x);
}

}  // namespace
