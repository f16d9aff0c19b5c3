// Softmax attention of a few queries, which lie in the lanes of vectors, to rows of keys and values anywhere in memory.
#pragma once

#include "tiles.h"

namespace nystra {

/// Lists of rows are filled up to so many, so that none is left over for a tile of its own.
constexpr int64_t TOGETHER = 8;

/// Lanes that are worked on at once: with their weights for `ATTENDED` rows they stay in the first cache.
constexpr int64_t SLICE = 4 * W;

/// Rows that are attended to at once.
constexpr int64_t ATTENDED = 128;

static_assert(ATTENDED % TOGETHER == 0);

inline int64_t whole(int64_t count, int64_t of) {
  return (count + of - 1) / of * of;
}

/// Rows of floats with a number each, as a list that can be filled up.
struct List {
  const float** rows;
  float* starts;
  int32_t* tokens; // of rows that are single tokens: which; null where nobody asks for it
  int64_t count = 0;

  void add(const float* row, float start, int32_t token = 0) {
    rows[count] = row;
    if (tokens) tokens[count] = token;
    starts[count++] = start;
  }

  /// Fills up to whole tiles with a row that counts for nothing.
  void fill_up() {
    while (count % TOGETHER) add(rows[count - 1], NOTHING);
  }
};

/// A number for each query and token, beside the products of the first rows of a list (`BiasOfPairs` in pairs.py):
/// entries[queries[lane] + keys[token]] less the lane's mean.
struct PairBias {
  int64_t rows; // the first rows of a list that it is for, in whole tiles
  int64_t passed; // columns before those of their products, which say what it says
  const float* entries;
  const int32_t *queries, *keys;
  const float* means; // of the lanes, as `queries` are
};

/// Calls body.template operator()<R, C>(lane) for C vectors of lanes at a time, in tiles of R rows.
template <class Body>
C10_ALWAYS_INLINE void for_lanes(int64_t lanes, const Body& body) {
  int64_t lane = 0;
  for (; lane + 2 * W <= lanes; lane += 2 * W) body.template operator()<4, 2>(lane);
  if (lane < lanes) body.template operator()<8, 1>(lane);
}

/// `count` rows, `stride` apart and of `width` floats (whole vectors), as columns of a panel `lanes` wide; the last row
/// again in the lanes that are left.
inline void turn_into_lanes(
    const float* rows, int64_t stride, int64_t count, int64_t width, float* panel, int64_t lanes) {
  for (int64_t t = 0; t < lanes; t += W) {
    alignas(64) float near[W * W];
    const bool whole_vector = t + W <= count;
    for (int64_t c = 0; c < width; c += W) {
      const float* from = rows + t * stride + c;
      if (!whole_vector)
        for (int64_t r = 0; r < W; ++r)
          Vec::loadu(rows + std::min(t + r, count - 1) * stride + c).store(near + r * W);
      at::vec::transpose_mxn<float, static_cast<int>(W), static_cast<int>(W)>(
          whole_vector ? from : near, whole_vector ? stride : W, panel + c * lanes + t, lanes);
    }
  }
}

/// Rows @ panel, plus each row's start: out[row * lanes + lane]. `count` fills whole tiles; the columns before `begin`
/// are left out.
inline void products(
    const List list, int64_t first, int64_t count, const float* panel, int64_t lanes, int64_t depth, float* out,
    int64_t begin = 0) {
  // By value: what is read through a reference is read again after each store.
  for_lanes(lanes, [=]<int R, int C>(int64_t lane) {
    for (int64_t i = 0; i < count; i += R) {
      Tile<R, C> tile;
      tile.start_from(list.starts + first + i);
      const float* left[R];
      std::copy_n(list.rows + first + i, R, left);
      tile.add_product(
          [&](auto r, int64_t k) { return left[r][begin + k]; }, panel + begin * lanes + lane, lanes, depth - begin);
      tile.store(out + i * lanes + lane, lanes);
    }
  });
}

/// Attention of up to SLICE queries, with a running maximum.
class Attending {
 public:
  /// Values of `width` floats, in whole vectors, `offset` floats behind the beginning of their rows.
  Attending(Arena& arena, int64_t width) : width_(width) {
    weights_ = arena.take(ATTENDED * SLICE);
    sums_ = arena.take(width * SLICE);
    for (float** row : {&before_, &total_}) *row = arena.take(SLICE);
  }

  /// Outputs (count, width) of the queries in the first lanes of a panel, to a list that is filled up.
  ///
  /// @param depth of the products of queries and keys, with which rows begin; `offset`: where their values do.
  /// @param bias of the first rows, for which it and a product of fewer columns stand in the place of the whole one.
  void run(
      const List& list, const float* panel, int64_t lanes, int64_t depth, int64_t offset, int64_t count, float* out,
      const PairBias& bias = {}) {
    std::fill_n(sums_, width_ * lanes, 0.f);
    std::fill_n(total_, lanes, 0.f);
    std::fill_n(before_, lanes, NOTHING);
    for (int64_t first = 0; first < list.count; first += ATTENDED) {
      const int64_t rows = std::min(ATTENDED, list.count - first);
      const int64_t single = std::clamp<int64_t>(bias.rows - first, 0, rows);
      products(list, first, single, panel, lanes, depth, weights_, bias.passed);
      add_bias(list, first, single, lanes, bias);
      products(list, first + single, rows - single, panel, lanes, depth, weights_ + single * lanes);
      weigh(rows, lanes, first > 0);
      add_values(list.rows + first, rows, lanes, offset);
    }
    write(lanes, count, out);
  }

 private:
  void add_bias(const List& list, int64_t first, int64_t rows, int64_t lanes, const PairBias& bias) {
    float* weights = weights_;
    const int32_t* tokens = list.tokens + first;
    for (int64_t lane = 0; lane < lanes && rows > 0; lane += W) {
      const auto queries = at::vec::Vectorized<int32_t>::loadu(bias.queries + lane);
      const Vec mean = Vec::loadu(bias.means + lane);
      for (int64_t i = 0; i < rows; ++i) {
        float* at = weights + i * lanes + lane;
        const Vec found = at::vec::gather<sizeof(float)>(bias.entries + bias.keys[tokens[i]], queries);
        (Vec::loadu(at) + (found - mean)).store(at);
      }
    }
  }

  /// Products become weights against the largest; before it the sums of earlier rows were against another.
  void weigh(int64_t rows, int64_t lanes, bool again) {
    float* weights = weights_;
    for_lanes(lanes, [=, this]<int, int C>(int64_t lane) {
      Vec top[C], total[C];
      c10::ForcedUnroll<C>{}([&](auto c) {
        top[c] = Vec::loadu(before_ + lane + c * W);
        total[c] = Vec(0.f);
      });
      for (int64_t i = 0; i < rows; ++i)
        c10::ForcedUnroll<C>{}([&](auto c) {
          top[c] = larger(top[c], Vec::loadu(weights + i * lanes + lane + c * W));
        });
      for (int64_t i = 0; i < rows; ++i)
        c10::ForcedUnroll<C>{}([&](auto c) {
          float* at = weights + i * lanes + lane + c * W;
          const Vec w = weight(Vec::loadu(at) - top[c]);
          w.store(at);
          total[c] = total[c] + w;
        });
      c10::ForcedUnroll<C>{}([&](auto c) {
        const int64_t t = lane + c * W;
        if (again) {
          const Vec factor = weight(Vec::loadu(before_ + t) - top[c]);
          total[c] = at::vec::fmadd(Vec::loadu(total_ + t), factor, total[c]);
          for (int64_t i = 0; i < width_; ++i) {
            float* at = sums_ + i * lanes + t;
            (Vec::loadu(at) * factor).store(at);
          }
        }
        top[c].store(before_ + t);
        total[c].store(total_ + t);
      });
    });
  }

  void add_values(const float* const* list, int64_t rows, int64_t lanes, int64_t offset) {
    const float* weights = weights_;
    float* sums = sums_;
    const int64_t width = width_;
    for_lanes(lanes, [=]<int R, int C>(int64_t lane) {
      for (int64_t i = 0; i < width; i += R) {
        Tile<R, C> tile;
        tile.load(sums + i * lanes + lane, lanes);
        tile.add_product([&](auto r, int64_t k) { return list[k][offset + i + r]; }, weights + lane, lanes, rows);
        tile.store(sums + i * lanes + lane, lanes);
      }
    });
  }

  /// Sums over their totals, a query a row.
  void write(int64_t lanes, int64_t count, float* out) {
    for (int64_t t = 0; t < lanes; t += W) {
      const Vec share = Vec(1.f) / Vec::loadu(total_ + t);
      for (int64_t i = 0; i < width_; ++i) {
        float* at = sums_ + i * lanes + t;
        (Vec::loadu(at) * share).store(at);
      }
      alignas(64) float rows[W * W];
      const int64_t there = std::min(W, count - t);
      for (int64_t i = 0; i < width_ && there > 0; i += W) {
        at::vec::transpose_mxn<float, static_cast<int>(W), static_cast<int>(W)>(sums_ + i * lanes + t, lanes, rows, W);
        for (int64_t r = 0; r < there; ++r) std::copy_n(rows + r * W, W, out + (t + r) * width_ + i);
      }
    }
  }

  const int64_t width_;
  float *weights_, *sums_, *before_, *total_;
};

} // namespace nystra
