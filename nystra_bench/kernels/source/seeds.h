// Tokens that clusters start from: far from one another, and in the order of a path from each to the nearest.
#pragma once

#include "lanes.h"

#include <limits>

namespace nystra {

/// Points in the lanes of a panel, (depth, lanes), of which some are chosen.
class Seeds {
 public:
  Seeds(Arena& arena, int64_t points, int64_t chosen, int64_t depth)
      : lanes_(whole(points, W)), path_lanes_(whole(chosen, W)) {
    panel_ = arena.take(lanes_ * whole(depth, W));
    path_panel_ = arena.take(path_lanes_ * whole(depth, W));
    nearest_ = arena.take(lanes_);
    for (int32_t** numbers : {&chosen_, &path_}) *numbers = reinterpret_cast<int32_t*>(arena.take(chosen));
  }

  int64_t lanes() const { return lanes_; }

  /// Where point i has its columns: at(i)[c * lanes()].
  float* at(int64_t i) const { return panel_ + i; }

  /// The numbers of `count` points of `points`: the first, then always the farthest from those that are chosen
  /// (farthest_points in attention/clusters.py), and these from the first on always the nearest that is left.
  const int32_t* find(int64_t points, int64_t count, int64_t depth) {
    for (int64_t i = 0; i < lanes_; ++i) nearest_[i] = i < points ? std::numeric_limits<float>::infinity() : TAKEN;
    chosen_[0] = 0;
    for (int64_t i = 1; i < count; ++i) {
      nearest_[chosen_[i - 1]] = TAKEN;
      chosen_[i] = advance<true>(panel_, lanes_, depth, chosen_[i - 1]);
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < depth; ++c) path_panel_[c * path_lanes_ + i] = panel_[c * lanes_ + chosen_[i]];
    std::fill_n(nearest_, path_lanes_, 0.f);
    for (int64_t i = count; i < path_lanes_; ++i) nearest_[i] = TAKEN;
    int64_t here = 0;
    path_[0] = chosen_[0];
    for (int64_t i = 1; i < count; ++i) {
      nearest_[here] = TAKEN;
      here = advance<false>(path_panel_, path_lanes_, depth, here);
      path_[i] = chosen_[here];
    }
    return path_;
  }

 private:
  static constexpr float TAKEN = -1.f;

  /// The next point: the farthest from those that are chosen, whose distances are kept, or the nearest that is left.
  template <bool farthest>
  int64_t advance(const float* panel, int64_t lanes, int64_t depth, int64_t from) {
    Vec best(-std::numeric_limits<float>::infinity()), number(0.f);
    for (int64_t t = 0; t < lanes; t += W) {
      Vec distance(0.f);
      for (int64_t c = 0; c < depth; ++c) {
        const Vec apart = Vec::loadu(panel + c * lanes + t) - Vec(panel[c * lanes + from]);
        distance = at::vec::fmadd(apart, apart, distance);
      }
      Vec kept = Vec::loadu(nearest_ + t), score;
      if constexpr (farthest) {
        kept = Vec::blendv(kept, distance, distance < kept);
        kept.store(nearest_ + t);
        score = kept;
      } else {
        score = Vec::blendv(distance.neg(), Vec(-std::numeric_limits<float>::infinity()), kept < Vec(0.f));
      }
      const Vec better = score > best;
      best = Vec::blendv(best, score, better);
      number = Vec::blendv(number, Vec(static_cast<float>(t)), better);
    }
    alignas(64) float scores[W], numbers[W];
    best.store(scores);
    number.store(numbers);
    int64_t lane = 0;
    for (int64_t i = 1; i < W; ++i)
      if (scores[i] > scores[lane] || (scores[i] == scores[lane] && numbers[i] + i < numbers[lane] + lane)) lane = i;
    return static_cast<int64_t>(numbers[lane]) + lane;
  }

  const int64_t lanes_, path_lanes_;
  float *panel_, *path_panel_, *nearest_;
  int32_t *chosen_, *path_;
};

} // namespace nystra
