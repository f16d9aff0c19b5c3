// Products of small float32 matrices in registers, and what is done to their rows: the parts of all kernels.
//
// Vectors are PyTorch's own (at::vec), so that one source serves AVX2, AVX-512 and NEON.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/macros/Macros.h>
#include <c10/util/Unroll.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

namespace nystra {

using Vec = at::vec::Vectorized<float>;

/// Floats in a vector.
constexpr int64_t W = Vec::size();

/// Logits this far below the largest count for nothing (as in the eager form): what they become is subnormal, and slow.
constexpr float FAINT = -60.f;

/// As good as the logarithm of nothing; other than minus infinity, it times 0 is 0.
constexpr float NOTHING = -1e30f;

/// Rows in vectors: all but the last start at multiples of W, the last ends where the row ends, and so may overlap.
struct Chunks {
  int64_t width; // at least W
  int64_t count() const { return (width + W - 1) / W; }
  int64_t padded() const { return count() * W; }
  int64_t start(int64_t chunk) const { return std::min(chunk * W, width - W); }
};

template <int C>
using Columns = std::array<const float*, C>;

/// C vectors side by side.
template <int C>
C10_ALWAYS_INLINE Columns<C> beside(const float* first) {
  Columns<C> columns;
  for (int c = 0; c < C; ++c) columns[c] = first + c * W;
  return columns;
}

/// C vectors of a row, from a chunk on.
template <int C>
C10_ALWAYS_INLINE Columns<C> of_row(const float* row, Chunks chunks, int64_t chunk) {
  Columns<C> columns;
  for (int c = 0; c < C; ++c) columns[c] = row + chunks.start(chunk + c);
  return columns;
}

/// A block of R rows and C vectors, in registers.
template <int R, int C>
struct Tile {
  Vec value[R][C];

  template <class F>
  static C10_ALWAYS_INLINE void each(const F& f) {
    c10::ForcedUnroll<R>{}([&](auto r) { c10::ForcedUnroll<C>{}([&](auto c) { f(r, c); }); });
  }

  C10_ALWAYS_INLINE void clear() {
    each([&](auto r, auto c) { value[r][c] = Vec(0.f); });
  }

  /// Each row starts from a number of its own.
  C10_ALWAYS_INLINE void start_from(const float* rows) {
    each([&](auto r, auto c) { value[r][c] = Vec(rows[r]); });
  }

  C10_ALWAYS_INLINE void load(const float* from, int64_t stride) {
    each([&](auto r, auto c) { value[r][c] = Vec::loadu(from + r * stride + c * W); });
  }

  C10_ALWAYS_INLINE void store(float* to, int64_t stride) const {
    each([&](auto r, auto c) { value[r][c].store(to + r * stride + c * W); });
  }

  /// Adds left @ right: left(r, k) is at left[r * row + k * column], row k of right `stride` further on than row k - 1.
  C10_ALWAYS_INLINE void add_product(
      const float* left, int64_t row, int64_t column, Columns<C> right, int64_t stride, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
      Vec across[C];
      c10::ForcedUnroll<C>{}([&](auto c) { across[c] = Vec::loadu(right[c] + k * stride); });
      c10::ForcedUnroll<R>{}([&](auto r) {
        const Vec down(left[r * row]);
        c10::ForcedUnroll<C>{}([&](auto c) { value[r][c] = at::vec::fmadd(down, across[c], value[r][c]); });
      });
      left += column;
    }
  }

  /// Adds a product whose left side may lie anywhere: down(r, k); row k of right is `stride` further on than row k - 1.
  template <class Down>
  C10_ALWAYS_INLINE void add_product(const Down& down, const float* right, int64_t stride, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k, right += stride) {
      Vec across[C];
      c10::ForcedUnroll<C>{}([&](auto c) { across[c] = Vec::loadu(right + c * W); });
      c10::ForcedUnroll<R>{}([&](auto r) {
        const Vec left(down(r, k));
        c10::ForcedUnroll<C>{}([&](auto c) { value[r][c] = at::vec::fmadd(left, across[c], value[r][c]); });
      });
    }
  }

  /// Adds `apart` where a column is of another region than the row.
  C10_ALWAYS_INLINE void keep_apart(const float* rows, const float* columns, float apart) {
    each([&](auto r, auto c) {
      const Vec same = Vec::loadu(columns + c * W) == Vec(rows[r]);
      value[r][c] = value[r][c] + Vec::blendv(Vec(apart), Vec(0.f), same);
    });
  }
};

/// Calls body.template operator()<R, C>(row, vector) for tiles that cover `rows` rows and `vectors` vectors.
template <class Body>
C10_ALWAYS_INLINE void for_tiles(int64_t rows, int64_t vectors, const Body& body) {
  const auto column = [&]<int C>(int64_t vector) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) body.template operator()<4, C>(row, vector);
    for (; row < rows; ++row) body.template operator()<1, C>(row, vector);
  };
  int64_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2) column.template operator()<2>(vector);
  if (vector < vectors) column.template operator()<1>(vector);
}

/// exp of logits less the largest, to 2 10^-7, and 0 below FAINT; what is not finite becomes NaN.
///
/// x = n ln 2 + r: e^r by a polynomial (of degree 5, Chebyshev, |r| <= ln 2 / 2), whose exponent is raised by n. The
/// sum with 1.5 2^23 rounds x / ln 2 to n, and has n in its last bits.
C10_ALWAYS_INLINE Vec weight(const Vec& x) {
  using Bits = at::vec::Vectorized<int32_t>;
  constexpr float ROUNDING = 12582912.f, LOG2_E = 1.44269504f, LN2 = 0.693147182f;
  constexpr float POWERS[] = {8.3751289e-3f, 4.1917530e-2f, 0.16666415f, 0.49998869f, 1.f, 1.f};
  const Vec rounded = at::vec::fmadd(x, Vec(LOG2_E), Vec(ROUNDING));
  const Vec r = at::vec::fmadd(Vec(ROUNDING) - rounded, Vec(LN2), x);
  Vec power(POWERS[0]);
  c10::ForcedUnroll<5>{}([&](auto i) { power = at::vec::fmadd(power, r, Vec(POWERS[i + 1])); });
  const Bits raised = at::vec::cast<int32_t>(power) + (at::vec::cast<int32_t>(rounded) << Bits(23));
  const Vec plain = Vec::blendv(at::vec::cast<float>(raised), Vec(0.f), x < Vec(FAINT));
  return at::vec::fmadd(x, Vec(0.f), plain);
}

C10_ALWAYS_INLINE Vec larger(const Vec& a, const Vec& b) {
  return Vec::blendv(a, b, b > a);
}

inline float largest_of(const Vec& x) {
  alignas(64) float lanes[W];
  x.store(lanes);
  return *std::max_element(lanes, lanes + W);
}

inline float sum_of(const Vec& x) {
  alignas(64) float lanes[W];
  x.store(lanes);
  float sum = 0;
  for (int64_t i = 0; i < W; ++i) sum += lanes[i];
  return sum;
}

/// The largest of a row whose width is a multiple of W.
inline float largest_in(const float* row, int64_t width) {
  Vec top = Vec::loadu(row);
  for (int64_t j = W; j < width; j += W) top = larger(top, Vec::loadu(row + j));
  return largest_of(top);
}

/// A row of logits becomes their weights against `top`; returns the weights' sum.
inline float weigh(float* row, int64_t width, float top) {
  Vec sum(0.f);
  for (int64_t j = 0; j < width; j += W) {
    const Vec w = weight(Vec::loadu(row + j) - Vec(top));
    w.store(row + j);
    sum = sum + w;
  }
  return sum_of(sum);
}

inline void scale(float* row, int64_t width, float factor) {
  for (int64_t j = 0; j < width; j += W) (Vec::loadu(row + j) * Vec(factor)).store(row + j);
}

/// Square matrices of `size` rows, each filled up with zeros to `width`, a multiple of W.
struct Squares {
  int64_t size, width;

  int64_t floats() const { return size * width; }

  /// out = add_factor * add + factor * (a @ b); `out` may be `add`, and neither a nor b.
  void multiply(const float* a, const float* b, float factor, const float* add, float add_factor, float* out) const {
    for_tiles(size, width / W, [&]<int R, int C>(int64_t i, int64_t j) {
      Tile<R, C> tile;
      tile.clear();
      tile.add_product(a + i * width, width, 1, beside<C>(b + j * W), width, size);
      Tile<R, C>::each([&](auto r, auto c) {
        const int64_t at = (i + r) * width + (j + c) * W;
        (Vec(factor) * tile.value[r][c] + Vec(add_factor) * Vec::loadu(add + at)).store(out + at);
      });
    });
  }

  /// The largest sums of absolute values of a column and of a row.
  std::pair<float, float> norms(const float* a) const {
    float columns = 0, rows = 0;
    for (int64_t j = 0; j < width; j += W) {
      Vec sum(0.f);
      for (int64_t i = 0; i < size; ++i) sum = sum + Vec::loadu(a + i * width + j).abs();
      columns = std::max(columns, largest_of(sum));
    }
    for (int64_t i = 0; i < size; ++i) {
      Vec sum(0.f);
      for (int64_t j = 0; j < width; j += W) sum = sum + Vec::loadu(a + i * width + j).abs();
      rows = std::max(rows, sum_of(sum));
    }
    return {columns, rows};
  }

  /// The pseudo-inverse by Razavi's iteration (razavi_pinv in attention/pinv.py) from A^T over the product of norms.
  ///
  /// `memory` holds five matrices, and the result is one of them; a may be the first.
  const float* pseudo_inverse(const float* a, float norm_product, int64_t iterations, float* memory) const {
    float *z = memory + floats(), *next = z + floats(), *az = next + floats(), *step = az + floats();
    std::fill(z, next, 0.f);
    const float factor = 1.f / (norm_product + 1e-15f);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j) z[j * width + i] = a[i * width + j] * factor;
    for (int64_t iteration = 0; iteration < iterations; ++iteration) {
      multiply(a, z, 1.f, z, 0.f, az);
      multiply(az, az, -1.f, az, 7.f, step);
      multiply(az, step, -1.f, az, 15.f, next);
      std::swap(step, next);
      multiply(z, step, -0.25f, z, 3.25f, next);
      std::swap(z, next);
    }
    return z;
  }
};

/// Hands out the parts of one piece of memory, or counts what they need where there is none yet.
class Arena {
 public:
  explicit Arena(float* memory) : memory_(memory) {}

  float* take(int64_t floats) {
    float* part = memory_ ? memory_ + used_ : nullptr;
    used_ += (floats + 15) / 16 * 16; // parts start with cache lines
    return part;
  }

  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

/// Tokens that are worked on at once: what there is of them stays in the first cache. Panels are cut into blocks, since
/// rows of a panel that are a power of two apart would all want the same few places of it.
constexpr int64_t BLOCK = 64;

static_assert(BLOCK % (2 * W) == 0, "blocks are cut into tiles of two vectors");

/// Tokens of a block that starts at `first`, filled up to tiles.
inline int64_t block_width(int64_t first, int64_t tokens) {
  return std::min(BLOCK, (tokens - first + 2 * W - 1) / (2 * W) * (2 * W));
}

inline int64_t in_blocks(int64_t tokens) {
  return (tokens + BLOCK - 1) / BLOCK * BLOCK;
}

} // namespace nystra
