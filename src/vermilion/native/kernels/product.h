// Quantised products: codes of weights with codes of activations, exact sums, one order of float operations.
#pragma once
#include "kernels.h"

namespace {

struct FourBit {
    using Sum = Sum4;
    static constexpr int kCodes = 256, kScales = 64;
    static Sum start(int32_t) { return start4(); }
    static Sum dot(Sum sum, Bytes codes, const int8_t* x) { return dot4(sum, codes, x); }
    static void pair(const uint8_t* codes, int index, Bytes& first, Bytes& second) {
        const Bytes both = load_bytes(codes + 64 * index);
        first = low_nibbles(both);
        second = high_nibbles(both);
    }
};

struct EightBit {
    using Sum = Sum8;
    static constexpr int kCodes = 512, kScales = 32;
    static Sum start(int32_t total) { return start8(total); }
    static Sum dot(Sum sum, Bytes codes, const int8_t* x) { return dot8(sum, codes, x); }
    static void pair(const uint8_t* codes, int index, Bytes& first, Bytes& second) {
        first = load_bytes(codes + 128 * index);
        second = load_bytes(codes + 128 * index + 64);
    }
};

template <class Format>
inline Floats scaled(typename Format::Sum sum, const uint8_t* scales, float scale, float block_sum, Floats total) {
    const Floats weight_scale = load_half((const uint16_t*)scales);
    total = fma(to_floats(sum), mul(weight_scale, splat(scale)), total);
    if (Format::kScales == 64) total = fma(load_half((const uint16_t*)scales + 16), splat(block_sum), total);
    return total;
}

// One tile times kRows rows, so that each weight is read once for all of them.
template <int kRows, class Format>
void sweep(const uint8_t* tile, const Activations& x, int row, const Output& y) {
    const int blocks = x.inputs / kBlock;
    const uint8_t* scales = tile + blocks * Format::kCodes;
    const int scale_stride = x.stride / kBlock;
    Floats total[kRows];
    for (int r = 0; r < kRows; r++) total[r] = zero();
    for (int block = 0; block < blocks; block++) {
        typename Format::Sum sum[kRows];
        const int at = row * scale_stride + block;
        for (int r = 0; r < kRows; r++) sum[r] = Format::start(x.totals[at + r * scale_stride]);
        const int8_t* codes = x.codes + (long)row * x.stride + block * kBlock;
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++) {
            Bytes first, second;
            Format::pair(tile, pair, first, second);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) {
                const int8_t* eight = codes + (long)r * x.stride + pair * 8;
                sum[r] = Format::dot(Format::dot(sum[r], first, eight), second, eight + 4);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
            const int k = at + r * scale_stride;
            total[r] = scaled<Format>(sum[r], scales, x.scales[k], x.sums[k], total[r]);
        }
        tile += Format::kCodes;
        scales += Format::kScales;
    }
    for (int r = 0; r < kRows; r++) {
        float* to = y.values + (long)r * y.stride;
        store(to, y.add ? add(load(to), total[r]) : total[r]);
    }
}

template <class Format>
void sweep_rows(const uint8_t* tile, const Activations& x, Range rows, Output y) {
    using Sweep = void (*)(const uint8_t*, const Activations&, int, const Output&);
    static constexpr Sweep kSweeps[] = {nullptr,           sweep<1, Format>, sweep<2, Format>,
                                        sweep<3, Format>, sweep<4, Format>, sweep<5, Format>,
                                        sweep<6, Format>, sweep<7, Format>, sweep<8, Format>};
    for (int done = 0; done < rows.count;) {
        const int left = rows.count - done;
        const int now = left < kRowsPerSweep ? left : kRowsPerSweep;
        kSweeps[now](tile, x, rows.first + done, y);
        y.values += (long)now * y.stride;
        done += now;
    }
}

void multiply(const Matrix& matrix, Range tiles, const Activations& x, Range rows, const Output& y) {
    const long bytes = tile_bytes(matrix.inputs, matrix.bits);
    const uint8_t* tile = matrix.tiles + tiles.first * bytes;
    for (int i = 0; i < tiles.count; i++, tile += bytes) {
        const Output here = {y.values + i * kTile, y.stride, y.add};
        if (matrix.bits == 4)
            sweep_rows<FourBit>(tile, x, rows, here);
        else
            sweep_rows<EightBit>(tile, x, rows, here);
    }
}

void unpack(const Matrix& matrix, int output, float* values) {
    const int blocks = matrix.inputs / kBlock, lane = output % kTile;
    const uint8_t* codes = matrix.tiles + (long)(output / kTile) * tile_bytes(matrix.inputs, matrix.bits);
    const bool four = matrix.bits == 4;
    const uint16_t* scales = (const uint16_t*)(codes + blocks * (four ? 256 : 512));
    for (int block = 0; block < blocks; block++) {
        const float scale = half_to_float(scales[lane]), least = four ? half_to_float(scales[16 + lane]) : 0.0f;
        for (int i = 0; i < kBlock; i++) {
            const int group = i / 4, byte = lane * 4 + i % 4;
            if (four) {
                const int code = codes[group / 2 * 64 + byte] >> (group % 2 * 4) & 15;
                values[block * kBlock + i] = (float)code * scale + least;
            } else {
                values[block * kBlock + i] = (float)(codes[group * 64 + byte] - 128) * scale;
            }
        }
        codes += four ? 256 : 512;
        scales += four ? 32 : 16;
    }
}

void quantize(const float* x, int count, const Activations& into, int row, int first_input) {
    int8_t* codes = into.codes + (long)row * into.stride + first_input;
    const int at = row * (into.stride / kBlock) + first_input / kBlock;
    for (int block = 0; block < count / kBlock; block++) {
        const Floats low = load(x + block * kBlock), high = load(x + block * kBlock + 16);
        const float most = highest(higher(magnitude(low), magnitude(high)));
        const float scale = most / 127.0f;
        const Floats inverse = splat(most > 0.0f ? 127.0f / most : 0.0f);
        const Ints first = to_ints(mul(low, inverse)), second = to_ints(mul(high, inverse));
        store_codes(codes + block * kBlock, first);
        store_codes(codes + block * kBlock + 16, second);
        const int32_t sum = total(first) + total(second);
        into.scales[at + block] = scale;
        into.sums[at + block] = scale * (float)sum;
        into.totals[at + block] = sum;
    }
}

}  // namespace
