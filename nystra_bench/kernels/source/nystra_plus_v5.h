// nystra_plus_v5 (attention/nystra_plus_v5.py) of one window and head at a time.
//
// Its tokens join clusters and are stored in their order; each block of queries in this order attends to a list of rows:
// its own tokens, those of the clusters that matter to it, and the means of all others. Rows are read where they lie.
#pragma once

#include "seeds.h"
#include "tokens.h"

#include <vector>

namespace nystra {

struct V5Inputs : Inputs {
  int64_t marks, near, block, groups, clustering; // m, K, b, mean queries of a block (0: none are looked at), Lloyd's steps
  int64_t rank;
  const float *queries, *keys; // F and G of each head, (H, N, rank)
  const float* regions; // features (nW, N, region_columns)
  int64_t region_columns;
  const bool* masked; // (nW), whether a window has more than one region
  int64_t masks; // nW, 0 where no window is masked
  const int64_t* candidates; // tokens that clusters may start from
  int64_t candidate_count;

  int64_t blocks() const { return (tokens + block - 1) / block; }
};

class NystraPlusV5 {
 public:
  /// `memory` holds `floats(in)`; none is needed to count them.
  NystraPlusV5(const V5Inputs& in, float* memory)
      : in_(in),
        deepest_(whole(in.dim + in.rank + in.region_columns, W)),
        wide_(whole(in.dim_v, W)),
        together_(in.block + in.groups),
        arena_(memory),
        places_(in, arena_),
        seeds_(arena_, in.candidate_count, in.marks, deepest_),
        attending_(arena_, wide_) {
    const int64_t m = in.marks, blocks = in.blocks();
    keys_ = arena_.take(in.tokens * deepest_);
    rows_ = arena_.take(in.tokens * (deepest_ + wide_));
    queries_ = arena_.take(blocks * together_ * deepest_);
    for (int32_t** numbers : {&labels_, &order_, &sorted_}) *numbers = reinterpret_cast<int32_t*>(arena_.take(in.tokens));
    for (int32_t** numbers : {&starts_, &sizes_}) *numbers = reinterpret_cast<int32_t*>(arena_.take(m + 1));
    marks_ = arena_.take(m * deepest_);
    sought_ = arena_.take(m * deepest_);
    means_ = arena_.take((m + 2) * (deepest_ + wide_));
    for (float** row : {&spread_, &log_sizes_}) *row = arena_.take(m);
    gains_ = arena_.take(blocks * m);
    panel_ = arena_.take(deepest_ * SLICE);
    block_ = arena_.take(whole(m, TOGETHER) * SLICE);
    list_ = take_list(in.block + in.near + m + 2);
    clusters_ = take_list(m);
    all_ = take_list(in.groups ? in.tokens : 0);
    mean_queries_ = arena_.take(blocks * in.groups * deepest_);
    right_ = arena_.take(blocks * in.groups * wide_);
    out_rows_ = arena_.take(together_ * wide_);
    for (float** rows : {&packed_q_, &packed_k_}) *rows = arena_.take(in.packed(in.dim));
    for (float** rows : {&packed_v_, &packed_out_}) *rows = arena_.take(in.packed(in.dim_v));
  }

  static int64_t floats(const V5Inputs& in) { return NystraPlusV5(in, nullptr).arena_.used(); }

  void run(int64_t window, int64_t head) {
    place(window, head);
    pack_keys();
    start_clusters();
    for (int64_t step = 0; step < in_.clustering; ++step) move_marks();
    join_clusters(0, 1, in_.tokens);
    sort_tokens();
    gather_rows();
    form_means();
    gather_queries();
    weigh_clusters();
    if (in_.groups) answer_mean_queries();
    out_ = places_.room(in_.out, head, in_.dim_v, packed_out_);
    for (int64_t block = 0; block < in_.blocks(); ++block) attend(block);
    places_.write_back(out_, in_.out, head, in_.dim_v);
  }

 private:
  static constexpr int64_t PROBED = 8, SAMPLE = 4, PASSES = 3; // as in attention/blocks.py, nystra_plus_v5.py, clusters.py
  static constexpr float APART = 100.f;

  List take_list(int64_t rows) {
    rows = whole(rows, TOGETHER);
    const auto pointers = reinterpret_cast<const float**>(arena_.take(rows * (sizeof(float*) / sizeof(float))));
    return {pointers, arena_.take(rows)};
  }

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

  /// A token's query or key with its features and those of its region.
  void pack(const Tokens<const float>& tokens, int64_t token, float factor, const float* features, float* to) const {
    const float* row = tokens.row(token);
    for (int64_t i = 0; i < in_.dim; ++i) to[i] = row[i] * factor;
    std::copy_n(features + token * in_.rank, in_.rank, to + in_.dim);
    if (regions_) std::copy_n(regions_ + token * in_.region_columns, in_.region_columns, to + plain_);
    std::fill(to + depth_, to + padded_, 0.f);
  }

  void pack_keys() {
    for (int64_t t = 0; t < in_.tokens; ++t) pack(k_, t, 1.f, g_, keys_ + t * padded_);
  }

  // ----------------------------------------------------------------- clusters

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

  static void add(const float* row, int64_t width, float* sum) {
    for (int64_t i = 0; i < width; i += W) (Vec::loadu(sum + i) + Vec::loadu(row + i)).store(sum + i);
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

  // ----------------------------------------------------------------- queries

  /// Each block's queries in order, the last one's again where it has fewer, and the means of its groups behind them.
  void gather_queries() {
    const int64_t of_group = in_.groups ? in_.block / in_.groups : 0;
    for (int64_t block = 0; block < in_.blocks(); ++block) {
      float* rows = queries_ + block * together_ * padded_;
      for (int64_t i = 0; i < in_.block; ++i) {
        const int64_t at = std::min(block * in_.block + i, in_.tokens - 1);
        pack(q_, order_[at], in_.scale, f_, rows + i * padded_);
      }
      for (int64_t group = 0; group < in_.groups; ++group) {
        float *mean = rows + (in_.block + group) * padded_, *kept = mean_queries_ + (block * in_.groups + group) * padded_;
        mean_of(rows + group * of_group * padded_, of_group, mean);
        std::copy_n(mean, padded_, kept);
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
    probes_.resize(SLICE * padded_);
    for (int64_t first = 0; first < probes; first += SLICE) {
      const int64_t there = std::min(SLICE, probes - first), lanes = whole(there, W);
      for (int64_t i = 0; i < there; ++i) {
        const int64_t block = (first + i) / of_block, part = (first + i) % of_block;
        mean_of(queries_ + (block * together_ + part * PROBED) * padded_, PROBED, probes_.data() + i * padded_);
      }
      turn_into_lanes(probes_.data(), padded_, there, padded_, panel_, lanes);
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

  void attend_slice(const List& list, const float* queries, int64_t count, float* out) {
    const int64_t lanes = whole(count, W);
    turn_into_lanes(queries, padded_, count, padded_, panel_, lanes);
    attending_.run(list, panel_, lanes, depth_, padded_, count, out);
  }

  // ----------------------------------------------------------------- blocks

  void attend(int64_t block) {
    const int64_t begin = block * in_.block, end = std::min(begin + in_.block, in_.tokens);
    list_.count = 0;
    for (int64_t i = begin; i < end; ++i) list_.add(rows_ + i * row_, 0.f);
    add_near(gains_ + block * in_.marks, begin, end);
    for (int64_t c = 0; c < in_.marks; ++c)
      if (!taken_[c] && sizes_[c] > 0 && !overlap(c, begin, end)) list_.add(means_ + c * row_, log_sizes_[c]);
    const int32_t ends[] = {sorted_[begin], sorted_[end - 1]};
    add_rest(ends[0], begin, end, means_ + in_.marks * row_);
    if (ends[1] != ends[0]) add_rest(ends[1], begin, end, means_ + (in_.marks + 1) * row_);
    list_.fill_up();
    const float* queries = queries_ + block * together_ * padded_;
    for (int64_t first = 0; first < together_; first += SLICE)
      attend_slice(list_, queries + first * padded_, std::min(SLICE, together_ - first), out_rows_ + first * wide_);
    if (in_.groups) correct(block);
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(out_rows_ + (i - begin) * wide_, in_.dim_v, out_.row(order_[i]));
  }

  /// How many members a cluster has in a block.
  int64_t overlap(int64_t cluster, int64_t begin, int64_t end) const {
    return std::max<int64_t>(0, std::min<int64_t>(starts_[cluster + 1], end) - std::max<int64_t>(starts_[cluster], begin));
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
          if (i < begin || i >= end) list_.add(rows_ + i * row_, 0.f);
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
      const float *right = right_ + (block * in_.groups + group) * wide_, *guess = out_rows_ + (in_.block + group) * wide_;
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

  const V5Inputs& in_;
  const int64_t deepest_; // columns of keys with all features, in vectors
  const int64_t wide_; // of values
  const int64_t together_; // queries of a block and their means
  Arena arena_;
  Places places_;
  Seeds seeds_;
  Attending attending_;
  List list_{}, clusters_{}, all_{};

  Tokens<const float> q_{}, k_{}, v_{};
  Tokens<float> out_{};
  const float *f_{}, *g_{}, *regions_{};
  int64_t plain_ = 0, depth_ = 0, padded_ = 0, row_ = 0; // of keys without regions, with them, in vectors, with values

  float *keys_, *rows_, *queries_, *marks_, *sought_, *means_, *spread_, *log_sizes_, *gains_;
  float *panel_, *block_, *mean_queries_, *right_, *out_rows_;
  int32_t *labels_, *order_, *sorted_, *starts_, *sizes_;
  float *packed_q_, *packed_k_, *packed_v_, *packed_out_;
  std::vector<int32_t> next_;
  std::vector<float> probes_;
  std::vector<bool> taken_;
  std::vector<std::pair<float, int32_t>> ranked_;
};

} // namespace nystra
