// What a pass of the base leaves for the drafter: keys and values of its layers, made of the base's states.
#include <algorithm>

#include "forward.h"
#include "sharing.h"

namespace {

constexpr float kPlainEps = 1.1920929e-7f;  // what PyTorch's rms_norm adds in single precision

}  // namespace

// Keeps clean rows' inputs of a layer that the drafter reads, normalised.
void Forward::tap_for_drafter(int layer) {
    if (injected_.empty()) return;
    const int size = model_.hidden_size;
    for (int i = 0; i < model_.drafter.num_taps; i++) {
        if (model_.drafter.taps[i] != layer) continue;
        team_.share(rows_.num_clean, [&](int row) {
            float* y = scratch(size);
            kernels_.normalize(hidden.data() + (size_t)row * size, nullptr, size, model_.hidden_norm_size, kPlainEps,
                               y);
            kernels_.quantize(y, size, tapped_codes_.view(), row, i * size);
        });
    }
}

// Clean rows leave keys and values in the drafter's layers, made of the base's states.
void Forward::inject() {
    const Drafter& d = model_.drafter;
    const int size = model_.hidden_size, num_tiles = size / kTile, step = tiles_per_share(num_tiles, team_.size());
    const Activations into = normed_codes_.view();
    team_.share((num_tiles + step - 1) / step, [&](int index) {
        const Tiles tiles = {index * step, std::min(step, num_tiles - index * step)};
        kernels_.multiply(d.inject, tiles, tapped_codes_.view(), {0, rows_.num_clean},
                          {injected_.data() + tiles.first * kTile, size, false});
    });
    team_.share(rows_.num_clean, [&](int row) {
        float* y = normed_.data() + (size_t)row * size;
        kernels_.normalize(injected_.data() + (size_t)row * size, d.inject_norm, size, model_.hidden_norm_size,
                           model_.norm_eps, y);
        kernels_.quantize(y, size, into, row, 0);
    });
    for (int index = 0; index < d.num_layers; index++)
        team_.share(2 * d.layers[index].num_kv_heads, [&](int head) { inject_head(index, head); });
}

void Forward::inject_head(int index, int head) {
    const Layer& l = model_.drafter.layers[index];
    const int size = l.head_dim, part = head < l.num_kv_heads ? 1 : 2;
    const Tiles tiles = {head % l.num_kv_heads * (size / kTile), size / kTile};
    float* values = scratch((size_t)rows_.num_clean * size);
    kernels_.multiply(l.qkv.parts[part], tiles, normed_codes_.view(), {0, rows_.num_clean}, {values, size, false});
    for (int row = 0; row < rows_.num_clean; row++) {
        float* x = values + (size_t)row * size;
        if (l.qkv.bias[part]) kernels_.add(x, l.qkv.bias[part] + tiles.first * kTile, size);
        finish_head(l, model_.num_layers + index, model_.num_heads + head, row, x);
    }
}
