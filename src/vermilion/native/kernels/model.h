// A model as data: what `native/model_table.py` fills in. Plain C, so that ctypes can mirror it.
#pragma once
#include <stdint.h>

#include <algorithm>

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

// Null where there is no matrix.
inline const uint8_t* tile_of(const Matrix& matrix, int tile) {
    return matrix.tiles ? matrix.tiles + (long)tile * tile_bytes(matrix.inputs, matrix.bits) : nullptr;
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

// Angles of one rotary embedding: of a head's first `size` components, i and i + size / 2 are a pair.
struct Rotation {
    const double* inverse_frequencies;  // [size / 2]
    int32_t size;
    float factor;  // of cosines and sines: YaRN's attention factor
};

// A mixture of experts: each row goes through `num_active` of them, which its router chooses.
struct Experts {
    int32_t num_experts;  // 0: none
    int32_t num_active, num_groups, num_active_groups;
    int32_t sigmoid;     // else softmax
    int32_t normalized;  // whether the weights of the chosen sum to `scale`
    float scale;
    int32_t ffn_size;
    const float* router;       // [num_experts, hidden_size]
    const float* router_bias;  // [num_experts] chooses and does not weigh; null: none
    const Matrix *gate, *up, *down;  // [num_experts] each
    const float* expert_scale;       // [num_experts] weighs the chosen once more; null: 1
    int32_t scaled_router;           // whether rows are normalised on their way to the router
};

// Sizes of what is stored are multiples of 32, of a head 16, filled up with zeros; `_norm_size` is the true one.
struct Layer {
    const float* attention_norm;
    const float* ffn_norm;
    const float* query_norm;  // null: none
    const float* key_norm;
    // Null where a layer does without: added behind the norms; weights of what leaves attention and feed-forward,
    // entry by entry; norms of what leaves them, of what leaves the dense feed-forward and the experts before
    // they are added up, and of what enters the experts, which otherwise see what the dense one sees.
    const float *attention_shift, *ffn_shift, *attention_gate, *ffn_gate;
    const float *attention_out_norm, *ffn_out_norm, *dense_out_norm, *expert_out_norm, *expert_norm;
    Product qkv;  // without a third part, keys before norm and rotation are the values
    Matrix gate;  // of the layer's input: its sigmoid weighs what the heads have seen; absent: none
    Product output, gate_up, down;  // without a second part, the feed-forward has no gate
    Experts experts;
    int32_t num_kv_heads, head_dim, head_norm_size;
    int32_t ffn_size;  // of gate_up and down; 0: experts alone
    int32_t window;      // keys that a row sees up to its own; 0: all
    int32_t rotation;    // its index in the model's; -1: none
    int32_t joint_norm;  // whether query_norm and key_norm go over all heads of a row together
    int32_t late_norm;   // whether they follow rotation; not together with joint_norm
    int32_t value_norm;  // whether values are normalised, without a weight
    float attention_scale;
    float scale, noisy_scale;  // of what leaves a layer with out norms: of clean rows, of noisy ones
};

// What noisy rows hear of the last pass over them: a gated feed-forward of the mean embedding that it predicted.
struct SelfConditioning {
    const float* norm;  // null: none
    Matrix gate, up, down;
};

// A shallow drafter: layers of the base's sizes that read its hidden states (`models/drafter.py`).
struct Drafter {
    int32_t num_layers, num_taps;  // 0: none
    int32_t vocab_size, padding;
    const int32_t* taps;  // layers of the base whose inputs are injected
    const Layer* layers;
    Matrix inject, head;        // the head's rows are those of `vocabulary`
    const int32_t* vocabulary;  // [vocab_size] token ids
    const float* inject_norm;
    const float* norm;
    const float* mask_embedding;
    Matrix down, up;  // of the head that reads the token before
};

enum Activation : int32_t { kSilu, kGelu, kGeluTanh, kLogistic };

struct Model {
    int32_t num_layers, hidden_size, hidden_norm_size, num_heads, vocab_size, num_rotations;
    float norm_eps;
    int32_t mask_token;  // never chosen
    int32_t activation;  // of the gates: Activation
    int32_t centred;     // whether norms of hidden states take the mean off: LayerNorm, else RMSNorm
    float embedding_scale;
    float logit_softcap;   // 0: none
    int32_t query_period;  // queries at position p: times 1 + query_growth ln(1 + floor(p / query_period)); 0: never
    double query_growth;
    const Layer* layers;
    const Rotation* rotations;
    Matrix embedding, head;
    const float* norm;
    const float *norm_shift, *head_bias, *embedding_norm;  // null: none
    const float* mask_embedding;          // null: masked rows have an ordinary embedding
    Matrix draft_down, draft_up;          // absent: no draft head
    Drafter drafter;
    SelfConditioning conditioning;
};

constexpr float kUnsaid = -1e30f;  // logit of a token that a head has no row for: as good as impossible

// What the rows of a head stand for.
struct Vocabulary {
    const int32_t* ids;  // of the tokens, ascending; null: each row's own number
    int size;

    int32_t id_of(int row) const { return ids ? ids[row] : row; }
    // The row of a token; -1 where it has none.
    int row_of(int32_t token) const {
        if (!ids) return token;
        const int32_t* at = std::lower_bound(ids, ids + size, token);
        return at < ids + size && *at == token ? (int)(at - ids) : -1;
    }
};

// What a pass runs through: the base's layers, or the drafter's.
struct Stack {
    const Layer* layers;
    int num_layers;
    int first_in_pool;  // layer of the pool that takes the first one's keys and values
    const float *norm, *norm_shift, *mask_embedding, *head_bias;
    Matrix head, draft_down, draft_up;
    Vocabulary vocabulary;
};
