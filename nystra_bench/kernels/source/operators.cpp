// The kernels as operators of PyTorch: torch.ops.nystra_bench.nystra_plus and .nystra, for the CPU, float32, inference.

#include "nystra.h"
#include "nystra_plus.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>

namespace nystra {
namespace {

using at::Tensor;

/// (windows, heads, tokens, width), of any strides but that of the width.
template <class Float>
Batch<Float> batch(const Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 4, "queries, keys and values are (windows, heads, tokens, width)");
  TORCH_CHECK(tensor.stride(3) == 1 || tensor.size(3) == 1, "rows of tokens lie together");
  Float* data = nullptr;
  if constexpr (std::is_const_v<Float>)
    data = tensor.const_data_ptr<float>();
  else
    data = tensor.mutable_data_ptr<float>();
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

/// In memory (windows, tokens, heads, width), as the projection that follows wants it.
Tensor output_like(const Tensor& v) {
  return at::empty({v.size(0), v.size(2), v.size(1), v.size(3)}, v.options()).transpose(1, 2);
}

Tensor floats(const Tensor& like, int64_t count) {
  return at::empty({std::max<int64_t>(count, 1)}, like.options());
}

/// Calls work(worker, window, head, place) for all windows, and within them all heads, on all threads.
template <class Worker, class Inputs, class Work>
void for_heads(const Inputs& in, const Tensor& q, const Work& work) {
  const int64_t heads = q.size(1), size = Worker::floats(in);
  const Tensor memory = floats(q, size * std::max(1, at::get_num_threads()));
  float* const data = memory.mutable_data_ptr<float>();
  at::parallel_for(0, q.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    Worker worker(in, data + at::get_thread_num() * size);
    for (int64_t place = begin; place < end; ++place) work(worker, place / heads, place % heads, place);
  });
}

void check_float32(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors)
    TORCH_CHECK(tensor->scalar_type() == at::kFloat && tensor->device().is_cpu(), "float32 on the CPU is expected");
}

Tensor nystra_plus(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const Tensor& queries,
    const Tensor& keys,
    const Tensor& features,
    const Tensor& diagonal,
    const Tensor& centres,
    const std::optional<Tensor>& regions,
    const std::optional<Tensor>& masked,
    int64_t iterations,
    bool exact_diagonal) {
  check_float32({&q, &k, &v, &queries, &keys, &features, &diagonal});
  const int64_t heads = q.size(1), tokens = q.size(2), rank = queries.size(2), blocks = in_blocks(tokens) / BLOCK;
  TORCH_CHECK(queries.sizes() == at::IntArrayRef({heads, blocks, rank, BLOCK}), "queries' features do not fit");
  TORCH_CHECK(keys.sizes() == queries.sizes(), "keys' features do not fit");
  TORCH_CHECK(features.dim() == 3 && features.size(0) == heads && features.size(1) == tokens, "features do not fit");
  TORCH_CHECK(features.size(2) % W == 0 && features.size(2) >= 2 * rank, "features do not fit");
  TORCH_CHECK(diagonal.sizes() == at::IntArrayRef({heads, blocks * BLOCK}), "the diagonal does not fit");
  TORCH_CHECK(queries.is_contiguous() && keys.is_contiguous() && features.is_contiguous() && diagonal.is_contiguous());
  TORCH_CHECK(centres.scalar_type() == at::kLong && centres.dim() == 1 && centres.is_contiguous());
  TORCH_CHECK(regions.has_value() == masked.has_value(), "regions and masked windows belong together");
  PlusInputs in{};
  if (regions) {
    TORCH_CHECK(regions->dim() == 2 && regions->size(1) == blocks * BLOCK && regions->is_contiguous());
    TORCH_CHECK(masked->scalar_type() == at::kBool && masked->numel() == regions->size(0) && masked->is_contiguous());
    check_float32({&*regions});
    in.regions = regions->const_data_ptr<float>();
    in.masked = masked->const_data_ptr<bool>();
    in.masks = regions->size(0);
  }
  const Tensor out = output_like(v);
  in.q = batch<const float>(q);
  in.k = batch<const float>(k);
  in.v = batch<const float>(v);
  in.out = batch<float>(out);
  in.tokens = tokens;
  in.dim = q.size(3);
  in.dim_v = v.size(3);
  in.marks = centres.size(0);
  in.rank = rank;
  in.queries = queries.const_data_ptr<float>();
  in.keys = keys.const_data_ptr<float>();
  in.features = features.const_data_ptr<float>();
  in.feature_row = features.size(2);
  in.diagonal = diagonal.const_data_ptr<float>();
  in.centres = centres.const_data_ptr<int64_t>();
  in.iterations = iterations;
  in.exact_diagonal = exact_diagonal;
  for_heads<NystraPlus>(in, q, [](NystraPlus& worker, int64_t window, int64_t head, int64_t) {
    worker.run(window, head);
  });
  return out;
}

Tensor nystra(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    int64_t height,
    int64_t width,
    int64_t rows,
    int64_t columns,
    int64_t iterations,
    double guard,
    bool norms_of_all) {
  check_float32({&q, &k, &v});
  TORCH_CHECK(height * width == q.size(2), "the window does not fit the tokens");
  const Tensor out = output_like(v);
  NystraInputs in{};
  in.q = batch<const float>(q);
  in.k = batch<const float>(k);
  in.v = batch<const float>(v);
  in.out = batch<float>(out);
  in.height = height;
  in.width = width;
  in.dim = q.size(3);
  in.dim_v = v.size(3);
  in.rows = rows;
  in.columns = columns;
  in.iterations = iterations;
  in.guard = static_cast<float>(guard);
  const int64_t places = q.size(0) * q.size(1);
  const Tensor pooled = floats(q, places * Nystra::kept(in)), norms = floats(q, 2 * places);
  in.pooled = pooled.mutable_data_ptr<float>();
  float *of_columns = norms.mutable_data_ptr<float>(), *of_rows = of_columns + places;
  for_heads<Nystra>(in, q, [&](Nystra& worker, int64_t window, int64_t head, int64_t place) {
    std::tie(of_columns[place], of_rows[place]) = worker.pool(window, head, place);
  });
  if (norms_of_all && places > 0) {
    std::fill_n(of_columns, places, *std::max_element(of_columns, of_columns + places));
    std::fill_n(of_rows, places, *std::max_element(of_rows, of_rows + places));
  }
  for_heads<Nystra>(in, q, [&](Nystra& worker, int64_t window, int64_t head, int64_t place) {
    worker.attend(window, head, place, of_columns[place] * of_rows[place]);
  });
  return out;
}

} // namespace

TORCH_LIBRARY(nystra_bench, library) {
  library.def(
      "nystra_plus(Tensor q, Tensor k, Tensor v, Tensor queries, Tensor keys, Tensor features, Tensor diagonal, "
      "Tensor centres, Tensor? regions, Tensor? masked, int iterations, bool exact_diagonal) -> Tensor");
  library.def(
      "nystra(Tensor q, Tensor k, Tensor v, int height, int width, int rows, int columns, int iterations, "
      "float guard, bool norms_of_all) -> Tensor");
}

TORCH_LIBRARY_IMPL(nystra_bench, CPU, library) {
  library.impl("nystra_plus", &nystra_plus);
  library.impl("nystra", &nystra);
}

} // namespace nystra
