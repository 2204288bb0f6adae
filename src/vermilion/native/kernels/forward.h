// Hidden states of a pass: embedding and layers. Every member of the team runs `run`.
#pragma once
#include <map>
#include <vector>

#include "code_buffer.h"
#include "experts.h"
#include "rows.h"
#include "session.h"

class Forward {
   public:
    // `tapped`: where the pass's taps go.
    Forward(Session& session, const Rows& rows, const Pass& pass, float* tapped, Team& team);

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
    struct Share {
        int part, tile;
    };
    enum Kind { kQkv, kOutput, kGateUp, kDown };

    void plan_additions();
    void plan_attention(int num_kv_heads);
    void embed(int row);
    void tap(int layer);
    void tap_for_drafter(int layer);
    void inject();
    void inject_head(int index, int head);
    void turn(int row);
    void normalize(const float* weight, const float* shift);
    void condition();
    float* outlet() { return branch_.empty() ? hidden.data() : branch_.data(); }
    void join(const float* norm, const float* gate);
    void add_mixed(const Layer& layer);
    void scale(const Layer& layer);
    void lower(int layer, Kind kind, Activations x);
    int num_shares(int layer, Kind kind) const;
    Share share_of(int layer, Kind kind, int index) const;
    const uint8_t* ahead_of(int layer, Kind kind, int next) const;
    void project(int layer, Kind kind, int part, Tiles tiles, const Activations& x, const Output& y);
    void project_heads(int layer);
    void finish_jointly(int layer, int row);
    float query_scale(int position) const;
    void finish_head(const Layer& l, int in_pool, int head, int row, float* x);
    void attend(int layer);
    void attend_unit(int layer, const AttentionUnit& unit, bool fetched);
    void add_product(int layer, Kind kind, Activations x);
    void feed_forward(int layer);
    void gate_up(int layer);
    const LowRank& low_rank(int layer, Kind kind, const Addition& addition) const;
    const Product& product(int layer, Kind kind) const;

    Session& session_;
    const Model& model_;
    const Stack stack_;
    const Kernels& kernels_;
    const Rows& rows_;
    const Pass& pass_;
    float* const tapped_;
    Team& team_;
    std::vector<std::vector<float>> cos_, sin_;  // of each rotation [rows, size / 2]
    std::vector<float> normed_;                  // [rows, hidden_size]
    std::vector<float> branch_;  // what a half of a layer makes, where it is changed before it is added up; then zeros
    std::vector<float> mixed_;   // the same of the experts
    std::vector<float> gates_;   // [rows, heads * head_dim], of what the heads have seen
    std::vector<float> queries_, attended_;      // [rows, heads * head_dim], as wide as the widest layer's
    std::vector<float> heads_;                   // [rows, all heads], where a norm goes over several
    CodeBuffer tapped_codes_;                    // clean rows at the drafter's taps
    std::vector<float> injected_;                // [clean rows, hidden_size]
    CodeBuffer normed_codes_, attended_codes_, gated_;
    std::vector<Addition> additions_;
    std::map<int, std::vector<AttentionUnit>> units_;  // by the number of key heads
    ExpertLayers experts_;
};
