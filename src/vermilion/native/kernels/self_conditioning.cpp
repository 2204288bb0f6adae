// Self-conditioning (arXiv 2208.04202): noisy rows begin as their embedding and what the last pass over them
// predicted, normed together.
#include <algorithm>

#include "forward.h"
#include "sharing.h"

void Forward::condition() {
    const SelfConditioning& c = model_.conditioning;
    const int size = model_.hidden_size, num_noisy = rows_.size() - rows_.num_clean;
    const Range noisy = {rows_.num_clean, num_noisy};
    if (!num_noisy) return;
    if (pass_.signals) {
        team_.share(rows_.size(), [&](int listed) {
            const int row = rows_.place[listed];
            if (row < noisy.first) return;
            float* y = normed_.data() + (size_t)row * size;
            session_.normalize(pass_.signals + (size_t)listed * size, c.norm, nullptr, y);
            kernels_.quantize(y, size, normed_codes_.view(), row, 0);
        });
        const Activations gated = gated_.view(c.gate.outputs);
        team_.share(c.gate.outputs / kBlock, [&](int block) {
            float* gate = scratch((size_t)num_noisy * kBlock * 2);
            float* up = gate + (size_t)num_noisy * kBlock;
            kernels_.multiply(c.gate, {block * 2, 2}, normed_codes_.view(), noisy, {gate, kBlock, false});
            kernels_.multiply(c.up, {block * 2, 2}, normed_codes_.view(), noisy, {up, kBlock, false});
            kernels_.gate(model_.activation, gate, up, num_noisy * kBlock, gate);
            for (int i = 0; i < num_noisy; i++)
                kernels_.quantize(gate + (size_t)i * kBlock, kBlock, gated, noisy.first + i, block * kBlock);
        });
        const int num_tiles = size / kTile, step = tiles_per_share(num_tiles, team_.size());
        team_.share((num_tiles + step - 1) / step, [&](int index) {
            const Tiles tiles = {index * step, std::min(step, num_tiles - index * step)};
            float* to = hidden.data() + (size_t)noisy.first * size + tiles.first * kTile;
            kernels_.multiply(c.down, tiles, gated, noisy, {to, size, true});
        });
    }
    team_.share(num_noisy, [&](int i) {
        float* x = hidden.data() + (size_t)(noisy.first + i) * size;
        session_.normalize(x, nullptr, nullptr, x);
    });
}
