// From a checkpoint's own blocks, or from floats, to the tiles of model.h.
#include <math.h>
#include <string.h>

#include "halves.h"
#include "interface.h"

namespace {

constexpr int kFloat32 = 0, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8;

// 32 weights of one output: value = code * scale + minimum (4 bits), (code - 128) * scale (8 bits).
struct Block {
    uint8_t codes[kBlock];
    uint16_t scale, minimum;
};

int block_bytes(int kind) {
    switch (kind) {
        case kFloat32: return kBlock * 4;
        case kQ4_0: return 18;
        case kQ4_1: return 20;
        default: return 34;
    }
}

void split_nibbles(const uint8_t* from, uint8_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = from[i] & 15;
        codes[16 + i] = from[i] >> 4;
    }
}

// To the nearest, ties to even, by the rounding of a large sum: rintf is a call where no instruction is assumed.
uint8_t clamped(float code, float low, float high) {
    constexpr float kLarge = 12582912.0f;  // 1.5 x 2^23
    const float inside = code < low ? low : code > high ? high : code;
    return (uint8_t)((inside + kLarge) - kLarge);
}

Block quantized(const float* x, int bits) {
    Block block = {};
    float low = x[0], high = x[0];
    for (int i = 1; i < kBlock; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (bits == 4) {
        block.scale = float_to_half((high - low) / 15.0f);
        block.minimum = float_to_half(low);
    } else {
        block.scale = float_to_half((-low > high ? -low : high) / 127.0f);
    }
    // By the rounded scale and minimum, so that the codes make up for what rounding them cost.
    const float scale = half_to_float(block.scale), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int i = 0; i < kBlock; i++) {
        if (bits == 4)
            block.codes[i] = clamped((x[i] - half_to_float(block.minimum)) * inverse, 0, 15);
        else
            block.codes[i] = clamped(x[i] * inverse + 128.0f, 1, 255);
    }
    return block;
}

Block read_block(const uint8_t* from, int kind, int bits) {
    Block block = {};
    if (kind == kFloat32) {
        float values[kBlock];
        memcpy(values, from, sizeof values);
        return quantized(values, bits);
    }
    memcpy(&block.scale, from, 2);
    if (kind == kQ4_0) {
        split_nibbles(from + 2, block.codes);
        block.minimum = float_to_half(-8.0f * half_to_float(block.scale));
    } else if (kind == kQ4_1) {
        memcpy(&block.minimum, from + 2, 2);
        split_nibbles(from + 4, block.codes);
    } else {
        for (int i = 0; i < kBlock; i++) block.codes[i] = (uint8_t)(from[2 + i] ^ 0x80);
    }
    return block;
}

void write_block(const Block& block, int lane, int bits, uint8_t* codes, uint16_t* scales) {
    for (int i = 0; i < kBlock; i++) {
        const int group = i / 4, byte = lane * 4 + i % 4;
        if (bits == 4)
            codes[group / 2 * 64 + byte] |= (uint8_t)(block.codes[i] << (group % 2 * 4));
        else
            codes[group * 64 + byte] = block.codes[i];
    }
    scales[lane] = block.scale;
    if (bits == 4) scales[16 + lane] = block.minimum;
}

}  // namespace

int64_t vermilion_packed_size(int64_t outputs, int32_t inputs, int32_t bits) {
    return (outputs + kTile - 1) / kTile * tile_bytes(inputs, bits);
}

int vermilion_pack(const void* source, int32_t kind, int64_t outputs, int32_t inputs, int32_t bits, uint8_t* tiles) {
    const bool fits = kind == kFloat32 || (bits == 8 ? kind == kQ8_0 : kind == kQ4_0 || kind == kQ4_1);
    if (!fits || inputs % kBlock) return -1;
    const int blocks = inputs / kBlock, code_bytes = bits == 4 ? 256 : 512, num_scales = bits == 4 ? 32 : 16;
    memset(tiles, 0, vermilion_packed_size(outputs, inputs, bits));
    const uint8_t* from = (const uint8_t*)source;
    for (int64_t output = 0; output < outputs; output++) {
        uint8_t* tile = tiles + output / kTile * tile_bytes(inputs, bits);
        uint16_t* scales = (uint16_t*)(tile + blocks * code_bytes);
        for (int block = 0; block < blocks; block++, from += block_bytes(kind))
            write_block(read_block(from, kind, bits), (int)(output % kTile), bits, tile + block * code_bytes,
                        scales + block * num_scales);
    }
    return 0;
}
