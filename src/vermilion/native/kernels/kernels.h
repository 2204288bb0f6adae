// What differs between instruction sets: one table of functions each, all bit for bit alike.
#pragma once
#include <stdint.h>

#include "model.h"

// Rows of 8-bit codes with one scale per block of 32 inputs: value = code * scale.
struct Activations {
    int8_t* codes;
    float* scales;
    float* sums;      // scale * sum of the block's codes
    int32_t* totals;  // sum of the block's codes
    int inputs;
    int stride;  // inputs from one row to the next

    Activations part(int first_input, int num_inputs) const {
        return {codes + first_input, scales + first_input / kBlock, sums + first_input / kBlock,
                totals + first_input / kBlock, num_inputs, stride};
    }
};

struct Range {
    int first, count;
};

// Tiles of a matrix, and the weights that the same thread reads after them: null where it does not know.
struct Tiles {
    int first, count;
    const uint8_t* next = nullptr;
};

struct Output {
    float* values;  // of the first row and the first tile
    int stride;     // from one row to the next
    bool add;       // to what is there
};

constexpr int kLine = 64;  // bytes that come into a cache together

inline Range all_blocks(const Matrix& matrix) { return {0, matrix.inputs / kBlock}; }

constexpr int kMaxQueries = 8;

// Up to eight query heads that share a key head, of rows of one request.
struct Attention {
    int num_queries, head_dim;
    float scale;
    bool fetched;           // whether keys and values are to be brought into the cache, page by page
    bool aligned;           // whether 16 logical slots in a row lie in one tile of the pool
    const uint16_t* keys;   // this layer and key head: [tile of 16 slots][head_dim][16]
    const uint16_t* values;  // [slot][head_dim]
    const int32_t* slots;    // pool slot of each logical slot
    float* scores;           // scratch, [num_queries][score_stride]
    int score_stride;
    uint16_t* gathered;  // scratch, [head_dim][16]
    const float* queries[kMaxQueries];
    float* outputs[kMaxQueries];
    int first;                // a multiple of 16: no query sees anything before it
    int hidden[kMaxQueries];  // how many it does not see of the first slots of what follows
    int prefix[kMaxQueries];  // it sees the logical slots [0, prefix) and these pool slots, in this order
    int num_tail[kMaxQueries];
    const int32_t* tail[kMaxQueries];
};

struct Summary {
    float lanes[16];  // the highest of every sixteenth value from each of the first sixteen on
    float highest;
    int32_t at;         // the lowest index that has it
    double normalizer;  // sum of exp(sharpness * (x - highest))
};

struct Kernels {
    const char* name;
    // RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight (null: 1); the mean is over `num_real`, the rest is zero.
    void (*normalize)(const float* x, const float* weight, int size, int num_real, float eps, float* y);
    // Codes of x[0, count) into `row`, from `first_input` on; both multiples of 32.
    void (*quantize)(const float* x, int count, const Activations& into, int row, int first_input);
    // y[row, tile] = x[row] . matrix[tile] for rows and tiles of these ranges.
    void (*multiply)(const Matrix& matrix, Tiles tiles, const Activations& x, Range rows, const Output& y);
    // The weights of an output for these blocks of inputs.
    void (*unpack)(const Matrix& matrix, int output, Range blocks, float* values);
    // Rotate-half RoPE over the first 2 * half components.
    void (*rotate)(float* head, const float* cos, const float* sin, int half);
    void (*add)(float* y, const float* x, int count);
    void (*add_scaled)(float* y, const float* x, float scale, int count);
    void (*gate)(int activation, const float* gate, const float* up, int count, float* y);  // activation(gate) * up
    void (*cap)(float* x, int count, float most);  // most * tanh(x / most)
    void (*to_halves)(const float* x, int count, uint16_t* halves);
    void (*attend)(const Attention& attention);
    Summary (*summarize)(const float* logits, int count, float sharpness);
    double (*entropy)(const float* logits, int count, float shift);  // -sum p log p, log p = x - shift
    // Lists the indices with x >= limit in order; at most `room`, returns how many there are.
    int (*list_not_below)(const float* x, int count, float limit, int32_t* found, int room);
    float (*dot)(const float* a, const float* b, int count);
};

const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_neon();

// The fastest set that this processor has, or the one of this name; null if it has none of that name.
const Kernels* choose_kernels(const char* name);
