// Hidden states of a pass: embedding, layers, the reads' last norm. Every member of the team runs `run`.
#pragma once
#include <vector>

#include "rows.h"
#include "session.h"

// Activations that own their memory.
class CodeBuffer {
   public:
    CodeBuffer() = default;
    CodeBuffer(int rows, int inputs)
        : codes_((size_t)rows * inputs), numbers_((size_t)rows * inputs / kBlock * 2),
          totals_((size_t)rows * inputs / kBlock), rows_(rows), inputs_(inputs) {}
    Activations view() {
        float* sums = numbers_.data() + (size_t)rows_ * inputs_ / kBlock;
        return {codes_.data(), numbers_.data(), sums, totals_.data(), inputs_, inputs_};
    }

   private:
    std::vector<int8_t> codes_;
    std::vector<float> numbers_;
    std::vector<int32_t> totals_;
    int rows_ = 0, inputs_ = 0;
};

class Forward {
   public:
    Forward(Session& session, const Rows& rows, Team& team);

    // Called by all members; hidden states of all rows before the last norm are then in `hidden`.
    void run();

    std::vector<float> hidden;  // [rows, hidden_size]

   private:
    // Rows that add a low-rank product, by the products of a layer.
    struct Addition {
        int adapter;  // -1: the denoiser's own
        Range rows;
        CodeBuffer low;
    };
    // Rows of one request that attend together, and which query heads.
    struct AttentionUnit {
        Range rows;
        int key_head, first_head, num_heads;
    };
    enum Kind { kQkv, kOutput, kGateUp, kDown };

    void plan_additions();
    void plan_attention();
    void embed(int row);
    void normalize(const float* weight);
    void lower(int layer, Kind kind, Activations x);
    void project(int layer, Kind kind, int part, Range tiles, const Activations& x, const Output& y);
    void project_heads(int layer);
    void finish_head(int layer, int head, float* values);
    void attend(int layer);
    void attend_unit(int layer, const AttentionUnit& unit);
    void add_product(int layer, Kind kind, Activations x);
    void gate_up(int layer);
    const LowRank& low_rank(int layer, Kind kind, const Addition& addition) const;
    const Product& product(int layer, Kind kind) const;

    Session& session_;
    const Model& model_;
    const Kernels& kernels_;
    const Rows& rows_;
    Team& team_;
    std::vector<float> cos_, sin_;           // [rows, rope_size / 2]
    std::vector<float> queries_, attended_;  // [rows, heads * head_dim]
    CodeBuffer normed_, attended_codes_, gated_;
    std::vector<Addition> additions_;
    std::vector<AttentionUnit> units_;
};
