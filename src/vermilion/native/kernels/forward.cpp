#include "forward.h"

#include <math.h>

#include <algorithm>

namespace {

// A member's scratch of at least `size` floats, kept from pass to pass.
float* scratch(size_t size) {
    static thread_local std::vector<float> buffer;
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
}

// Tiles of one share: few enough that the members end together, enough that sharing costs nothing.
int tiles_per_share(int num_tiles, int members) { return std::clamp(num_tiles / (members * 8), 1, 8); }

int rank_of(const LowRank& low) {
    int parts = 0;
    for (const Matrix& up : low.up) parts = up.tiles ? std::max(parts, up.inputs) : parts;
    return parts;
}

}  // namespace

Forward::Forward(Session& session, const Rows& rows, Team& team)
    : hidden((size_t)rows.size() * session.model.hidden_size),
      session_(session),
      model_(session.model),
      kernels_(*session.kernels),
      rows_(rows),
      team_(team),
      cos_((size_t)rows.size() * model_.rope_size / 2),
      sin_(cos_.size()),
      queries_((size_t)rows.size() * model_.num_heads * model_.head_dim),
      attended_(queries_.size()),
      normed_(rows.size(), model_.hidden_size),
      attended_codes_(rows.size(), model_.num_heads * model_.head_dim),
      gated_(rows.size(), model_.ffn_size) {
    plan_additions();
    plan_attention();
}

void Forward::plan_additions() {
    const int num_noisy = rows_.size() - rows_.num_clean;
    if (num_noisy && model_.layers[0].output.denoiser.down.tiles)
        additions_.push_back({-1, {rows_.num_clean, num_noisy}, {}});
    for (const AdapterRows& named : rows_.adapters) additions_.push_back({named.adapter, named.rows, {}});
    for (Addition& addition : additions_) {
        int widest = kBlock;
        for (int layer = 0; layer < model_.num_layers; layer++)
            for (const Kind kind : {kQkv, kOutput, kGateUp, kDown})
                widest = std::max(widest, low_rank(layer, kind, addition).down.outputs);
        addition.low = CodeBuffer(addition.rows.count, widest);
    }
}

void Forward::plan_attention() {
    const int group = model_.num_heads / model_.num_kv_heads;
    // Few rows are split by heads instead, so that every member has work.
    const bool few = rows_.size() * model_.num_kv_heads < 4 * team_.size();
    const int heads = few ? 1 : std::min(group, kMaxQueries);
    const bool many = rows_.size() * model_.num_kv_heads >= 16 * team_.size();
    const int most_rows = many ? std::max(1, kMaxQueries / heads) : 1;
    for (int first = 0; first < rows_.size();) {
        int count = 1;
        while (count < most_rows && first + count < rows_.size() &&
               rows_.rows[first + count].request == rows_.rows[first].request)
            count++;
        for (int head = 0; head < model_.num_heads;) {
            const int end = std::min(head + heads, (head / group + 1) * group);
            units_.push_back({{first, count}, head / group, head, end - head});
            head = end;
        }
        first += count;
    }
}

const Product& Forward::product(int layer, Kind kind) const {
    const Layer& l = model_.layers[layer];
    return kind == kQkv ? l.qkv : kind == kOutput ? l.output : kind == kGateUp ? l.gate_up : l.down;
}

const LowRank& Forward::low_rank(int layer, Kind kind, const Addition& addition) const {
    if (addition.adapter < 0) return product(layer, kind).denoiser;
    return session_.adapters.at(addition.adapter)[(size_t)layer * 4 + kind];
}

void Forward::run() {
    team_.share(rows_.size(), [&](int row) { embed(row); });
    for (int layer = 0; layer < model_.num_layers; layer++) {
        normalize(model_.layers[layer].attention_norm);
        lower(layer, kQkv, normed_.view());
        project_heads(layer);
        attend(layer);
        lower(layer, kOutput, attended_codes_.view());
        add_product(layer, kOutput, attended_codes_.view());
        normalize(model_.layers[layer].ffn_norm);
        lower(layer, kGateUp, normed_.view());
        gate_up(layer);
        lower(layer, kDown, gated_.view());
        add_product(layer, kDown, gated_.view());
    }
}

void Forward::embed(int row) {
    const Row& r = rows_.rows[row];
    float* x = hidden.data() + (size_t)row * model_.hidden_size;
    if (r.masked && model_.mask_embedding)
        std::copy_n(model_.mask_embedding, model_.hidden_size, x);
    else
        kernels_.unpack(model_.embedding, r.id, x);
    const int half = model_.rope_size / 2;
    for (int i = 0; i < half; i++) {
        const double angle = r.position * model_.inverse_frequencies[i];
        cos_[(size_t)row * half + i] = (float)cos(angle);
        sin_[(size_t)row * half + i] = (float)sin(angle);
    }
}

void Forward::normalize(const float* weight) {
    const int size = model_.hidden_size;
    const Activations into = normed_.view();
    team_.share(rows_.size(), [&](int row) {
        float* y = scratch(size);
        kernels_.normalize(hidden.data() + (size_t)row * size, weight, size, model_.norm_eps, y);
        kernels_.quantize(y, size, into, row, 0);
    });
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
void Forward::project(int layer, Kind kind, int part, Range tiles, const Activations& x, const Output& y) {
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
    const int size = model_.head_dim, tiles = size / kTile;
    team_.share(model_.num_heads + 2 * model_.num_kv_heads, [&](int head) {
        float* values = scratch((size_t)rows_.size() * size);
        const int part = head < model_.num_heads ? 0 : head < model_.num_heads + model_.num_kv_heads ? 1 : 2;
        const int first = part == 0 ? 0 : model_.num_heads + (part - 1) * model_.num_kv_heads;
        project(layer, kQkv, part, {(head - first) * tiles, tiles}, normed_.view(), {values, size, false});
        finish_head(layer, head, values);
    });
}

void Forward::finish_head(int layer, int head, float* values) {
    const int size = model_.head_dim, half = model_.rope_size / 2;
    const Layer& l = model_.layers[layer];
    const bool query = head < model_.num_heads, value = head >= model_.num_heads + model_.num_kv_heads;
    const int key_head = (head - model_.num_heads) % model_.num_kv_heads;
    std::vector<uint16_t> halves(size);
    for (int row = 0; row < rows_.size(); row++) {
        float* x = values + (size_t)row * size;
        const float* norm = query ? l.query_norm : l.key_norm;
        if (!value && norm) kernels_.normalize(x, norm, size, model_.norm_eps, x);
        if (!value) kernels_.rotate(x, cos_.data() + (size_t)row * half, sin_.data() + (size_t)row * half, half);
        if (query) {
            std::copy_n(x, size, queries_.data() + ((size_t)row * model_.num_heads + head) * size);
        } else if (value) {
            const int slot = rows_.rows[row].slot;
            kernels_.to_halves(x, size, session_.pool.values(layer, key_head) + (size_t)slot * size);
        } else {
            kernels_.to_halves(x, size, halves.data());
            session_.pool.store_key(layer, key_head, rows_.rows[row].slot, halves.data());
        }
    }
}

void Forward::attend(int layer) {
    team_.share((int)units_.size(), [&](int index) { attend_unit(layer, units_[index]); });
    const int size = model_.num_heads * model_.head_dim;
    const Activations into = attended_codes_.view();
    team_.share(rows_.size(), [&](int row) {
        kernels_.quantize(attended_.data() + (size_t)row * size, size, into, row, 0);
    });
}

void Forward::attend_unit(int layer, const AttentionUnit& unit) {
    Attention a = {};
    const int size = model_.head_dim;
    a.head_dim = size;
    a.scale = 1.0f / sqrtf((float)size);
    a.aligned = session_.page_size % 16 == 0;
    a.keys = session_.pool.keys(layer, unit.key_head);
    a.values = session_.pool.values(layer, unit.key_head);
    a.slots = rows_.slots_of(rows_.rows[unit.rows.first].request);
    // Tiles of 16 scores may reach past a row's last.
    a.score_stride = (rows_.longest_prefix + rows_.longest_tail + 47) / 16 * 16;
    a.scores = scratch((size_t)kMaxQueries * a.score_stride + (size_t)size * 8);
    a.gathered = (uint16_t*)(a.scores + (size_t)kMaxQueries * a.score_stride);
    for (int i = 0; i < unit.rows.count; i++) {
        const Row& row = rows_.rows[unit.rows.first + i];
        for (int head = unit.first_head; head < unit.first_head + unit.num_heads; head++) {
            const int q = a.num_queries++;
            const size_t at = ((size_t)(unit.rows.first + i) * model_.num_heads + head) * size;
            a.queries[q] = queries_.data() + at;
            a.outputs[q] = attended_.data() + at;
            a.prefix[q] = row.prefix;
            a.num_tail[q] = row.num_tail;
            a.tail[q] = rows_.tails.data() + row.first_tail;
        }
    }
    kernels_.attend(a);
}

void Forward::add_product(int layer, Kind kind, Activations x) {
    const int num_tiles = model_.hidden_size / kTile, step = tiles_per_share(num_tiles, team_.size());
    team_.share((num_tiles + step - 1) / step, [&](int index) {
        const Range tiles = {index * step, std::min(step, num_tiles - index * step)};
        project(layer, kind, 0, tiles, x, {hidden.data() + tiles.first * kTile, model_.hidden_size, true});
    });
}

void Forward::gate_up(int layer) {
    const Activations into = gated_.view();
    const int num_rows = rows_.size();
    team_.share(model_.ffn_size / kBlock, [&](int block) {
        float* gate = scratch((size_t)num_rows * kBlock * 2);
        float* up = gate + (size_t)num_rows * kBlock;
        project(layer, kGateUp, 0, {block * 2, 2}, normed_.view(), {gate, kBlock, false});
        project(layer, kGateUp, 1, {block * 2, 2}, normed_.view(), {up, kBlock, false});
        for (int row = 0; row < num_rows; row++) {
            const size_t at = (size_t)row * kBlock;
            kernels_.gate(gate + at, up + at, kBlock, gate + at);
            kernels_.quantize(gate + at, kBlock, into, row, block * kBlock);
        }
    });
}
