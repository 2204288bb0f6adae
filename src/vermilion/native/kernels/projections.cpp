// The products of a layer: which rows go through which weights, who computes which outputs, and in which order the
// weights come from memory.
#include <algorithm>

#include "forward.h"
#include "sharing.h"

namespace {

int rank_of(const LowRank& low) {
    int parts = 0;
    for (const Matrix& up : low.up) parts = up.tiles ? std::max(parts, up.inputs) : parts;
    return parts;
}

}  // namespace

const Product& Forward::product(int layer, Kind kind) const {
    const Layer& l = stack_.layers[layer];
    return kind == kQkv ? l.qkv : kind == kOutput ? l.output : kind == kGateUp ? l.gate_up : l.down;
}

const LowRank& Forward::low_rank(int layer, Kind kind, const Addition& addition) const {
    if (addition.adapter < 0) return product(layer, kind).denoiser;
    return session_.adapters.at(addition.adapter)[(size_t)layer * 4 + kind];
}

// Into how many shares the outputs of a product are cut: a head, 32 of the feed-forward, or a few tiles each.
int Forward::num_shares(int layer, Kind kind) const {
    const Layer& l = stack_.layers[layer];
    if (kind == kQkv) return model_.num_heads + 2 * l.num_kv_heads;
    if (kind == kGateUp) return l.ffn_size / kBlock;
    const int num_tiles = model_.hidden_size / kTile, step = tiles_per_share(num_tiles, team_.size());
    return (num_tiles + step - 1) / step;
}

// The part and the first tile that a share of a product reads.
Forward::Share Forward::share_of(int layer, Kind kind, int index) const {
    const Layer& l = stack_.layers[layer];
    if (kind == kGateUp) return {0, index * 2};
    if (kind != kQkv) return {0, index * tiles_per_share(model_.hidden_size / kTile, team_.size())};
    const int of_head = l.head_dim / kTile;
    if (index < model_.num_heads) return {0, index * of_head};
    const int head = (index - model_.num_heads) % l.num_kv_heads;
    const bool value = index >= model_.num_heads + l.num_kv_heads && l.qkv.parts[2].tiles;
    return {value ? 2 : 1, head * of_head};
}

// The weights that this member reads behind those of a share: its next share's, `next`, or the first ones of its
// part of the next product.
const uint8_t* Forward::ahead_of(int layer, Kind kind, int next) const {
    if (next < 0) {
        layer += kind == kDown;
        kind = kind == kDown ? kQkv : (Kind)(kind + 1);
        if (layer == stack_.num_layers) return nullptr;
        next = team_.first_of(num_shares(layer, kind));
    }
    const Share share = share_of(layer, kind, next);
    return tile_of(product(layer, kind).parts[share.part], share.tile);
}

// The first half of what adapters add: their rows' inputs times `down`, as codes.
void Forward::lower(int layer, Kind kind, Activations x) {
    if (additions_.empty()) return;
    int total = 0;
    for (const Addition& addition : additions_) total += low_rank(layer, kind, addition).down.outputs / kBlock;
    team_.share(total, [&](int index) {
        for (Addition& addition : additions_) {
            const Matrix& down = low_rank(layer, kind, addition).down;
            if (index >= down.outputs / kBlock) {
                index -= down.outputs / kBlock;
                continue;
            }
            float* y = scratch((size_t)addition.rows.count * kBlock);
            kernels_.multiply(down, {index * 2, 2}, x, addition.rows, {y, kBlock, false});
            for (int row = 0; row < addition.rows.count; row++)
                kernels_.quantize(y + (size_t)row * kBlock, kBlock, addition.low.view(), row, index * kBlock);
            return;
        }
    });
}

// One part's tiles for all rows: base or noisy weights, bias, then what adapters add.
void Forward::project(int layer, Kind kind, int part, Tiles tiles, const Activations& x, const Output& y) {
    const Product& p = product(layer, kind);
    const int num_base = p.noisy[part].tiles ? rows_.num_clean : rows_.size();
    if (num_base) kernels_.multiply(p.parts[part], tiles, x, {0, num_base}, y);
    const auto from = [&](int row) { return y.values + (size_t)row * y.stride; };
    if (num_base < rows_.size())
        kernels_.multiply(p.noisy[part], tiles, x, {num_base, rows_.size() - num_base},
                          {from(num_base), y.stride, y.add});
    if (p.bias[part])
        for (int row = 0; row < rows_.size(); row++)
            kernels_.add(from(row), p.bias[part] + tiles.first * kTile, tiles.count * kTile);
    for (Addition& addition : additions_) {
        const LowRank& low = low_rank(layer, kind, addition);
        if (!low.up[part].tiles) continue;
        const int rank = rank_of(low);
        kernels_.multiply(low.up[part], tiles, addition.low.view().part(part * rank, rank),
                          {0, addition.rows.count}, {from(addition.rows.first), y.stride, true});
    }
}

// Queries, keys and values, head by head: product, norm, rotation; keys and values go into the pool.
void Forward::project_heads(int layer) {
    const Layer& l = stack_.layers[layer];
    const int size = l.head_dim, tiles = size / kTile, num_heads = model_.num_heads + 2 * l.num_kv_heads;
    team_.share(num_heads, [&](int head, int next) {
        float* values = l.joint_norm ? heads_.data() + head * size : scratch((size_t)rows_.size() * size);
        const int stride = l.joint_norm ? num_heads * size : size;
        const auto [part, tile] = share_of(layer, kQkv, head);
        project(layer, kQkv, part, {tile, tiles, ahead_of(layer, kQkv, next)}, normed_codes_.view(),
                {values, stride, false});
        for (int row = 0; row < rows_.size() && !l.joint_norm; row++)
            finish_head(l, stack_.first_in_pool + layer, head, row, values + (size_t)row * size);
    });
    if (l.joint_norm) team_.share(rows_.size(), [&](int row) { finish_jointly(layer, row); });
}

void Forward::add_product(int layer, Kind kind, Activations x) {
    const int num_tiles = model_.hidden_size / kTile, most = tiles_per_share(num_tiles, team_.size());
    team_.share(num_shares(layer, kind), [&](int index, int next) {
        const int tile = share_of(layer, kind, index).tile;
        const Tiles tiles = {tile, std::min(most, num_tiles - tile), ahead_of(layer, kind, next)};
        project(layer, kind, 0, tiles, x, {outlet() + tiles.first * kTile, model_.hidden_size, true});
    });
}

void Forward::gate_up(int layer) {
    const Activations into = gated_.view(stack_.layers[layer].ffn_size);
    const int num_rows = rows_.size();
    const Matrix& ups = product(layer, kGateUp).parts[1];
    team_.share(num_shares(layer, kGateUp), [&](int block, int next) {
        float* gate = scratch((size_t)num_rows * kBlock * 2);
        float* up = gate + (size_t)num_rows * kBlock;
        const uint8_t* ahead = ahead_of(layer, kGateUp, next);
        const uint8_t* own = ups.tiles ? tile_of(ups, block * 2) : ahead;
        project(layer, kGateUp, 0, {block * 2, 2, own}, normed_codes_.view(), {gate, kBlock, false});
        if (ups.tiles)
            project(layer, kGateUp, 1, {block * 2, 2, ahead}, normed_codes_.view(), {up, kBlock, false});
        else
            std::fill_n(up, (size_t)num_rows * kBlock, 1.0f);
        for (int row = 0; row < num_rows; row++) {
            const size_t at = (size_t)row * kBlock;
            kernels_.gate(model_.activation, gate + at, up + at, kBlock, gate + at);
            kernels_.quantize(gate + at, kBlock, into, row, block * kBlock);
        }
    });
}
