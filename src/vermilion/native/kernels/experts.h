// The mixtures of experts of a pass. Rows are grouped by expert, so that the weights of each expert that some row
// chose are read once and no others are; a row's sum runs over its experts by their numbers.
#pragma once
#include <vector>

#include "code_buffer.h"
#include "session.h"

class ExpertLayers {
   public:
    ExpertLayers(const Session& session, int num_rows, Team& team);

    // Called by all members: adds to `made` what the layer's experts make of `codes`; `routed` [rows, hidden_size] is
    // what the router sees.
    void run(const Experts& experts, const float* routed, const Activations& codes, float* made);

    // Chooses for one row: `chosen` [num_active] rises, `weights` belong to it.
    static void choose(const Experts& experts, const float* scores, int32_t* chosen, float* weights);

   private:
    // One row at one of its experts; those of one expert lie side by side.
    struct Visit {
        int row, place;  // the place among the row's experts
    };
    struct Group {
        int expert;
        Range visits;
    };

    void route(const Experts& experts, const float* routed, int row);
    void group(const Experts& experts);
    void gather(const Activations& codes, int visit);
    void gate_up(const Experts& experts);
    void down(const Experts& experts);
    void sum(const Experts& experts, int row, float* made);

    const Session& session_;
    const Kernels& kernels_;
    Team& team_;
    const int num_rows_, hidden_size_;
    std::vector<int32_t> chosen_;  // [rows, num_active]
    std::vector<float> weights_;
    std::vector<Visit> visits_;
    std::vector<int32_t> visit_of_;  // of [row, place]
    std::vector<Group> groups_;
    CodeBuffer inputs_, gated_;  // [visits, hidden_size], [visits, ffn_size]
    std::vector<float> made_;    // [visits, hidden_size]
};
