#include "forward.h"

#include <math.h>

#include <algorithm>

#include "sharing.h"

Forward::Forward(Session& session, const Rows& rows, const Pass& pass, float* tapped, Team& team)
    : hidden((size_t)rows.size() * session.model.hidden_size),
      session_(session),
      model_(session.model),
      stack_(session.stack(pass.drafting)),
      kernels_(*session.kernels),
      rows_(rows),
      pass_(pass),
      tapped_(tapped),
      team_(team),
      normed_(hidden.size()),
      normed_codes_(rows.size(), model_.hidden_size),
      experts_(session, rows.size(), team) {
    int head_dim = 0, attended = 0, ffn_size = model_.conditioning.gate.outputs, jointly = 0;
    for (const Layer& layer : session.layers) {
        head_dim = std::max(head_dim, layer.head_dim);
        attended = std::max(attended, layer.output.parts[0].inputs);
        ffn_size = std::max(ffn_size, layer.ffn_size);
        if (layer.attention_out_norm || layer.attention_gate) branch_.resize(hidden.size());
        if (layer.expert_norm) mixed_.resize(hidden.size());
        if (layer.gate.tiles) gates_.resize((size_t)rows.size() * layer.output.parts[0].inputs);
        if (layer.joint_norm)
            jointly = std::max(jointly, (model_.num_heads + 2 * layer.num_kv_heads) * layer.head_dim);
        if (!units_.count(layer.num_kv_heads)) plan_attention(layer.num_kv_heads);
    }
    queries_.resize((size_t)rows.size() * model_.num_heads * head_dim);
    heads_.resize((size_t)rows.size() * jointly);
    attended_.resize((size_t)rows.size() * attended);
    attended_codes_ = CodeBuffer(rows.size(), attended);
    gated_ = CodeBuffer(rows.size(), ffn_size);
    for (int i = 0; i < model_.num_rotations; i++) {
        cos_.emplace_back((size_t)rows.size() * model_.rotations[i].size / 2);
        sin_.emplace_back(cos_.back().size());
    }
    if (model_.drafter.num_taps && !pass.drafting) {
        tapped_codes_ = CodeBuffer(rows.num_clean, model_.drafter.inject.inputs);
        injected_.resize((size_t)rows.num_clean * model_.hidden_size);
    }
    if (!pass.drafting) plan_additions();
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

void Forward::plan_attention(int num_kv_heads) {
    const int group = model_.num_heads / num_kv_heads;
    // Few rows are split by heads instead, so that every member has work.
    const bool few = rows_.size() * num_kv_heads < 4 * team_.size();
    const int heads = few ? 1 : std::min(group, kMaxQueries);
    const bool many = rows_.size() * num_kv_heads >= 8 * team_.size();
    const int most_rows = many ? std::max(1, kMaxQueries / heads) : 1;
    std::vector<AttentionUnit>& units = units_[num_kv_heads];
    for (int first = 0, end = 0; first < rows_.size(); first = end) {
        for (end = first + 1; end < rows_.size() && rows_.rows[end].request == rows_.rows[first].request;) end++;
        // Key head by key head, so that a member reads few of them.
        for (int head = 0; head < model_.num_heads;) {
            const int next = std::min(head + heads, (head / group + 1) * group);
            for (int row = first; row < end; row += most_rows)
                units.push_back({{row, std::min(most_rows, end - row)}, head / group, head, next - head});
            head = next;
        }
    }
}

void Forward::run() {
    team_.share(rows_.size(), [&](int row) {
        embed(row);
        turn(row);
    });
    if (model_.conditioning.norm) condition();
    for (int layer = 0; layer < stack_.num_layers; layer++) {
        tap(layer);
        tap_for_drafter(layer);
        const Layer& l = stack_.layers[layer];
        normalize(l.attention_norm, l.attention_shift);
        lower(layer, kQkv, normed_codes_.view());
        project_heads(layer);
        attend(layer);
        const Activations attended = attended_codes_.view(l.output.parts[0].inputs);
        lower(layer, kOutput, attended);
        add_product(layer, kOutput, attended);
        join(l.attention_out_norm, l.attention_gate);
        normalize(l.ffn_norm, l.ffn_shift);
        feed_forward(layer);
        join(l.ffn_out_norm, l.ffn_gate);
        if (l.ffn_out_norm) scale(l);
    }
    tap(stack_.num_layers);
    if (!injected_.empty()) inject();
}

// Keeps the layer's input where the pass wants it.
void Forward::tap(int layer) {
    const int size = model_.hidden_size;
    for (int i = 0; i < pass_.num_taps; i++) {
        if (pass_.taps[i] != layer) continue;
        team_.share(rows_.size(), [&](int listed) {
            std::copy_n(hidden.data() + (size_t)rows_.place[listed] * size, size,
                        tapped_ + ((size_t)listed * pass_.num_taps + i) * size);
        });
    }
}

void Forward::embed(int row) {
    const Row& r = rows_.rows[row];
    const int size = model_.hidden_size;
    float* x = hidden.data() + (size_t)row * size;
    if (r.masked && stack_.mask_embedding) {
        std::copy_n(stack_.mask_embedding, size, x);
    } else {
        kernels_.unpack(model_.embedding, r.id, all_blocks(model_.embedding), x);
        for (int i = 0; i < size && model_.embedding_scale != 1.0f; i++) x[i] *= model_.embedding_scale;
    }
    if (model_.embedding_norm && !pass_.drafting) session_.normalize(x, model_.embedding_norm, nullptr, x);
}

// The row's angles, in double precision so that far positions keep theirs.
void Forward::turn(int row) {
    for (int index = 0; index < model_.num_rotations; index++) {
        const Rotation& rotation = model_.rotations[index];
        const int half = rotation.size / 2;
        for (int i = 0; i < half; i++) {
            const double angle = rows_.rows[row].position * rotation.inverse_frequencies[i];
            cos_[index][(size_t)row * half + i] = (float)cos(angle) * rotation.factor;
            sin_[index][(size_t)row * half + i] = (float)sin(angle) * rotation.factor;
        }
    }
}

void Forward::normalize(const float* weight, const float* shift) {
    const int size = model_.hidden_size;
    const Activations into = normed_codes_.view();
    team_.share(rows_.size(), [&](int row) {
        float* y = normed_.data() + (size_t)row * size;
        session_.normalize(hidden.data() + (size_t)row * size, weight, shift, y);
        kernels_.quantize(y, size, into, row, 0);
    });
}

void Forward::feed_forward(int layer) {
    const Layer& l = stack_.layers[layer];
    if (l.ffn_size) {
        const Activations gated = gated_.view(l.ffn_size);
        lower(layer, kGateUp, normed_codes_.view());
        gate_up(layer);
        lower(layer, kDown, gated);
        add_product(layer, kDown, gated);
    }
    if (!l.experts.num_experts) return;
    if (!l.expert_norm) {
        experts_.run(l.experts, normed_.data(), normed_codes_.view(), outlet());
        return;
    }
    normalize(l.expert_norm, nullptr);
    experts_.run(l.experts, hidden.data(), normed_codes_.view(), mixed_.data());
    add_mixed(l);
}

// Norms over all query heads and over all key heads of a row.
void Forward::finish_jointly(int layer, int row) {
    const Layer& l = stack_.layers[layer];
    const int size = l.head_dim, num_heads = model_.num_heads + 2 * l.num_kv_heads;
    float* x = heads_.data() + (size_t)row * num_heads * size;
    float* keys = x + (size_t)model_.num_heads * size;
    kernels_.normalize(x, l.query_norm, model_.num_heads * size, model_.num_heads * l.head_norm_size,
                       model_.norm_eps, x);
    kernels_.normalize(keys, l.key_norm, l.num_kv_heads * size, l.num_kv_heads * l.head_norm_size,
                       model_.norm_eps, keys);
    for (int head = 0; head < num_heads; head++)
        finish_head(l, stack_.first_in_pool + layer, head, row, x + (size_t)head * size);
}

float Forward::query_scale(int position) const {
    if (!model_.query_period) return 1.0f;
    return (float)(1.0 + model_.query_growth * log1p((double)(position / model_.query_period)));
}

void Forward::finish_head(const Layer& l, int in_pool, int head, int row, float* x) {
    const int size = l.head_dim, slot = rows_.rows[row].slot;
    const bool query = head < model_.num_heads, value = head >= model_.num_heads + l.num_kv_heads;
    const int key_head = (head - model_.num_heads) % l.num_kv_heads;
    if (value) {
        if (l.value_norm) kernels_.normalize(x, nullptr, size, l.head_norm_size, model_.norm_eps, x);
        kernels_.to_halves(x, size, session_.pool.values(in_pool, key_head) + (size_t)slot * size);
        return;
    }
    const float* norm = l.joint_norm ? nullptr : query ? l.query_norm : l.key_norm;
    if (norm && !l.late_norm) kernels_.normalize(x, norm, size, l.head_norm_size, model_.norm_eps, x);
    if (l.rotation >= 0) {
        const int half = model_.rotations[l.rotation].size / 2;
        const size_t at = (size_t)row * half;
        kernels_.rotate(x, cos_[l.rotation].data() + at, sin_[l.rotation].data() + at, half);
    }
    if (norm && l.late_norm) kernels_.normalize(x, norm, size, l.head_norm_size, model_.norm_eps, x);
    if (query) {
        const float scale = query_scale(rows_.rows[row].position);
        float* to = queries_.data() + ((size_t)row * model_.num_heads + head) * size;
        for (int i = 0; i < size; i++) to[i] = x[i] * scale;
        return;
    }
    session_.pool.store_key(in_pool, key_head, slot, x, kernels_);
}

void Forward::attend(int layer) {
    const Layer& l = stack_.layers[layer];
    const std::vector<AttentionUnit>& units = units_.at(l.num_kv_heads);
    const int num_units = (int)units.size();
    const int begin = team_.first_of(num_units);
    team_.share(num_units, [&](int index) {
        const AttentionUnit& unit = units[index];
        const bool again = index > begin && units[index - 1].key_head == unit.key_head &&
                           rows_.rows[units[index - 1].rows.first].request == rows_.rows[unit.rows.first].request;
        attend_unit(layer, unit, !again);
    });
    const int size = model_.num_heads * l.head_dim, stored = l.output.parts[0].inputs;
    const Activations into = attended_codes_.view(stored);
    if (l.gate.tiles)
        team_.share(size / kTile, [&](int tile) {
            kernels_.multiply(l.gate, {tile, 1}, normed_codes_.view(), {0, rows_.size()},
                              {gates_.data() + tile * kTile, stored, false});
        });
    team_.share(rows_.size(), [&](int row) {
        float* x = attended_.data() + (size_t)row * stored;
        if (l.gate.tiles) kernels_.gate(kLogistic, gates_.data() + (size_t)row * stored, x, size, x);
        std::fill(x + size, x + stored, 0.0f);
        kernels_.quantize(x, stored, into, row, 0);
    });
}

void Forward::attend_unit(int layer, const AttentionUnit& unit, bool fetched) {
    const Layer& l = stack_.layers[layer];
    Attention a = {};
    const int size = l.head_dim;
    a.head_dim = size;
    a.scale = l.attention_scale;
    a.fetched = fetched && session_.page_size % 16 == 0;
    a.aligned = session_.page_size % 16 == 0;
    a.keys = session_.pool.keys(stack_.first_in_pool + layer, unit.key_head);
    a.values = session_.pool.values(stack_.first_in_pool + layer, unit.key_head);
    a.slots = rows_.slots_of(rows_.rows[unit.rows.first].request);
    // Tiles of 16 scores may reach past a row's last.
    a.score_stride = (rows_.longest_prefix + rows_.longest_tail + 47) / 16 * 16;
    a.scores = scratch((size_t)kMaxQueries * a.score_stride + (size_t)size * 8);
    a.gathered = (uint16_t*)(a.scores + (size_t)kMaxQueries * a.score_stride);
    int least_hidden = rows_.longest_prefix + rows_.longest_tail;
    for (int i = 0; i < unit.rows.count; i++) {
        const Row& row = rows_.rows[unit.rows.first + i];
        for (int head = unit.first_head; head < unit.first_head + unit.num_heads; head++) {
            const int q = a.num_queries++;
            const size_t at = unit.rows.first + i;
            a.queries[q] = queries_.data() + (at * model_.num_heads + head) * size;
            a.outputs[q] = attended_.data() + at * l.output.parts[0].inputs + (size_t)head * size;
            a.hidden[q] = l.window ? std::max(0, row.own + 1 - l.window) : 0;
            a.prefix[q] = row.prefix;
            a.num_tail[q] = row.num_tail;
            a.tail[q] = rows_.tails.data() + row.first_tail;
            least_hidden = std::min(least_hidden, a.hidden[q]);
        }
    }
    a.first = least_hidden / 16 * 16;
    kernels_.attend(a);
}
