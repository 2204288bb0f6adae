// A model as data: what `native/weights.py` fills in. Plain C, so that ctypes can mirror it.
#pragma once
#include <stdint.h>

constexpr int kBlock = 32;  // inputs that share a scale
constexpr int kTile = 16;   // outputs that lie side by side

// A matrix [outputs, inputs] in tiles of 16 outputs. A tile holds, for each block of 32 inputs, its codes: for
// each group of 4 inputs 64 bytes, output by output; with 4 bits, groups 2i and 2i + 1 in the low and high
// nibbles of 64 bytes. Behind all codes come, block by block, 16 half-precision scales, with 4 bits also 16
// minima: value = code * scale + minimum, or (code - 128) * scale with 8 bits.
struct Matrix {
    const uint8_t* tiles;  // null: absent
    int32_t outputs;
    int32_t inputs;
    int32_t bits;  // 4 or 8
    int32_t padding;
};

inline int tile_bytes(int inputs, int bits) {
    const int bytes = inputs / kBlock * (bits == 4 ? 256 + 64 : 512 + 32);
    return (bytes + 63) / 64 * 64;
}

// x down^T up^T: one `down` for all parts of a product, [parts * rank, inputs]; `up[part]` [outputs, rank].
struct LowRank {
    Matrix down;
    Matrix up[3];
};

// Up to three projections of the same input.
struct Product {
    Matrix parts[3];
    Matrix noisy[3];  // what noisy rows take instead; absent: the same
    const float* bias[3];
    LowRank denoiser;  // what noisy rows add
};

struct Layer {
    const float* attention_norm;
    const float* ffn_norm;
    const float* query_norm;  // null: none
    const float* key_norm;
    Product qkv, output, gate_up, down;
};

struct Model {
    int32_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, ffn_size, vocab_size;
    int32_t rope_size;  // leading components of a head that are rotated
    float norm_eps;
    int32_t mask_token;  // never chosen
    const Layer* layers;
    Matrix embedding, head;
    const float* norm;
    const float* mask_embedding;        // null: masked rows have an ordinary embedding
    const double* inverse_frequencies;  // [rope_size / 2]
    Matrix draft_down, draft_up;        // absent: no draft head
};
