// Sixteen lanes as one 512-bit register: AVX-512 F, BW, VL, DQ and VNNI.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr const char* kInstructionSet = "avx512vnni";
constexpr int kRowsPerSweep = 8;
constexpr int kRowsPerPairSweep = 6;
constexpr int kValueVectors = 4;
constexpr int kScoreSums = 12;

using Floats = __m512;
struct Ints { __m512i all; };
struct Bytes { __m512i all; };
using Sum4 = Ints;
using Sum8 = Ints;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats splat(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats load_half(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
inline void store_half(uint16_t* to, Floats x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats lower(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats higher(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats power_of_two(Floats n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline Floats where_above(Floats x, float limit, Floats value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ), value);
}
inline unsigned mask_not_below(Floats x, float limit) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ);
}
inline __m256 high_half(Floats x) { return _mm512_extractf32x8_ps(x, 1); }
inline float total(Floats x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), high_half(x));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float highest(Floats x) { return _mm512_reduce_max_ps(x); }

inline Ints to_ints(Floats x) { return {_mm512_cvtps_epi32(x)}; }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x.all); }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.all, b.all)}; }
inline int32_t total(Ints x) { return _mm512_reduce_add_epi32(x.all); }
inline void store_codes(int8_t* to, Ints x) { _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(x.all)); }

inline Bytes load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Bytes low_nibbles(Bytes x) { return {_mm512_and_si512(x.all, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(Bytes x) {
    return {_mm512_and_si512(_mm512_srli_epi16(x.all, 4), _mm512_set1_epi8(15))};
}
inline __m512i four_codes(const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}
inline Sum4 start4() { return {_mm512_setzero_si512()}; }
inline Sum4 dot4(Sum4 sum, Bytes codes, const int8_t* x) {
    return {_mm512_dpbusd_epi32(sum.all, codes.all, four_codes(x))};
}
inline Sum8 start8(int32_t row_total) { return {_mm512_set1_epi32(-128 * row_total)}; }
inline Sum8 dot8(Sum8 sum, Bytes codes, const int8_t* x) { return dot4(sum, codes, x); }

}  // namespace
