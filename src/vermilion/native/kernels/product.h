// Quantised products: codes of weights with codes of activations, exact sums, one order of float operations.
#pragma once
#include <string.h>

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

// Weights of a later sweep, which come into the cache beside this one's products.
struct Ahead {
    const uint8_t* from;
    int lines;  // for each block
};

// kTiles tiles times kRows rows: each weight is read once for all rows, each activation once for all tiles.
template <int kTiles, int kRows, class Format>
void sweep(const uint8_t* tile, long tile_stride, const Activations& x, int row, const Output& y, Ahead ahead) {
    const int blocks = x.inputs / kBlock, scale_stride = x.stride / kBlock;
    const uint8_t* scales = tile + blocks * Format::kCodes;
    Floats total[kTiles][kRows];
    for (auto& of_tile : total)
        for (Floats& one : of_tile) one = zero();
    for (int block = 0; block < blocks; block++) {
        typename Format::Sum sum[kTiles][kRows];
        const int at = row * scale_stride + block;
        for (int i = 0; i < ahead.lines; i++, ahead.from += kLine) __builtin_prefetch(ahead.from);
        for (int t = 0; t < kTiles; t++)
            for (int r = 0; r < kRows; r++) sum[t][r] = Format::start(x.totals[at + r * scale_stride]);
        const int8_t* codes = x.codes + (long)row * x.stride + block * kBlock;
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++) {
            Bytes first[kTiles], second[kTiles];
            for (int t = 0; t < kTiles; t++) Format::pair(tile + t * tile_stride, pair, first[t], second[t]);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) {
                const int8_t* eight = codes + (long)r * x.stride + pair * 8;
                for (int t = 0; t < kTiles; t++)
                    sum[t][r] = Format::dot(Format::dot(sum[t][r], first[t], eight), second[t], eight + 4);
            }
        }
        for (int t = 0; t < kTiles; t++) {
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) {
                const int k = at + r * scale_stride;
                total[t][r] =
                    scaled<Format>(sum[t][r], scales + t * tile_stride, x.scales[k], x.sums[k], total[t][r]);
            }
        }
        tile += Format::kCodes;
        scales += Format::kScales;
    }
    for (int t = 0; t < kTiles; t++) {
        for (int r = 0; r < kRows; r++) {
            float* to = y.values + (long)r * y.stride + t * kTile;
            store(to, y.add ? add(load(to), total[t][r]) : total[t][r]);
        }
    }
}

// `next`: as many tiles, which follow.
template <int kTiles, class Format>
void sweep_rows(const uint8_t* tile, long tile_stride, const Activations& x, Range rows, Output y, const uint8_t* next) {
    using Sweep = void (*)(const uint8_t*, long, const Activations&, int, const Output&, Ahead);
    constexpr int kMost = kTiles == 1 ? kRowsPerSweep : kRowsPerPairSweep;
    static constexpr Sweep kSweeps[] = {
        nullptr,
        sweep<kTiles, 1, Format>,
        sweep<kTiles, 2, Format>,
        sweep<kTiles, 3, Format>,
        sweep<kTiles, 4, Format>,
        sweep<kTiles, kMost < 5 ? kMost : 5, Format>,
        sweep<kTiles, kMost < 6 ? kMost : 6, Format>,
        sweep<kTiles, kMost < 7 ? kMost : 7, Format>,
        sweep<kTiles, kMost < 8 ? kMost : 8, Format>,
    };
    const int num_sweeps = (rows.count + kMost - 1) / kMost, blocks = x.inputs / kBlock;
    const int lines = (int)(kTiles * tile_stride / kLine), steps = num_sweeps * blocks;
    Ahead ahead = {next, next ? (lines + steps - 1) / steps : 0};
    for (int left = num_sweeps, row = rows.first, end = rows.first + rows.count; left > 0; left--) {
        const int now = (end - row + left - 1) / left;
        kSweeps[now](tile, tile_stride, x, row, y, ahead);
        ahead.from += (long)ahead.lines * blocks * kLine;
        if (ahead.lines && ahead.from >= next + kTiles * tile_stride) ahead.lines = 0;
        y.values += (long)now * y.stride;
        row += now;
    }
}

template <class Format>
void multiply_as(const Matrix& matrix, Tiles tiles, const Activations& x, Range rows, Output y) {
    const long bytes = tile_bytes(matrix.inputs, matrix.bits);
    const uint8_t *tile = tile_of(matrix, tiles.first), *end = tile + tiles.count * bytes;
    // Two tiles at once halve the loads of activations; a single row has none to spare.
    if constexpr (kRowsPerPairSweep > 0) {
        for (; rows.count > 1 && end - tile > bytes; tile += 2 * bytes, y.values += 2 * kTile)
            sweep_rows<2, Format>(tile, bytes, x, rows, y, end - tile > 2 * bytes ? tile + 2 * bytes : tiles.next);
    }
    for (; tile < end; tile += bytes, y.values += kTile)
        sweep_rows<1, Format>(tile, bytes, x, rows, y, end - tile > bytes ? tile + bytes : tiles.next);
}

void multiply(const Matrix& matrix, Tiles tiles, const Activations& x, Range rows, const Output& y) {
    if (matrix.bits == 4)
        multiply_as<FourBit>(matrix, tiles, x, rows, y);
    else
        multiply_as<EightBit>(matrix, tiles, x, rows, y);
}

void unpack(const Matrix& matrix, int output, Range wanted, float* values) {
    const int blocks = matrix.inputs / kBlock, lane = output % kTile;
    const uint8_t* codes = tile_of(matrix, output / kTile);
    const bool four = matrix.bits == 4;
    const uint16_t* scales = (const uint16_t*)(codes + blocks * (four ? 256 : 512)) + wanted.first * (four ? 32 : 16);
    codes += wanted.first * (four ? 256 : 512) + lane * 4;
    for (int block = 0; block < wanted.count; block++, values += kBlock) {
        const float scale = half_to_float(scales[lane]), least = four ? half_to_float(scales[16 + lane]) : 0.0f;
        uint8_t own[kBlock];  // the output's codes, side by side
        for (int group = 0; group < 8; group++) {
            uint32_t word;
            memcpy(&word, codes + (four ? group / 2 : group) * 64, 4);
            if (four) word = word >> (group % 2 * 4) & 0x0f0f0f0f;
            memcpy(own + group * 4, &word, 4);
        }
        if (four)
            for (int i = 0; i < kBlock; i++) values[i] = (float)own[i] * scale + least;
        else
            for (int i = 0; i < kBlock; i++) values[i] = (float)(own[i] - 128) * scale;
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
        const int32_t sum = total(add(first, second));
        into.scales[at + block] = scale;
        into.sums[at + block] = scale * (float)sum;
        into.totals[at + block] = sum;
    }
}

}  // namespace
