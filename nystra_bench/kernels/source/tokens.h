// The tokens of one window and head as rows of floats: read from a model's tensors as they lie, and written back to them.
#pragma once

#include "tiles.h"

#include <c10/util/BFloat16.h>

#include <numeric>
#include <type_traits>

namespace nystra {

/// Bytes that come into a cache together, and how many tokens before it is needed a row is asked for.
constexpr int64_t CACHE_LINE = 64, AHEAD = 16;

/// Queries, keys, values or outputs (images, heads, tokens, width), of any strides but that of the width, which is 1.
struct Batch {
  void* data;
  int64_t image, head, token;

  template <class Number>
  Number* at(int64_t i, int64_t h) const {
    return static_cast<Number*>(data) + i * image + h * head;
  }
};

/// What all methods are told. Windows are cut out of maps already, each an `image` of its own, or `places` finds them.
struct Inputs {
  Batch q, k, v, out;
  bool half; // whether their numbers are bfloat16, and not float32
  int64_t windows, heads; // windows of all images
  int64_t tokens, dim, dim_v; // of a window and head
  const int32_t* places; // the row of its map that each token of a window is, (per_image, tokens); or null
  int64_t per_image; // windows of an image
  float scale; // what queries are to be multiplied by

  /// Floats of memory for tokens of this width, where they cannot be used as they lie.
  int64_t packed(int64_t width) const { return half || width < W ? tokens * std::max(width, W) : 0; }
};

/// Tokens as rows of numbers; of floats at least W, so that they can be read as vectors.
template <class Number>
struct Tokens {
  Number* data;
  int64_t stride;
  const int32_t* rows; // of each token
  int64_t count, width;

  Number* row(int64_t token) const { return data + rows[token] * stride; }

  /// Has the processor bring a row into its caches, where there is such a token. The rows of a head are too far apart
  /// for it to do so by itself, and to wait for each of them would take as long as all that is computed with it.
  C10_ALWAYS_INLINE void fetch(int64_t token) const {
    if (token >= count) return;
    const auto* first = reinterpret_cast<const char*>(row(token));
    const auto* last = first + width * sizeof(Number) - 1;
    for (const auto* at = first; at < last; at += CACHE_LINE) __builtin_prefetch(at, !std::is_const_v<Number>);
    __builtin_prefetch(last, !std::is_const_v<Number>);
  }
};

/// Finds the tokens of one window after the other.
class Places {
 public:
  Places(const Inputs& in, Arena& arena) : in_(in) {
    for (int32_t** row : {&counted_, &ends_}) *row = reinterpret_cast<int32_t*>(arena.take(in.tokens));
    if (!counted_) return;
    std::iota(counted_, counted_ + in.tokens, 0);
    std::fill_n(ends_, in.tokens, static_cast<int32_t>(in.tokens));
    rows_ = counted_;
  }

  void turn_to(int64_t window) {
    image_ = window / in_.per_image;
    if (!in_.places || window_ == window % in_.per_image) return;
    window_ = window % in_.per_image;
    rows_ = in_.places + window_ * in_.tokens;
    auto end = static_cast<int32_t>(in_.tokens);
    for (int64_t t = in_.tokens - 1; t >= 0; --t) {
      ends_[t] = end;
      if (t > 0 && rows_[t] != rows_[t - 1] + 1) end = static_cast<int32_t>(t);
    }
  }

  /// Where the run ends that a token is in: tokens of a run lie one after the other.
  int64_t end_of_run(int64_t token) const { return ends_[token]; }

  /// Calls f(first, count) for the parts of runs among `count` tokens.
  template <class F>
  C10_ALWAYS_INLINE void for_runs(int64_t first, int64_t count, const F& f) const {
    for (int64_t t = first, last = first + count; t < last;) {
      const int64_t end = std::min<int64_t>(ends_[t], last);
      f(t, end - t);
      t = end;
    }
  }

  /// The window's tokens of a head: as they lie or, where they are bfloat16 or narrower than a vector, in `memory`.
  Tokens<const float> read(const Batch& from, int64_t head, int64_t width, float* memory) const {
    if (!in_.packed(width)) return as_they_lie<const float>(from, head, width);
    if (width < W) std::fill_n(memory, in_.tokens * W, 0.f);
    const auto room = in_memory<float>(memory, width);
    if (in_.half)
      copy(as_they_lie<const c10::BFloat16>(from, head, width), room);
    else
      copy(as_they_lie<const float>(from, head, width), room);
    return in_memory<const float>(memory, width);
  }

  /// Where a head's outputs are to be put; `write_back` brings them from `memory` to where they belong.
  Tokens<float> room(const Batch& to, int64_t head, int64_t width, float* memory) const {
    return in_.packed(width) ? in_memory<float>(memory, width) : as_they_lie<float>(to, head, width);
  }

  void write_back(const Tokens<float>& room, const Batch& to, int64_t head, int64_t width) const {
    if (!in_.packed(width)) return;
    if (in_.half)
      copy(room, as_they_lie<c10::BFloat16>(to, head, width));
    else
      copy(room, as_they_lie<float>(to, head, width));
  }

 private:
  template <class Number>
  Tokens<Number> as_they_lie(const Batch& batch, int64_t head, int64_t width) const {
    return {batch.at<Number>(image_, head), batch.token, rows_, in_.tokens, width};
  }

  /// Rows of at least a vector, one after the other.
  template <class Float>
  Tokens<Float> in_memory(float* memory, int64_t width) const {
    return {memory, std::max(width, W), counted_, in_.tokens, width};
  }

  template <class From, class To>
  static void copy(const Tokens<From>& from, const Tokens<To>& to) {
    for (int64_t t = 0; t < from.count; ++t) {
      from.fetch(t + AHEAD);
      to.fetch(t + AHEAD);
      const From* row = from.row(t);
      To* out = to.row(t);
      for (int64_t i = 0; i < from.width; ++i) out[i] = static_cast<To>(row[i]);
    }
  }

  const Inputs& in_;
  int32_t *counted_, *ends_; // 0, 1, 2, …; the end of each token's run
  const int32_t* rows_{};
  int64_t image_ = 0, window_ = -1;
};

/// A block of tokens, times `factor`, as the columns of a panel of `width` >= `count` tokens, zeros beyond the last:
/// panel[c * BLOCK + t] is column c of token first + t.
inline void turn_into_columns(
    const Tokens<const float>& tokens, const Places& places, int64_t first, int64_t count, int64_t width, Chunks chunks,
    float factor, float* panel) {
  int64_t t = 0;
  for (; t + W <= count; t += W) {
    for (int64_t r = 0; r < W; ++r) tokens.fetch(first + t + AHEAD + r);
    const bool together = places.end_of_run(first + t) >= first + t + W;
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const int64_t c = chunks.start(chunk);
      alignas(64) float near[W * W];
      const float* rows = tokens.row(first + t) + c;
      if (!together) {
        for (int64_t r = 0; r < W; ++r) Vec::loadu(tokens.row(first + t + r) + c).store(near + r * W);
        rows = near;
      }
      at::vec::transpose_mxn<float, static_cast<int>(W), static_cast<int>(W)>(
          rows, together ? tokens.stride : W, panel + c * BLOCK + t, BLOCK);
    }
  }
  for (; t < count; ++t)
    for (int64_t c = 0; c < chunks.width; ++c) panel[c * BLOCK + t] = tokens.row(first + t)[c];
  for (int64_t c = 0; c < chunks.width; ++c) {
    float* column = panel + c * BLOCK;
    std::fill(column + count, column + width, 0.f);
    if (factor != 1.f) scale(column, width, factor);
  }
}

} // namespace nystra
