// Clusters of the tokens of one window and head, by their keys: the first pass of nystra_plus.
//
// Tokens lie in the lanes of vectors, so that maxima and sums over clusters need no shuffles; a block of tokens goes
// through a pass while it is in the first cache.
#pragma once

#include "tokens.h"

#include <vector>

namespace nystra {

/// Logit between different regions.
constexpr float APART = -1e4f;

struct PlusInputs : Inputs {
  int64_t marks, rank;
  const float* queries; // F of each head as a panel, (H, blocks, rank, BLOCK)
  const float* keys; // G alike
  const float* features; // F and G side by side, (H, N, feature_row), filled up with zeros
  int64_t feature_row; // a multiple of W
  const float* diagonal; // bias of the tokens to themselves, (H, blocks * BLOCK)
  const int64_t* centres; // tokens from which clusters start, (marks)
  const float* regions; // (nW, blocks * BLOCK)
  const bool* masked; // (nW), whether a window has more than one region
  int64_t masks; // nW, 0 where no window is masked
  int64_t iterations;
  bool exact_diagonal;
};

/// The clusters' sizes and means, and what later passes need of the first: panels of queries and keys, and labels.
class Clusters {
 protected:
  Clusters(const PlusInputs& in, float* memory)
      : in_(in),
        key_chunks_{std::max(in.dim, W)},
        value_chunks_{std::max(in.dim_v, W)},
        dim_(key_chunks_.width),
        wide_(dim_ + in.rank),
        value_row_(value_chunks_.padded()),
        sum_row_(2 * key_chunks_.padded() + value_row_ + in.feature_row),
        across_((in.marks + W - 1) / W * W),
        arena_(memory),
        places_(in, arena_) {
    const int64_t m = in.marks, all = in_blocks(in.tokens);
    k_panel_ = arena_.take(all * dim_);
    q_panel_ = arena_.take(all * dim_);
    own_ = arena_.take(all);
    labels_ = reinterpret_cast<int32_t*>(arena_.take(all));
    block_ = arena_.take(m * BLOCK);
    top_ = arena_.take(BLOCK);
    for (float** row : {&half_square_, &sizes_, &shares_, &log_sizes_, &mark_regions_}) *row = arena_.take(across_);
    sums_ = arena_.take(m * sum_row_);
    q_marks_ = arena_.take(m * wide_);
    k_marks_ = arena_.take(m * wide_);
    k_marks_across_ = arena_.take(wide_ * across_);
    v_marks_ = arena_.take(m * value_row_);
    for (float** rows : {&packed_q_, &packed_k_}) *rows = arena_.take(in.packed(in.dim));
    packed_v_ = arena_.take(in.packed(in.dim_v));
  }

  void form(int64_t window, int64_t head) {
    place(window, head);
    start_clusters();
    join_clusters();
    form_means();
  }

  /// Logits of rows with features (m, wide) and a block of tokens: into `block_`, masked.
  void logits_of_block(
      const float* start, const float* marks, const float* panel, const float* features, int64_t first, int64_t width) {
    const float *tokens = panel + first * dim_, *theirs = features + first * in_.rank;
    for_tiles(in_.marks, width / W, [&]<int R, int C>(int64_t i, int64_t j) {
      Tile<R, C> tile;
      if (start)
        tile.start_from(start + i);
      else
        tile.clear();
      const float* mark = marks + i * wide_;
      tile.add_product(mark, wide_, 1, beside<C>(tokens + j * W), BLOCK, dim_);
      tile.add_product(mark + dim_, wide_, 1, beside<C>(theirs + j * W), BLOCK, in_.rank);
      if (regions_) tile.keep_apart(mark_regions_ + i, regions_ + first + j * W, APART);
      tile.store(block_ + i * BLOCK + j * W, BLOCK);
    });
  }

  const PlusInputs& in_;
  const Chunks key_chunks_, value_chunks_;
  const int64_t dim_; // of queries and keys, filled up to a vector
  const int64_t wide_; // with features
  const int64_t value_row_; // of values in vectors
  const int64_t sum_row_; // sums of a cluster's queries, keys, values, F and G, in vectors
  const int64_t across_; // clusters in vectors
  Arena arena_;
  Places places_;

  Tokens<const float> q_{}, k_{}, v_{};
  const float *features_{}, *f_panel_{}, *g_panel_{}, *diagonal_{}, *regions_{};
  std::vector<std::pair<int64_t, int64_t>> more_; // tokens and further clusters that they join

  float *k_panel_, *q_panel_, *own_, *block_, *top_;
  int32_t* labels_;
  float *half_square_, *sizes_, *shares_, *log_sizes_, *mark_regions_;
  float *sums_, *q_marks_, *k_marks_, *k_marks_across_, *v_marks_;

 private:
  void place(int64_t window, int64_t head) {
    const int64_t all = in_blocks(in_.tokens);
    places_.turn_to(window);
    q_ = places_.read(in_.q, head, in_.dim, packed_q_);
    k_ = places_.read(in_.k, head, in_.dim, packed_k_);
    v_ = places_.read(in_.v, head, in_.dim_v, packed_v_);
    features_ = in_.features + head * in_.tokens * in_.feature_row;
    f_panel_ = in_.queries + head * all * in_.rank;
    g_panel_ = in_.keys + head * all * in_.rank;
    diagonal_ = in_.diagonal + head * all;
    const bool masked = in_.masks && in_.masked[window % in_.masks];
    regions_ = masked ? in_.regions + window % in_.masks * all : nullptr;
    if (regions_)
      for (int64_t c = 0; c < in_.marks; ++c) mark_regions_[c] = regions_[in_.centres[c]];
  }

  /// Keys and features of the tokens that clusters start from, in the place of the means; k.c - |c|^2 / 2 is largest at
  /// the nearest.
  void start_clusters() {
    for (int64_t c = 0; c < in_.marks; ++c) {
      const int64_t token = in_.centres[c];
      float* mark = k_marks_ + c * wide_;
      std::copy_n(k_.row(token), dim_, mark);
      std::copy_n(features_ + token * in_.feature_row + in_.rank, in_.rank, mark + dim_);
      float square = 0;
      for (int64_t i = 0; i < wide_; ++i) square += mark[i] * mark[i];
      half_square_[c] = -0.5f * square;
    }
  }

  void join_clusters() {
    std::fill_n(sums_, in_.marks * sum_row_, 0.f);
    std::fill_n(sizes_, in_.marks, 0.f);
    more_.clear();
    for (int64_t first = 0; first < in_.tokens; first += BLOCK) {
      const int64_t width = block_width(first, in_.tokens);
      make_panels(first, width);
      logits_of_block(half_square_, k_marks_, k_panel_, g_panel_, first, width);
      find_nearest(first, width);
      add_to_sums(first);
    }
  }

  /// Panels of a block's keys and queries, and what the tokens are to themselves.
  void make_panels(int64_t first, int64_t width) {
    const int64_t count = std::min(BLOCK, in_.tokens - first);
    float *keys = k_panel_ + first * dim_, *queries = q_panel_ + first * dim_;
    turn_into_columns(k_, places_, first, count, width, key_chunks_, 1.f, keys);
    turn_into_columns(q_, places_, first, count, width, key_chunks_, in_.scale, queries);
    for (int64_t t = 0; t < width; t += 2 * W) {
      Tile<1, 2> own;
      own.load(diagonal_ + first + t, 0);
      for (int64_t c = 0; c < dim_; ++c)
        Tile<1, 2>::each([&](auto r, auto v) {
          const int64_t place = c * BLOCK + t + v * W;
          own.value[r][v] = at::vec::fmadd(Vec::loadu(keys + place), Vec::loadu(queries + place), own.value[r][v]);
        });
      own.store(own_ + first + t, 0);
    }
  }

  /// The cluster of each token of a block; of a token that is as near to others, those too, as in the eager form.
  void find_nearest(int64_t first, int64_t width) {
    const int64_t count = std::min(BLOCK, in_.tokens - first);
    Vec any(0.f);
    for (int64_t t = 0; t < width; t += W) {
      Vec best = Vec::loadu(block_ + t), label(0.f), tied(0.f);
      for (int64_t c = 1; c < in_.marks; ++c) {
        const Vec near = Vec::loadu(block_ + c * BLOCK + t), nearer = near > best;
        tied = Vec::blendv(Vec::blendv(tied, Vec(1.f), near == best), Vec(0.f), nearer);
        label = Vec::blendv(label, Vec(static_cast<float>(c)), nearer);
        best = Vec::blendv(best, near, nearer);
      }
      label.store(top_ + t);
      any = any + tied;
    }
    for (int64_t t = 0; t < width; ++t) labels_[first + t] = static_cast<int32_t>(top_[t]);
    if (largest_of(any) > 0)
      for (int64_t t = 0; t < count; ++t) {
        const int32_t label = labels_[first + t];
        for (int64_t c = label + 1; c < in_.marks; ++c)
          if (block_[c * BLOCK + t] == block_[label * BLOCK + t]) more_.push_back({first + t, c});
      }
  }

  void add_to_sums(int64_t first) {
    const int64_t last = std::min(first + BLOCK, in_.tokens);
    for (int64_t t = first; t < last; ++t) {
      v_.fetch(t + AHEAD);
      join(t, labels_[t]);
    }
    for (auto it = more_.rbegin(); it != more_.rend() && it->first >= first; ++it) join(it->first, it->second);
  }

  void join(int64_t token, int64_t cluster) {
    float* sum = sums_ + cluster * sum_row_;
    sum = add_row(sum, q_.row(token), key_chunks_);
    sum = add_row(sum, k_.row(token), key_chunks_);
    sum = add_row(sum, v_.row(token), value_chunks_);
    const float* features = features_ + token * in_.feature_row;
    for (int64_t i = 0; i < in_.feature_row; i += W) (Vec::loadu(sum + i) + Vec::loadu(features + i)).store(sum + i);
    sizes_[cluster] += 1;
  }

  static C10_ALWAYS_INLINE float* add_row(float* sum, const float* row, Chunks chunks) {
    const int64_t count = chunks.count();
    for (int64_t chunk = 0; chunk < count; ++chunk, sum += W)
      (Vec::loadu(sum) + Vec::loadu(row + chunks.start(chunk))).store(sum);
    return sum;
  }

  void form_means() {
    std::fill_n(log_sizes_, across_, NOTHING); // nobody attends to an empty cluster
    std::fill_n(k_marks_across_, wide_ * across_, 0.f);
    for (int64_t c = 0; c < in_.marks; ++c) {
      const float share = shares_[c] = 1.f / std::max(sizes_[c], 1.f);
      if (sizes_[c] > 0) log_sizes_[c] = std::log(sizes_[c]);
      const float* sum = sums_ + c * sum_row_;
      float *queries = q_marks_ + c * wide_, *keys = k_marks_ + c * wide_;
      scatter(sum, share * in_.scale, queries);
      scatter(sum + key_chunks_.padded(), share, keys);
      const float *values = sum + 2 * key_chunks_.padded(), *features = values + value_row_;
      for (int64_t i = 0; i < value_row_; i += W)
        (Vec::loadu(values + i) * Vec(share)).store(v_marks_ + c * value_row_ + i);
      for (int64_t i = 0; i < in_.rank; ++i) {
        queries[dim_ + i] = features[i] * share;
        keys[dim_ + i] = features[in_.rank + i] * share;
      }
      for (int64_t i = 0; i < wide_; ++i) k_marks_across_[i * across_ + c] = keys[i];
    }
  }

  /// Sums in vectors become a row of means.
  void scatter(const float* sum, float share, float* row) const {
    for (int64_t chunk = 0; chunk < key_chunks_.count(); ++chunk)
      (Vec::loadu(sum + chunk * W) * Vec(share)).store(row + key_chunks_.start(chunk));
  }

  float *packed_q_, *packed_k_, *packed_v_;
};

} // namespace nystra
