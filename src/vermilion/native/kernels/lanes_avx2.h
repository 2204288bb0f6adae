// Sixteen lanes as two 256-bit registers: AVX2, FMA and F16C, and AVX-VNNI where the compiler may use it.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

#ifdef __AVXVNNI__
constexpr const char* kInstructionSet = "avxvnni";
#else
constexpr const char* kInstructionSet = "avx2";
#endif
constexpr int kRowsPerSweep = 4;
constexpr int kRowsPerPairSweep = 0;  // too few registers for two tiles
constexpr int kValueVectors = 1;
constexpr int kScoreSums = 4;

struct Floats { __m256 low, high; };
struct Ints { __m256i low, high; };
struct Bytes { __m256i low, high; };
using Sum4 = Ints;
using Sum8 = Ints;

inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
inline Floats load_half(const uint16_t* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8)))};
}
inline void store_half(uint16_t* to, Floats x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x.low, 0));
    _mm_storeu_si128((__m128i*)(to + 8), _mm256_cvtps_ph(x.high, 0));
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats lower(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats higher(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats magnitude(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Floats nearest(Floats x) {
    return {_mm256_round_ps(x.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 power_of_two(__m256 n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Floats power_of_two(Floats n) { return {power_of_two(n.low), power_of_two(n.high)}; }
inline Floats where_above(Floats x, float limit, Floats value) {
    const __m256 least = _mm256_set1_ps(limit);
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, least, _CMP_GT_OQ), value.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, least, _CMP_GT_OQ), value.high)};
}
inline unsigned mask_not_below(Floats x, float limit) {
    const __m256 least = _mm256_set1_ps(limit);
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.low, least, _CMP_GE_OQ)) |
           (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.high, least, _CMP_GE_OQ)) << 8;
}
inline float total(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float highest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline int32_t total(Ints x) {
    const __m256i eight = _mm256_add_epi32(x.low, x.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline void store_codes(int8_t* to, Ints x) {
    // Packing works within 128-bit halves: put the quarters back in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)to, bytes);
}

inline Bytes load_bytes(const uint8_t* from) {
    return {_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 32))};
}
inline Bytes low_nibbles(Bytes x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline Bytes high_nibbles(Bytes x) {
    return low_nibbles({_mm256_srli_epi16(x.low, 4), _mm256_srli_epi16(x.high, 4)});
}
inline __m256i four_codes(const int8_t* x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}
inline Sum4 start4() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

#ifdef __AVXVNNI__
inline Sum4 dot4(Sum4 sum, Bytes codes, const int8_t* x) {
    const __m256i four = four_codes(x);
    return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, four), _mm256_dpbusd_avx_epi32(sum.high, codes.high, four)};
}
inline Sum8 start8(int32_t row_total) {
    const __m256i all = _mm256_set1_epi32(-128 * row_total);
    return {all, all};
}
inline Sum8 dot8(Sum8 sum, Bytes codes, const int8_t* x) { return dot4(sum, codes, x); }
#else
inline __m256i quads(__m256i unsigned_codes, __m256i signed_codes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_codes, signed_codes), _mm256_set1_epi16(1));
}
inline Sum4 dot4(Sum4 sum, Bytes codes, const int8_t* x) {
    const __m256i four = four_codes(x);
    return {_mm256_add_epi32(sum.low, quads(codes.low, four)), _mm256_add_epi32(sum.high, quads(codes.high, four))};
}
inline Sum8 start8(int32_t) { return start4(); }
// |code| x (x with the code's sign): two products of at most 128 x 127 stay below the saturation of 16 bits.
inline __m256i signed_quads(__m256i codes, __m256i four) {
    const __m256i weight = _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80));
    return quads(_mm256_abs_epi8(weight), _mm256_sign_epi8(four, weight));
}
inline Sum8 dot8(Sum8 sum, Bytes codes, const int8_t* x) {
    const __m256i four = four_codes(x);
    return {_mm256_add_epi32(sum.low, signed_quads(codes.low, four)),
            _mm256_add_epi32(sum.high, signed_quads(codes.high, four))};
}
#endif

}  // namespace
