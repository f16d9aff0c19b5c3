// nystra_plus (attention/nystra_plus.py, version 4.1) of one window and head at a time.
//
// Tokens lie in the lanes of vectors, so that maxima and sums over clusters need no shuffles; a block of tokens goes
// through a pass while it is in the first cache. Three passes: tokens join clusters, whose means are formed; attention of
// the mean queries; attention to the clusters, which writes the output.
#pragma once

#include "tiles.h"

#include <vector>

namespace nystra {

/// Logit between different regions.
constexpr float APART = -1e4f;

struct PlusInputs {
  Batch<const float> q, k, v;
  Batch<float> out;
  int64_t tokens, dim, dim_v, marks, rank;
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

class NystraPlus {
 public:
  /// `memory` holds `floats(in)`; none is needed to count them.
  NystraPlus(const PlusInputs& in, float* memory)
      : in_(in),
        key_chunks_{std::max(in.dim, W)},
        value_chunks_{std::max(in.dim_v, W)},
        dim_(key_chunks_.width),
        wide_(dim_ + in.rank),
        value_row_(value_chunks_.padded()),
        sum_row_(2 * key_chunks_.padded() + value_row_ + in.feature_row),
        squares_{in.marks, (in.marks + W - 1) / W * W},
        arena_(memory) {
    const int64_t m = in.marks, all = in_blocks(in.tokens);
    k_panel_ = arena_.take(all * dim_);
    q_panel_ = arena_.take(all * dim_);
    own_ = arena_.take(all);
    labels_ = reinterpret_cast<int32_t*>(arena_.take(all));
    block_ = arena_.take(m * BLOCK);
    for (float** row : {&top_, &total_}) *row = arena_.take(BLOCK);
    for (float** row : {&half_square_, &sizes_, &shares_, &log_sizes_, &row_top_, &row_total_, &mark_regions_})
      *row = arena_.take(squares_.width);
    sums_ = arena_.take(m * sum_row_);
    q_marks_ = arena_.take(m * wide_);
    k_marks_ = arena_.take(m * wide_);
    k_marks_across_ = arena_.take(wide_ * squares_.width);
    for (float** values : {&v_marks_, &correct_, &values_}) *values = arena_.take(m * value_row_);
    matrices_ = arena_.take(5 * squares_.floats());
    for (float** rows : {&narrow_q_, &narrow_k_}) *rows = arena_.take(in.dim < W ? in.tokens * W : 0);
    for (float** rows : {&narrow_v_, &narrow_out_}) *rows = arena_.take(in.dim_v < W ? in.tokens * W : 0);
  }

  static int64_t floats(const PlusInputs& in) { return NystraPlus(in, nullptr).arena_.used(); }

  void run(int64_t window, int64_t head) {
    place(window, head);
    start_clusters();
    join_clusters();
    form_means();
    attend_from_means();
    correct_values();
    attend_to_means();
    if (in_.dim_v < W) narrow_output(in_.out.at(window, head));
  }

 private:
  void place(int64_t window, int64_t head) {
    const int64_t all = in_blocks(in_.tokens);
    q_ = widened(in_.q.at(window, head), in_.dim, in_.tokens, narrow_q_);
    k_ = widened(in_.k.at(window, head), in_.dim, in_.tokens, narrow_k_);
    v_ = widened(in_.v.at(window, head), in_.dim_v, in_.tokens, narrow_v_);
    out_ = in_.dim_v < W ? Tokens<float>{narrow_out_, W} : in_.out.at(window, head);
    f_panel_ = in_.queries + head * all * in_.rank;
    g_panel_ = in_.keys + head * all * in_.rank;
    features_ = {in_.features + head * in_.tokens * in_.feature_row, in_.feature_row};
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
      std::copy_n(features_.row(token) + in_.rank, in_.rank, mark + dim_);
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
      turn_into_columns(first, width);
      logits_of_block(half_square_, k_marks_, k_panel_, g_panel_, first, width);
      find_nearest(first, width);
      add_to_sums(first);
    }
  }

  /// Panels of a block's keys and queries, with zeros beyond the last token, and what the tokens are to themselves.
  void turn_into_columns(int64_t first, int64_t width) {
    const int64_t count = std::min(BLOCK, in_.tokens - first);
    float *keys = k_panel_ + first * dim_, *queries = q_panel_ + first * dim_;
    transpose(k_.row(first), k_.stride, count, key_chunks_, keys, BLOCK);
    transpose(q_.row(first), q_.stride, count, key_chunks_, queries, BLOCK);
    for (int64_t c = 0; c < dim_ && count < width; ++c) {
      std::fill(keys + c * BLOCK + count, keys + c * BLOCK + width, 0.f);
      std::fill(queries + c * BLOCK + count, queries + c * BLOCK + width, 0.f);
    }
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
    for (int64_t t = first; t < last; ++t) join(t, labels_[t]);
    for (auto it = more_.rbegin(); it != more_.rend() && it->first >= first; ++it) join(it->first, it->second);
  }

  void join(int64_t token, int64_t cluster) {
    float* sum = sums_ + cluster * sum_row_;
    sum = add_row(sum, q_.row(token), key_chunks_);
    sum = add_row(sum, k_.row(token), key_chunks_);
    sum = add_row(sum, v_.row(token), value_chunks_);
    const float* features = features_.row(token);
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
    std::fill_n(log_sizes_, squares_.width, NOTHING); // nobody attends to an empty cluster
    std::fill_n(k_marks_across_, wide_ * squares_.width, 0.f);
    for (int64_t c = 0; c < in_.marks; ++c) {
      const float share = shares_[c] = 1.f / std::max(sizes_[c], 1.f);
      if (sizes_[c] > 0) log_sizes_[c] = std::log(sizes_[c]);
      const float* sum = sums_ + c * sum_row_;
      float *queries = q_marks_ + c * wide_, *keys = k_marks_ + c * wide_;
      scatter(sum, share, queries);
      scatter(sum + key_chunks_.padded(), share, keys);
      const float *values = sum + 2 * key_chunks_.padded(), *features = values + value_row_;
      for (int64_t i = 0; i < value_row_; i += W)
        (Vec::loadu(values + i) * Vec(share)).store(v_marks_ + c * value_row_ + i);
      for (int64_t i = 0; i < in_.rank; ++i) {
        queries[dim_ + i] = features[i] * share;
        keys[dim_ + i] = features[in_.rank + i] * share;
      }
      for (int64_t i = 0; i < wide_; ++i) k_marks_across_[i * squares_.width + c] = keys[i];
    }
  }

  /// Sums in vectors become a row of means.
  void scatter(const float* sum, float share, float* row) const {
    for (int64_t chunk = 0; chunk < key_chunks_.count(); ++chunk)
      (Vec::loadu(sum + chunk * W) * Vec(share)).store(row + key_chunks_.start(chunk));
  }

  /// softmax(Q'K^T) V for the mean queries, block by block with a running maximum.
  void attend_from_means() {
    std::fill_n(row_top_, in_.marks, NOTHING);
    std::fill_n(row_total_, in_.marks, 0.f);
    std::fill_n(correct_, in_.marks * value_row_, 0.f);
    for (int64_t first = 0; first < in_.tokens; first += BLOCK) {
      const int64_t count = std::min(BLOCK, in_.tokens - first), width = block_width(first, in_.tokens);
      logits_of_block(nullptr, q_marks_, k_panel_, g_panel_, first, width);
      for (int64_t i = 0; i < in_.marks; ++i) {
        float* row = block_ + i * BLOCK;
        std::fill(row + count, row + width, NOTHING);
        const float top = std::max(row_top_[i], largest_in(row, width));
        if (top > row_top_[i]) {
          const float factor = std::exp(row_top_[i] - top);
          scale(correct_ + i * value_row_, value_row_, factor);
          row_total_[i] *= factor;
          row_top_[i] = top;
        }
        row_total_[i] += weigh(row, width, top);
      }
      for_tiles(in_.marks, value_chunks_.count(), [&]<int R, int C>(int64_t i, int64_t chunk) {
        Tile<R, C> tile;
        float* to = correct_ + i * value_row_ + chunk * W;
        tile.load(to, value_row_);
        const auto values = of_row<C>(v_.row(first), value_chunks_, chunk);
        tile.add_product(block_ + i * BLOCK, BLOCK, 1, values, v_.stride, count);
        tile.store(to, value_row_);
      });
    }
  }

  /// V' + P (U V - A V'): what the clusters' values become.
  void correct_values() {
    const float* inverse = inverse_of_kernel();
    const float* kernel = matrices_;
    const int64_t width = squares_.width;
    for_tiles(in_.marks, value_chunks_.count(), [&]<int R, int C>(int64_t i, int64_t chunk) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(kernel + i * width, width, 1, beside<C>(v_marks_ + chunk * W), value_row_, in_.marks);
      Tile<R, C>::each([&](auto r, auto c) {
        float* at = correct_ + (i + r) * value_row_ + (chunk + c) * W;
        (Vec::loadu(at) * Vec(1.f / row_total_[i + r]) - tile.value[r][c]).store(at);
      });
    });
    for_tiles(in_.marks, value_chunks_.count(), [&]<int R, int C>(int64_t i, int64_t chunk) {
      Tile<R, C> tile;
      const int64_t at = i * value_row_ + chunk * W;
      tile.load(v_marks_ + at, value_row_);
      tile.add_product(inverse + i * width, width, 1, beside<C>(correct_ + chunk * W), value_row_, in_.marks);
      tile.store(values_ + at, value_row_);
    });
  }

  /// A = softmax(Q'K'^T + log n), which stays the first of `matrices_`, and its pseudo-inverse.
  const float* inverse_of_kernel() {
    const int64_t width = squares_.width;
    for_tiles(in_.marks, width / W, [&]<int R, int C>(int64_t i, int64_t j) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(q_marks_ + i * wide_, wide_, 1, beside<C>(k_marks_across_ + j * W), width, wide_);
      Tile<R, C>::each([&](auto r, auto c) {
        const Vec sizes = Vec::loadu(log_sizes_ + (j + c) * W);
        (tile.value[r][c] + sizes).store(matrices_ + (i + r) * width + (j + c) * W);
      });
    });
    for (int64_t i = 0; i < in_.marks; ++i) {
      float* row = matrices_ + i * width;
      for (int64_t j = 0; j < in_.marks && regions_; ++j)
        if (mark_regions_[i] != mark_regions_[j]) row[j] += APART;
      const float total = weigh(row, width, largest_in(row, width));
      scale(row, width, 1.f / total);
    }
    const auto [columns, rows] = squares_.norms(matrices_);
    return squares_.pseudo_inverse(matrices_, columns * rows, in_.iterations, matrices_);
  }

  /// Each token's attention to the clusters, and to itself beyond its part in its cluster.
  void attend_to_means() {
    auto more = more_.begin();
    for (int64_t first = 0; first < in_.tokens; first += BLOCK) {
      const int64_t count = std::min(BLOCK, in_.tokens - first), width = block_width(first, in_.tokens);
      logits_of_block(log_sizes_, k_marks_, q_panel_, f_panel_, first, width);
      weigh_columns(first, width);
      if (in_.exact_diagonal) {
        alignas(64) float within[BLOCK];
        for (int64_t t = 0; t < width; ++t) {
          const int32_t label = labels_[first + t];
          within[t] = block_[label * BLOCK + t] * shares_[label];
        }
        for (; more != more_.end() && more->first < first + BLOCK; ++more)
          within[more->first - first] += block_[more->second * BLOCK + more->first - first] * shares_[more->second];
        write_block<true>(first, count, width, within);
      } else {
        write_block<false>(first, count, width, nullptr);
      }
    }
  }

  /// Logits of a block become weights against the largest of their column, which is kept, as is their sum.
  void weigh_columns(int64_t first, int64_t width) {
    for (int64_t t = 0; t < width; t += W) {
      Vec top = in_.exact_diagonal ? Vec::loadu(own_ + first + t) : Vec::loadu(block_ + t);
      for (int64_t c = 0; c < in_.marks; ++c) top = larger(top, Vec::loadu(block_ + c * BLOCK + t));
      Vec total(0.f);
      for (int64_t c = 0; c < in_.marks; ++c) {
        float* at = block_ + c * BLOCK + t;
        const Vec w = weight(Vec::loadu(at) - top);
        w.store(at);
        total = total + w;
      }
      top.store(top_ + t);
      total.store(total_ + t);
    }
  }

  template <bool exact_diagonal>
  void write_block(int64_t first, int64_t count, int64_t width, const float* within) {
    float *own = top_, *factor = total_; // what they become
    for (int64_t t = 0; t < width; t += W) {
      Vec total = Vec::loadu(total_ + t), beyond(0.f);
      if constexpr (exact_diagonal) {
        beyond = weight(Vec::loadu(own_ + first + t) - Vec::loadu(top_ + t)) - Vec::loadu(within + t);
        total = total + beyond;
      }
      const Vec inverse = Vec(1.f) / total;
      inverse.store(factor + t);
      (beyond * inverse).store(own + t);
    }
    for_tiles(count, value_chunks_.count(), [&]<int R, int C>(int64_t t, int64_t chunk) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(block_ + t, 1, BLOCK, beside<C>(values_ + chunk * W), value_row_, in_.marks);
      Tile<R, C>::each([&](auto r, auto c) {
        const int64_t token = first + t + r, start = value_chunks_.start(chunk + c);
        Vec row = tile.value[r][c] * Vec(factor[t + r]);
        if constexpr (exact_diagonal)
          row = at::vec::fmadd(Vec(own[t + r]), Vec::loadu(v_.row(token) + start), row);
        row.store(out_.row(token) + start);
      });
    });
  }

  void narrow_output(Tokens<float> to) const {
    for (int64_t t = 0; t < in_.tokens; ++t) std::copy_n(out_.row(t), in_.dim_v, to.row(t));
  }

  const PlusInputs& in_;
  const Chunks key_chunks_, value_chunks_;
  const int64_t dim_; // of queries and keys, filled up to a vector
  const int64_t wide_; // with features
  const int64_t value_row_; // of values in vectors
  const int64_t sum_row_; // sums of a cluster's queries, keys, values, F and G, in vectors
  const Squares squares_;
  Arena arena_;

  Tokens<const float> q_{}, k_{}, v_{}, features_{};
  Tokens<float> out_{};
  const float *f_panel_{}, *g_panel_{}, *diagonal_{}, *regions_{};
  std::vector<std::pair<int64_t, int64_t>> more_; // tokens and further clusters that they join

  float *k_panel_, *q_panel_, *own_, *block_, *top_, *total_;
  int32_t* labels_;
  float *half_square_, *sizes_, *shares_, *log_sizes_, *row_top_, *row_total_, *mark_regions_;
  float *sums_, *q_marks_, *k_marks_, *k_marks_across_, *v_marks_, *correct_, *values_, *matrices_;
  float *narrow_q_, *narrow_k_, *narrow_v_, *narrow_out_;
};

} // namespace nystra
