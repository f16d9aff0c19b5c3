// nystra_plus_v5 (attention/nystra_plus_v5.py) of one window and head at a time.
//
// Each block of queries, in the order of the clusters, attends to a list of rows, which are read where they lie: its
// own tokens, those of the clusters that matter to it, and the means of all others.
#pragma once

#include "ordered.h"

namespace nystra {

class NystraPlusV5 : Ordered {
 public:
  /// `memory` holds `floats(in)`; none is needed to count them.
  NystraPlusV5(const V5Inputs& in, float* memory)
      : Ordered(in, memory), together_(in.block + in.groups), attending_(arena_, wide_) {
    const int64_t m = in.marks, blocks = in.blocks();
    queries_ = arena_.take(blocks * together_ * deepest_);
    probes_ = arena_.take(SLICE * deepest_);
    gains_ = arena_.take(blocks * m);
    list_ = take_list(whole(in.block + in.near, TOGETHER) + m + 2, true);
    query_places_ = take_numbers(SLICE);
    query_means_ = arena_.take(SLICE);
    all_ = take_list(in.groups ? in.tokens : 0);
    rests_ = arena_.take(2 * (deepest_ + wide_));
    mean_queries_ = arena_.take(blocks * in.groups * deepest_);
    right_ = arena_.take(blocks * in.groups * wide_);
    out_rows_ = arena_.take(together_ * wide_);
    packed_out_ = arena_.take(in.packed(in.dim_v));
  }

  static int64_t floats(const V5Inputs& in) { return NystraPlusV5(in, nullptr).arena_.used(); }

  void run(int64_t window, int64_t head) {
    head_ = head;
    order(window, head);
    gather_queries();
    weigh_clusters();
    if (in_.groups) answer_mean_queries();
    out_ = places_.room(in_.out, head, in_.dim_v, packed_out_);
    for (int64_t block = 0; block < in_.blocks(); ++block) attend(block);
    places_.write_back(out_, in_.out, head, in_.dim_v);
  }

 private:
  static constexpr int64_t PROBED = 8, PASSES = 3; // as in attention/blocks.py and clusters.py

  /// Each block's queries in order, the last one's again where it has fewer, and the means of its groups behind them.
  void gather_queries() {
    const int64_t of_group = in_.groups ? in_.block / in_.groups : 0;
    for (int64_t block = 0; block < in_.blocks(); ++block) {
      float* rows = queries_ + block * together_ * padded_;
      for (int64_t i = 0; i < in_.block; ++i) {
        const int64_t at = std::min(block * in_.block + i, in_.tokens - 1);
        fetch_in_order(q_, at);
        pack(q_, order_[at], in_.scale, f_, rows + i * padded_);
      }
      for (int64_t group = 0; group < in_.groups; ++group) {
        float* mean = rows + (in_.block + group) * padded_;
        mean_of(rows + group * of_group * padded_, of_group, mean);
        std::copy_n(mean, padded_, mean_queries_ + (block * in_.groups + group) * padded_);
      }
    }
  }

  void mean_of(const float* rows, int64_t count, float* mean) const {
    std::fill_n(mean, padded_, 0.f);
    for (int64_t i = 0; i < count; ++i) add(rows + i * padded_, padded_, mean);
    scale(mean, padded_, 1.f / count);
  }

  /// What each block gives to each cluster, times what its mean loses: the spread of its keys over their number.
  void weigh_clusters() {
    clusters_.count = 0;
    for (int64_t c = 0; c < in_.marks; ++c) clusters_.add(means_ + c * row_, log_sizes_[c]);
    clusters_.fill_up();
    std::fill_n(gains_, in_.blocks() * in_.marks, 0.f);
    const int64_t of_block = in_.block / PROBED, probes = in_.blocks() * of_block;
    for (int64_t first = 0; first < probes; first += SLICE) {
      const int64_t there = std::min(SLICE, probes - first), lanes = whole(there, W);
      for (int64_t i = 0; i < there; ++i) {
        const int64_t block = (first + i) / of_block, part = (first + i) % of_block;
        mean_of(queries_ + (block * together_ + part * PROBED) * padded_, PROBED, probes_ + i * padded_);
      }
      turn_into_lanes(probes_, padded_, there, padded_, panel_, lanes);
      products(clusters_, 0, clusters_.count, panel_, lanes, depth_, block_);
      for (int64_t lane = 0; lane < lanes; lane += W) weigh_lanes(lane, lanes);
      for (int64_t i = 0; i < there; ++i) {
        float* gains = gains_ + (first + i) / of_block * in_.marks;
        for (int64_t c = 0; c < in_.marks; ++c) gains[c] += block_[c * lanes + i];
      }
    }
    for (int64_t block = 0; block < in_.blocks(); ++block)
      for (int64_t c = 0; c < in_.marks; ++c) gains_[block * in_.marks + c] *= spread_[c] / std::max(sizes_[c], 1);
  }

  /// Logits of some probes become weights that sum to one. The faintest are kept: where a block holds tokens of two
  /// regions, they rank the clusters of one of them.
  void weigh_lanes(int64_t lane, int64_t lanes) {
    Vec top = Vec::loadu(block_ + lane), total(0.f);
    for (int64_t c = 1; c < in_.marks; ++c) top = larger(top, Vec::loadu(block_ + c * lanes + lane));
    for (int64_t c = 0; c < in_.marks; ++c) {
      const Vec w = (Vec::loadu(block_ + c * lanes + lane) - top).exp();
      w.store(block_ + c * lanes + lane);
      total = total + w;
    }
    const Vec share = Vec(1.f) / total;
    for (int64_t c = 0; c < in_.marks; ++c)
      (Vec::loadu(block_ + c * lanes + lane) * share).store(block_ + c * lanes + lane);
  }

  /// What all mean queries get from all tokens.
  void answer_mean_queries() {
    all_.count = 0;
    for (int64_t i = 0; i < in_.tokens; ++i) all_.add(rows_ + i * row_, 0.f);
    all_.fill_up();
    const int64_t count = in_.blocks() * in_.groups;
    for (int64_t first = 0; first < count; first += SLICE) {
      const int64_t there = std::min(SLICE, count - first);
      attend_slice(all_, mean_queries_ + first * padded_, there, right_ + first * wide_);
    }
  }

  void attend_slice(const List& list, const float* queries, int64_t count, float* out, const PairBias& bias = {}) {
    const int64_t lanes = whole(count, W);
    turn_into_lanes(queries, padded_, count, padded_, panel_, lanes);
    attending_.run(list, panel_, lanes, depth_, padded_, count, out, bias);
  }

  /// The bias of the queries of a slice that begins at this place in the order, and of the first rows of the list.
  PairBias bias_of_slice(int64_t place, int64_t rows) {
    if (!in_.entries) return {};
    for (int64_t lane = 0; lane < SLICE; ++lane) {
      const int32_t token = order_[std::min(place + lane, in_.tokens - 1)];
      query_places_[lane] = in_.query_places[token];
      query_means_[lane] = in_.means[head_ * in_.tokens + token];
    }
    const float* entries = in_.entries + head_ * in_.entry_count;
    return {rows, in_.rank, entries, query_places_, in_.key_places, query_means_};
  }

  void attend(int64_t block) {
    const int64_t begin = block * in_.block, end = std::min(begin + in_.block, in_.tokens);
    list_.count = 0;
    for (int64_t i = begin; i < end; ++i) list_.add(rows_ + i * row_, 0.f, order_[i]);
    add_near(gains_ + block * in_.marks, begin, end);
    if (in_.entries) list_.fill_up();
    const int64_t single = list_.count;
    for (int64_t c = 0; c < in_.marks; ++c)
      if (!taken_[c] && sizes_[c] > 0 && !overlap(c, begin, end)) list_.add(means_ + c * row_, log_sizes_[c]);
    const int32_t ends[] = {sorted_[begin], sorted_[end - 1]};
    add_rest(ends[0], begin, end, rests_);
    if (ends[1] != ends[0]) add_rest(ends[1], begin, end, rests_ + row_);
    list_.fill_up();
    const float* queries = queries_ + block * together_ * padded_;
    for (int64_t first = 0; first < in_.block; first += SLICE) {
      const int64_t count = std::min(SLICE, in_.block - first);
      const PairBias bias = bias_of_slice(begin + first, single);
      attend_slice(list_, queries + first * padded_, count, out_rows_ + first * wide_, bias);
    }
    if (in_.groups) {
      attend_slice(list_, queries + in_.block * padded_, in_.groups, out_rows_ + in_.block * wide_);
      correct(block);
    }
    for (int64_t i = begin; i < end; ++i) {
      fetch_in_order(out_, i);
      std::copy_n(out_rows_ + (i - begin) * wide_, in_.dim_v, out_.row(order_[i]));
    }
  }

  /// How many members a cluster has in a block.
  int64_t overlap(int64_t cluster, int64_t begin, int64_t end) const {
    const auto first = std::max<int64_t>(starts_[cluster], begin), last = std::min<int64_t>(starts_[cluster + 1], end);
    return std::max<int64_t>(0, last - first);
  }

  /// The tokens outside a block of the clusters with the largest gains, as many as fit (`fitting` in clusters.py).
  void add_near(const float* gains, int64_t begin, int64_t end) {
    taken_.assign(in_.marks, false);
    ranked_.clear();
    for (int32_t c = 0; c < in_.marks; ++c)
      if (gains[c] > 0) {
        const int64_t outside = sizes_[c] - overlap(c, begin, end);
        if (outside > 0 && outside <= in_.near) ranked_.push_back({gains[c], c});
      }
    std::sort(ranked_.begin(), ranked_.end(), [](const auto& a, const auto& b) {
      return a.first > b.first || (a.first == b.first && a.second < b.second);
    });
    int64_t left = in_.near;
    for (int64_t pass = 0; pass < PASSES && left > 0; ++pass) {
      const int64_t free = left;
      for (const auto& [gain, c] : ranked_) {
        const int64_t outside = sizes_[c] - overlap(c, begin, end);
        if (taken_[c] || outside > free) continue;
        if (outside > left) break;
        left -= outside;
        taken_[c] = true;
        for (int64_t i = starts_[c]; i < starts_[c + 1]; ++i)
          if (i < begin || i >= end) list_.add(rows_ + i * row_, 0.f, order_[i]);
      }
    }
  }

  /// The mean of what a cluster has outside a block, where it is not attended one by one.
  void add_rest(int64_t cluster, int64_t begin, int64_t end, float* mean) {
    const int64_t left = sizes_[cluster] - overlap(cluster, begin, end);
    if (taken_[cluster] || !left) return;
    std::fill_n(mean, row_, 0.f);
    for (int64_t i = starts_[cluster]; i < starts_[cluster + 1]; ++i)
      if (i < begin || i >= end) add(rows_ + i * row_, row_, mean);
    scale(mean, row_, 1.f / left);
    list_.add(mean, std::log(static_cast<float>(left)));
  }

  /// What is wrong at a block's mean queries is taken off the queries behind them, where these are of one region.
  void correct(int64_t block) {
    const int64_t of_group = in_.block / in_.groups;
    for (int64_t group = 0; group < in_.groups; ++group) {
      if (!of_one_region(queries_ + (block * together_ + group * of_group) * padded_, of_group)) continue;
      const float* right = right_ + (block * in_.groups + group) * wide_;
      const float* guess = out_rows_ + (in_.block + group) * wide_;
      for (int64_t i = 0; i < wide_; i += W) {
        const Vec wrong = Vec::loadu(right + i) - Vec::loadu(guess + i);
        for (int64_t t = group * of_group; t < (group + 1) * of_group; ++t)
          (Vec::loadu(out_rows_ + t * wide_ + i) + wrong).store(out_rows_ + t * wide_ + i);
      }
    }
  }

  bool of_one_region(const float* queries, int64_t count) const {
    for (int64_t t = 1; t < count && regions_; ++t)
      if (!std::equal(queries + plain_, queries + depth_, queries + t * padded_ + plain_)) return false;
    return true;
  }

  const int64_t together_; // queries of a block and their means
  int64_t head_ = 0;
  Attending attending_;
  List list_{}, all_{};
  Tokens<float> out_{};
  float *queries_, *probes_, *gains_, *rests_, *mean_queries_, *right_, *out_rows_, *packed_out_, *query_means_;
  int32_t* query_places_;
  std::vector<bool> taken_;
  std::vector<std::pair<float, int32_t>> ranked_;
};

} // namespace nystra
