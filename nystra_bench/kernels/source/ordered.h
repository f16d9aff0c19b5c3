// The tokens of one window and head in the order of their clusters: the first pass of nystra_plus_v5.
#pragma once

#include "seeds.h"
#include "tokens.h"

#include <vector>

namespace nystra {

struct V5Inputs : Inputs {
  int64_t marks, near, block, groups; // m, K, b, and mean queries of a block; 0: none are looked at
  int64_t clustering; // Lloyd's steps
  int64_t rank;
  const float *queries, *keys; // F and G of each head, (H, N, rank)
  const float* entries; // the bias of pairs of tokens (`BiasOfPairs` in pairs.py), (H, entry_count); or null
  int64_t entry_count;
  const int32_t *query_places, *key_places; // where in these, (N)
  const float* means; // of each query's bias, (H, N)
  const float* regions; // features (nW, N, region_columns)
  int64_t region_columns;
  const bool* masked; // (nW), whether a window has more than one region
  int64_t masks; // nW, 0 where no window is masked
  const int64_t* candidates; // tokens that clusters may start from
  int64_t candidate_count;

  int64_t blocks() const { return (tokens + block - 1) / block; }
};

/// Tokens that have joined clusters, as rows of keys, with all their features, and values, in the clusters' order.
class Ordered {
 protected:
  Ordered(const V5Inputs& in, float* memory)
      : in_(in),
        deepest_(whole(in.dim + in.rank + in.region_columns, W)),
        wide_(whole(in.dim_v, W)),
        arena_(memory),
        places_(in, arena_),
        seeds_(arena_, in.candidate_count, in.marks, deepest_) {
    const int64_t m = in.marks;
    keys_ = arena_.take(in.tokens * deepest_);
    rows_ = arena_.take(in.tokens * (deepest_ + wide_));
    for (int32_t** numbers : {&labels_, &order_, &sorted_}) *numbers = take_numbers(in.tokens);
    for (int32_t** numbers : {&starts_, &sizes_}) *numbers = take_numbers(m + 1);
    for (float** rows : {&marks_, &sought_}) *rows = arena_.take(m * deepest_);
    means_ = arena_.take(m * (deepest_ + wide_));
    for (float** row : {&spread_, &log_sizes_}) *row = arena_.take(m);
    panel_ = arena_.take(deepest_ * SLICE);
    block_ = arena_.take(whole(m, TOGETHER) * SLICE);
    clusters_ = take_list(m);
    for (float** rows : {&packed_q_, &packed_k_}) *rows = arena_.take(in.packed(in.dim));
    packed_v_ = arena_.take(in.packed(in.dim_v));
  }

  int32_t* take_numbers(int64_t count) { return reinterpret_cast<int32_t*>(arena_.take(count)); }

  List take_list(int64_t rows, bool with_tokens = false) {
    rows = whole(rows, TOGETHER);
    const auto pointers = reinterpret_cast<const float**>(arena_.take(rows * (sizeof(float*) / sizeof(float))));
    float* starts = arena_.take(rows);
    return {pointers, starts, with_tokens ? take_numbers(rows) : nullptr};
  }

  void order(int64_t window, int64_t head) {
    place(window, head);
    for (int64_t t = 0; t < in_.tokens; ++t) {
      k_.fetch(t + AHEAD);
      pack(k_, t, 1.f, g_, keys_ + t * padded_);
    }
    start_clusters();
    for (int64_t step = 0; step < in_.clustering; ++step) move_marks();
    join_clusters(0, 1, in_.tokens);
    sort_tokens();
    gather_rows();
    form_means();
  }

  /// A token's query or key, its features before it, which single pairs do without, and those of its region behind it:
  /// their products are large, and what is added to them later would be rounded.
  void pack(const Tokens<const float>& tokens, int64_t token, float factor, const float* features, float* to) const {
    const float* row = tokens.row(token);
    std::copy_n(features + token * in_.rank, in_.rank, to);
    for (int64_t i = 0; i < in_.dim; ++i) to[in_.rank + i] = row[i] * factor;
    if (regions_) std::copy_n(regions_ + token * in_.region_columns, in_.region_columns, to + plain_);
    std::fill(to + depth_, to + padded_, 0.f);
  }

  /// The row of a token that comes later in order.
  template <class Float>
  void fetch_in_order(const Tokens<Float>& tokens, int64_t i) const {
    if (i + AHEAD < in_.tokens) tokens.fetch(order_[i + AHEAD]);
  }

  static void add(const float* row, int64_t width, float* sum) {
    for (int64_t i = 0; i < width; i += W) (Vec::loadu(sum + i) + Vec::loadu(row + i)).store(sum + i);
  }

  const V5Inputs& in_;
  const int64_t deepest_; // columns of keys with all features, in vectors
  const int64_t wide_; // of values
  Arena arena_;
  Places places_;
  Seeds seeds_;

  Tokens<const float> q_{}, k_{}, v_{};
  const float *f_{}, *g_{}, *regions_{};
  int64_t plain_ = 0, depth_ = 0, padded_ = 0, row_ = 0; // of keys without regions, with them, in vectors, with values

  float *keys_, *rows_, *marks_, *sought_, *means_, *spread_, *log_sizes_, *panel_, *block_;
  int32_t *labels_, *order_, *sorted_, *starts_, *sizes_;
  List clusters_{};

 private:
  static constexpr int64_t SAMPLE = 4; // as in attention/nystra_plus_v5.py
  static constexpr float APART = 100.f;

  void place(int64_t window, int64_t head) {
    places_.turn_to(window);
    q_ = places_.read(in_.q, head, in_.dim, packed_q_);
    k_ = places_.read(in_.k, head, in_.dim, packed_k_);
    v_ = places_.read(in_.v, head, in_.dim_v, packed_v_);
    f_ = in_.queries + head * in_.tokens * in_.rank;
    g_ = in_.keys + head * in_.tokens * in_.rank;
    const bool masked = in_.masks && in_.masked[window % in_.masks];
    regions_ = masked ? in_.regions + window % in_.masks * in_.tokens * in_.region_columns : nullptr;
    plain_ = in_.dim + in_.rank;
    depth_ = plain_ + (masked ? in_.region_columns : 0);
    padded_ = whole(depth_, W);
    row_ = padded_ + wide_;
  }

  void start_clusters() {
    // Squared distances of tokens in different regions grow by 100 APART, so that each region has its seeds.
    const float far = std::sqrt(APART / 2);
    for (int64_t i = 0; i < in_.candidate_count; ++i) {
      const float* key = keys_ + in_.candidates[i] * padded_;
      for (int64_t c = 0; c < depth_; ++c) seeds_.at(i)[c * seeds_.lanes()] = key[c] * (c < plain_ ? 1.f : far);
    }
    const int32_t* chosen = seeds_.find(in_.candidate_count, in_.marks, depth_);
    for (int64_t c = 0; c < in_.marks; ++c)
      std::copy_n(keys_ + in_.candidates[chosen[c]] * padded_, padded_, marks_ + c * padded_);
  }

  /// A step of Lloyd's k-means on some of the tokens.
  void move_marks() {
    const int64_t first = SAMPLE / 2 % in_.tokens, count = (in_.tokens - first + SAMPLE - 1) / SAMPLE;
    join_clusters(first, SAMPLE, count);
    std::fill_n(sought_, in_.marks * padded_, 0.f);
    std::fill_n(sizes_, in_.marks, 0);
    for (int64_t i = 0; i < count; ++i) {
      add(keys_ + (first + i * SAMPLE) * padded_, padded_, sought_ + labels_[i] * padded_);
      ++sizes_[labels_[i]];
    }
    for (int64_t c = 0; c < in_.marks; ++c)
      if (sizes_[c] > 0)
        for (int64_t i = 0; i < padded_; ++i) marks_[c * padded_ + i] = sought_[c * padded_ + i] / sizes_[c];
  }

  /// Labels of `count` tokens, `every` so many from the first on: their nearest marks, in their own regions.
  void join_clusters(int64_t first, int64_t every, int64_t count) {
    clusters_.count = 0;
    for (int64_t c = 0; c < in_.marks; ++c) {
      const float* mark = marks_ + c * padded_;
      float *sought = sought_ + c * padded_, square = 0;
      for (int64_t i = 0; i < padded_; ++i) sought[i] = mark[i] * (i < plain_ ? 1.f : APART);
      for (int64_t i = 0; i < plain_; ++i) square += mark[i] * mark[i];
      clusters_.add(sought, -0.5f * square);
    }
    clusters_.fill_up();
    for (int64_t t = 0; t < count; t += SLICE) {
      const int64_t there = std::min(SLICE, count - t), lanes = whole(there, W);
      turn_into_lanes(keys_ + (first + t * every) * padded_, every * padded_, there, padded_, panel_, lanes);
      products(clusters_, 0, clusters_.count, panel_, lanes, depth_, block_);
      for (int64_t lane = 0; lane < there; lane += W) {
        Vec best = Vec::loadu(block_ + lane), label(0.f);
        for (int64_t c = 1; c < in_.marks; ++c) {
          const Vec near = Vec::loadu(block_ + c * lanes + lane), nearer = near > best;
          label = Vec::blendv(label, Vec(static_cast<float>(c)), nearer);
          best = Vec::blendv(best, near, nearer);
        }
        alignas(64) float found[W];
        label.store(found);
        for (int64_t i = 0; i < std::min(W, there - lane); ++i) labels_[t + lane + i] = static_cast<int32_t>(found[i]);
      }
    }
  }

  /// The tokens in the order of their clusters.
  void sort_tokens() {
    std::fill_n(starts_, in_.marks + 1, 0);
    for (int64_t t = 0; t < in_.tokens; ++t) ++starts_[labels_[t] + 1];
    for (int64_t c = 0; c < in_.marks; ++c) {
      sizes_[c] = starts_[c + 1];
      starts_[c + 1] += starts_[c];
    }
    next_.assign(starts_, starts_ + in_.marks);
    for (int64_t t = 0; t < in_.tokens; ++t) order_[next_[labels_[t]]++] = static_cast<int32_t>(t);
    for (int64_t i = 0; i < in_.tokens; ++i) sorted_[i] = labels_[order_[i]];
  }

  /// Rows of keys and values, in order.
  void gather_rows() {
    for (int64_t i = 0; i < in_.tokens; ++i) {
      fetch_in_order(v_, i);
      float* row = rows_ + i * row_;
      std::copy_n(keys_ + order_[i] * padded_, padded_, row);
      std::copy_n(v_.row(order_[i]), in_.dim_v, row + padded_);
      std::fill(row + padded_ + in_.dim_v, row + row_, 0.f);
    }
  }

  void form_means() {
    for (int64_t c = 0; c < in_.marks; ++c) {
      float *mean = means_ + c * row_, squares = 0, square = 0;
      std::fill_n(mean, row_, 0.f);
      Vec sum(0.f);
      for (int64_t i = starts_[c]; i < starts_[c + 1]; ++i) {
        add(rows_ + i * row_, row_, mean);
        for (int64_t j = 0; j < padded_; j += W) {
          const Vec key = Vec::loadu(rows_ + i * row_ + j);
          sum = at::vec::fmadd(key, key, sum);
        }
      }
      squares = sum_of(sum);
      const float share = 1.f / std::max(sizes_[c], 1);
      scale(mean, row_, share);
      for (int64_t j = 0; j < padded_; ++j) square += mean[j] * mean[j];
      spread_[c] = sizes_[c] < 2 ? 0.f : std::sqrt(std::max(0.f, squares * share - square));
      log_sizes_[c] = sizes_[c] > 0 ? std::log(static_cast<float>(sizes_[c])) : NOTHING;
    }
  }

  float *packed_q_, *packed_k_, *packed_v_;
  std::vector<int32_t> next_;
};

} // namespace nystra
