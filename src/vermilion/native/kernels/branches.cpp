// Halves of a layer whose results are normed or weighed before they join the hidden states: Gemma's sandwich of
// norms, the gates of a diffusion transformer.
#include <algorithm>

#include "forward.h"

// Adds what a half of the layer made.
void Forward::join(const float* norm, const float* gate) {
    if (branch_.empty()) return;
    const int size = model_.hidden_size;
    team_.share(rows_.size(), [&](int row) {
        float* made = branch_.data() + (size_t)row * size;
        if (norm) session_.normalize(made, norm, nullptr, made);
        for (int i = 0; i < size && gate; i++) made[i] *= gate[i];
        kernels_.add(hidden.data() + (size_t)row * size, made, size);
        std::fill_n(made, size, 0.0f);
    });
}

// What the experts made beside a dense feed-forward, each normed for itself.
void Forward::add_mixed(const Layer& layer) {
    const int size = model_.hidden_size;
    team_.share(rows_.size(), [&](int row) {
        float *dense = branch_.data() + (size_t)row * size, *mixed = mixed_.data() + (size_t)row * size;
        session_.normalize(dense, layer.dense_out_norm, nullptr, dense);
        session_.normalize(mixed, layer.expert_out_norm, nullptr, mixed);
        kernels_.add(dense, mixed, size);
        std::fill_n(mixed, size, 0.0f);
    });
}

void Forward::scale(const Layer& layer) {
    const int size = model_.hidden_size;
    team_.share(rows_.size(), [&](int row) {
        const float factor = rows_.rows[row].noisy ? layer.noisy_scale : layer.scale;
        float* x = hidden.data() + (size_t)row * size;
        for (int i = 0; i < size; i++) x[i] *= factor;
    });
}
