// nystra_plus (attention/nystra_plus.py, version 4.1) of one window and head at a time.
//
// Three passes over its tokens: they join clusters, whose means are formed; attention of the mean queries; attention to
// the clusters, which writes the output.
#pragma once

#include "clusters.h"

namespace nystra {

class NystraPlus : Clusters {
 public:
  /// `memory` holds `floats(in)`; none is needed to count them.
  NystraPlus(const PlusInputs& in, float* memory) : Clusters(in, memory), squares_{in.marks, across_} {
    total_ = arena_.take(BLOCK);
    for (float** row : {&row_top_, &row_total_}) *row = arena_.take(across_);
    for (float** values : {&correct_, &values_}) *values = arena_.take(in.marks * value_row_);
    matrices_ = arena_.take(5 * squares_.floats());
    packed_out_ = arena_.take(in.packed(in.dim_v));
  }

  static int64_t floats(const PlusInputs& in) { return NystraPlus(in, nullptr).arena_.used(); }

  void run(int64_t window, int64_t head) {
    form(window, head);
    attend_from_means();
    correct_values();
    out_ = places_.room(in_.out, head, in_.dim_v, packed_out_);
    attend_to_means();
    places_.write_back(out_, in_.out, head, in_.dim_v);
  }

 private:
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
        places_.for_runs(first, count, [&](int64_t t, int64_t n) {
          const auto values = of_row<C>(v_.row(t), value_chunks_, chunk);
          tile.add_product(block_ + i * BLOCK + t - first, BLOCK, 1, values, v_.stride, n);
        });
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
      for (int64_t r = 0; r < R && chunk == 0; ++r) out_.fetch(first + t + r + AHEAD);
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

  const Squares squares_;
  Tokens<float> out_{};
  float *total_, *row_top_, *row_total_, *correct_, *values_, *matrices_, *packed_out_;
};

} // namespace nystra
