// PnP-Nystra as published (attention/nystra.py) of one window and head at a time.
//
// In two steps, since the published start of the pseudo-inverse has norms over all windows and heads: `pool` forms the
// landmarks and their kernel matrix, `attend` the rest, as L (Z (U V)) block by block.
#pragma once

#include "tokens.h"

namespace nystra {

struct NystraInputs : Inputs {
  int64_t height, width; // of a window
  int64_t rows, columns; // the landmarks' grid
  int64_t iterations;
  float guard;
  float* pooled; // landmarks and kernel matrix of each window and head, (windows * heads, Nystra::kept)

  int64_t marks() const { return rows * columns; }
};

class Nystra {
 public:
  /// `memory` holds `floats(in)`; none is needed to count them.
  Nystra(const NystraInputs& in, float* memory)
      : in_(in),
        key_chunks_{std::max(in.dim, W)},
        value_chunks_{std::max(in.dim_v, W)},
        dim_(key_chunks_.width),
        value_row_(value_chunks_.padded()),
        squares_{in.marks(), (in.marks() + W - 1) / W * W},
        arena_(memory),
        places_(in, arena_) {
    const int64_t m = in.marks();
    panel_ = arena_.take(dim_ * BLOCK);
    block_ = arena_.take(m * BLOCK);
    across_ = arena_.take(dim_ * squares_.width);
    for (float** row : {&sums_, &mixed_sums_}) *row = arena_.take(squares_.width);
    for (float** values : {&right_, &values_}) *values = arena_.take(m * value_row_);
    matrices_ = arena_.take(5 * squares_.floats());
    packed_keys_ = arena_.take(in.packed(in.dim));
    for (float** rows : {&packed_v_, &packed_out_}) *rows = arena_.take(in.packed(in.dim_v));
  }

  static int64_t floats(const NystraInputs& in) { return Nystra(in, nullptr).arena_.used(); }

  /// Floats that `pooled` keeps of a window and head.
  static int64_t kept(const NystraInputs& in) {
    const Nystra sizes(in, nullptr);
    return 2 * in.marks() * sizes.dim_ + sizes.squares_.floats();
  }

  /// Landmarks and their kernel matrix; returns the matrix's two norms.
  std::pair<float, float> pool(int64_t window, int64_t head, int64_t place) {
    const int64_t m = in_.marks(), width = squares_.width;
    float *queries = kept_at(place), *keys = queries + m * dim_, *matrix = keys + m * dim_;
    places_.turn_to(window);
    pool_rows(keys_of(in_.q, head), in_.scale, queries);
    pool_rows(keys_of(in_.k, head), 1.f, keys);
    std::fill_n(across_, dim_ * width, 0.f);
    for (int64_t j = 0; j < m; ++j)
      for (int64_t c = 0; c < dim_; ++c) across_[c * width + j] = keys[j * dim_ + c];
    for_tiles(m, width / W, [&]<int R, int C>(int64_t i, int64_t j) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(queries + i * dim_, dim_, 1, beside<C>(across_ + j * W), width, dim_);
      store_kernel(tile, matrix + i * width + j * W, width);
    });
    for (int64_t i = 0; i < m; ++i) std::fill(matrix + i * width + m, matrix + (i + 1) * width, 0.f);
    return squares_.norms(matrix);
  }

  void attend(int64_t window, int64_t head, int64_t place, float norm_product) {
    const float *queries = kept_at(place), *keys = queries + in_.marks() * dim_, *matrix = keys + in_.marks() * dim_;
    places_.turn_to(window);
    v_ = places_.read(in_.v, head, in_.dim_v, packed_v_);
    attend_from_landmarks(keys_of(in_.k, head), queries);
    mix_landmarks(squares_.pseudo_inverse(matrix, norm_product, in_.iterations, matrices_));
    out_ = places_.room(in_.out, head, in_.dim_v, packed_out_);
    attend_to_landmarks(keys_of(in_.q, head), keys);
    places_.write_back(out_, in_.out, head, in_.dim_v);
  }

 private:
  float* kept_at(int64_t place) const {
    return in_.pooled + place * (2 * in_.marks() * dim_ + squares_.floats());
  }

  /// Keys or queries of a head.
  Tokens<const float> keys_of(const Batch& from, int64_t head) const {
    return places_.read(from, head, in_.dim, packed_keys_);
  }

  /// Means over the cells of the landmarks' grid, which overlap where it does not divide the window, times `factor`.
  void pool_rows(const Tokens<const float>& tokens, float factor, float* landmarks) const {
    for (int64_t cell = 0; cell < in_.marks(); ++cell) {
      const int64_t i = cell / in_.columns, j = cell % in_.columns;
      const int64_t top = i * in_.height / in_.rows, bottom = ((i + 1) * in_.height + in_.rows - 1) / in_.rows;
      const int64_t left = j * in_.width / in_.columns;
      const int64_t right = ((j + 1) * in_.width + in_.columns - 1) / in_.columns;
      const float share = factor / static_cast<float>((bottom - top) * (right - left));
      for (int64_t chunk = 0; chunk < key_chunks_.count(); ++chunk) {
        const int64_t start = key_chunks_.start(chunk);
        Vec sum(0.f);
        for (int64_t y = top; y < bottom; ++y)
          for (int64_t x = left; x < right; ++x) {
            if (chunk == 0) tokens.fetch((y + 1) * in_.width + x);
            sum = sum + Vec::loadu(tokens.row(y * in_.width + x) + start);
          }
        (sum * Vec(share)).store(landmarks + cell * dim_ + start);
      }
    }
  }

  /// exp(x) up to the guard g, and exp(g) + (x - g) beyond it.
  template <int R, int C>
  C10_ALWAYS_INLINE void store_kernel(const Tile<R, C>& tile, float* to, int64_t stride) const {
    const Vec guard(in_.guard);
    Tile<R, C>::each([&](auto r, auto c) {
      const Vec x = tile.value[r][c], over = x > guard;
      const Vec bounded = Vec::blendv(x, guard, over), beyond = Vec::blendv(x * Vec(0.f), x - guard, over);
      (bounded.exp_u20() + beyond).store(to + r * stride + c * W); // x * 0 is 0, and NaN where x is not finite
    });
  }

  /// The kernel between landmarks and a block of tokens, times `factor`, into `block_`.
  void kernel_of_block(
      const Tokens<const float>& tokens, float factor, const float* landmarks, int64_t first, int64_t width) {
    const int64_t count = std::min(BLOCK, in_.tokens - first);
    turn_into_columns(tokens, places_, first, count, width, key_chunks_, factor, panel_);
    for_tiles(in_.marks(), width / W, [&]<int R, int C>(int64_t i, int64_t j) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(landmarks + i * dim_, dim_, 1, beside<C>(panel_ + j * W), BLOCK, dim_);
      store_kernel(tile, block_ + i * BLOCK + j * W, BLOCK);
    });
  }

  /// U V, and the sums of U's rows.
  void attend_from_landmarks(const Tokens<const float>& keys, const float* queries) {
    std::fill_n(right_, in_.marks() * value_row_, 0.f);
    std::fill_n(sums_, in_.marks(), 0.f);
    for (int64_t first = 0; first < in_.tokens; first += BLOCK) {
      const int64_t count = std::min(BLOCK, in_.tokens - first), width = block_width(first, in_.tokens);
      for (int64_t t = first; t < first + count; ++t) v_.fetch(t);
      kernel_of_block(keys, 1.f, queries, first, width);
      for (int64_t i = 0; i < in_.marks(); ++i) {
        float* row = block_ + i * BLOCK;
        std::fill(row + count, row + width, 0.f);
        Vec sum(0.f);
        for (int64_t t = 0; t < width; t += W) sum = sum + Vec::loadu(row + t);
        sums_[i] += sum_of(sum);
      }
      for_tiles(in_.marks(), value_chunks_.count(), [&]<int R, int C>(int64_t i, int64_t chunk) {
        Tile<R, C> tile;
        float* to = right_ + i * value_row_ + chunk * W;
        tile.load(to, value_row_);
        places_.for_runs(first, count, [&](int64_t t, int64_t n) {
          const auto values = of_row<C>(v_.row(t), value_chunks_, chunk);
          tile.add_product(block_ + i * BLOCK + t - first, BLOCK, 1, values, v_.stride, n);
        });
        tile.store(to, value_row_);
      });
    }
  }

  /// Z times U V and times the sums of U's rows.
  void mix_landmarks(const float* inverse) {
    for_tiles(in_.marks(), value_chunks_.count(), [&]<int R, int C>(int64_t i, int64_t chunk) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(
          inverse + i * squares_.width, squares_.width, 1, beside<C>(right_ + chunk * W), value_row_, in_.marks());
      tile.store(values_ + i * value_row_ + chunk * W, value_row_);
    });
    for (int64_t i = 0; i < in_.marks(); ++i) {
      mixed_sums_[i] = 0;
      for (int64_t j = 0; j < in_.marks(); ++j) mixed_sums_[i] += inverse[i * squares_.width + j] * sums_[j];
    }
  }

  void attend_to_landmarks(const Tokens<const float>& queries, const float* keys) {
    for (int64_t first = 0; first < in_.tokens; first += BLOCK) {
      const int64_t count = std::min(BLOCK, in_.tokens - first), width = block_width(first, in_.tokens);
      kernel_of_block(queries, in_.scale, keys, first, width);
      alignas(64) float factor[BLOCK];
      for (int64_t t = 0; t < width; t += W) {
        Vec sum(1e-12f);
        for (int64_t i = 0; i < in_.marks(); ++i)
          sum = at::vec::fmadd(Vec::loadu(block_ + i * BLOCK + t), Vec(mixed_sums_[i]), sum);
        (Vec(1.f) / sum).store(factor + t);
      }
      for_tiles(count, value_chunks_.count(), [&]<int R, int C>(int64_t t, int64_t chunk) {
        for (int64_t r = 0; r < R && chunk == 0; ++r) out_.fetch(first + t + r + AHEAD);
        Tile<R, C> tile;
        tile.clear();
        tile.add_product(block_ + t, 1, BLOCK, beside<C>(values_ + chunk * W), value_row_, in_.marks());
        Tile<R, C>::each([&](auto r, auto c) {
          float* to = out_.row(first + t + r) + value_chunks_.start(chunk + c);
          (tile.value[r][c] * Vec(factor[t + r])).store(to);
        });
      });
    }
  }

  const NystraInputs& in_;
  const Chunks key_chunks_, value_chunks_;
  const int64_t dim_, value_row_; // filled up to vectors
  const Squares squares_;
  Arena arena_;
  Places places_;

  Tokens<const float> v_{};
  Tokens<float> out_{};
  float *panel_, *block_, *across_, *sums_, *mixed_sums_, *right_, *values_, *matrices_;
  float *packed_keys_, *packed_v_, *packed_out_;
};

} // namespace nystra
