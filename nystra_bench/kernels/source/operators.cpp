// The kernels as operators of PyTorch, torch.ops.nystra_bench.nystra_plus, .nystra_plus_v5 and .nystra, for the CPU,
// without gradients.

#include "nystra.h"
#include "nystra_plus.h"
#include "nystra_plus_v5.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <tuple>

namespace nystra {
namespace {

using at::Tensor;

/// (images, heads, tokens, width), of any strides but that of the width.
Batch batch(const Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 4, "queries, keys and values are (images, heads, tokens, width)");
  TORCH_CHECK(tensor.stride(3) == 1 || tensor.size(3) == 1, "rows of tokens lie together");
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

/// In memory (images, tokens, heads, width), as the projection that follows wants it.
Tensor output_like(const Tensor& v) {
  return at::empty({v.size(0), v.size(2), v.size(1), v.size(3)}, v.options()).transpose(1, 2);
}

Tensor floats(const Tensor& like, int64_t count) {
  return at::empty({std::max<int64_t>(count, 1)}, like.options().dtype(at::kFloat));
}

/// What all methods take, of images that are the windows themselves.
void take(Inputs& in, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, double scale) {
  const auto number = q.scalar_type();
  TORCH_CHECK(number == at::kFloat || number == at::kBFloat16, "float32 or bfloat16 is expected");
  for (const Tensor* tensor : {&q, &k, &v}) {
    TORCH_CHECK(tensor->scalar_type() == number && tensor->device().is_cpu(), "numbers of one kind on the CPU");
    TORCH_CHECK(tensor->size(1) == q.size(1) && tensor->size(2) == q.size(2), "numbers of heads and tokens differ");
    TORCH_CHECK(tensor->size(0) == q.size(0), "numbers of images differ");
  }
  TORCH_CHECK(k.size(3) == q.size(3), "queries and keys differ in width");
  in.q = batch(q), in.k = batch(k), in.v = batch(v), in.out = batch(out);
  in.half = number == at::kBFloat16;
  in.heads = q.size(1), in.dim = q.size(3), in.dim_v = v.size(3);
  in.tokens = q.size(2), in.per_image = 1, in.windows = q.size(0);
  in.scale = static_cast<float>(scale);
}

/// Windows that lie on maps: `places` (nW, N) holds the row of each token, and each row of a map once.
void find(Inputs& in, const std::optional<Tensor>& places) {
  if (!places) return;
  TORCH_CHECK(places->scalar_type() == at::kInt && places->dim() == 2 && places->is_contiguous(), "places do not fit");
  TORCH_CHECK(places->numel() == in.tokens, "places do not fit the map");
  in.places = places->const_data_ptr<int32_t>();
  in.per_image = places->size(0), in.tokens = places->size(1);
  in.windows *= in.per_image;
}

/// Calls work(worker, window, head, place) for all windows, and within them all heads, on all threads.
template <class Worker, class In, class Work>
void for_heads(const In& in, const Tensor& q, const Work& work) {
  const int64_t size = Worker::floats(in);
  const Tensor memory = floats(q, size * std::max(1, at::get_num_threads()));
  float* const data = memory.mutable_data_ptr<float>();
  at::parallel_for(0, in.windows * in.heads, 1, [&](int64_t begin, int64_t end) {
    Worker worker(in, data + at::get_thread_num() * size);
    for (int64_t place = begin; place < end; ++place) work(worker, place / in.heads, place % in.heads, place);
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
    bool exact_diagonal,
    const std::optional<Tensor>& places,
    double scale) {
  check_float32({&queries, &keys, &features, &diagonal});
  const Tensor out = output_like(v);
  PlusInputs in{};
  take(in, q, k, v, out, scale);
  find(in, places);
  const int64_t heads = in.heads, tokens = in.tokens, rank = queries.size(2), blocks = in_blocks(tokens) / BLOCK;
  TORCH_CHECK(queries.sizes() == at::IntArrayRef({heads, blocks, rank, BLOCK}), "queries' features do not fit");
  TORCH_CHECK(keys.sizes() == queries.sizes(), "keys' features do not fit");
  TORCH_CHECK(features.dim() == 3 && features.size(0) == heads && features.size(1) == tokens, "features do not fit");
  TORCH_CHECK(features.size(2) % W == 0 && features.size(2) >= 2 * rank, "features do not fit");
  TORCH_CHECK(diagonal.sizes() == at::IntArrayRef({heads, blocks * BLOCK}), "the diagonal does not fit");
  TORCH_CHECK(queries.is_contiguous() && keys.is_contiguous() && features.is_contiguous() && diagonal.is_contiguous());
  TORCH_CHECK(centres.scalar_type() == at::kLong && centres.dim() == 1 && centres.is_contiguous());
  TORCH_CHECK(regions.has_value() == masked.has_value(), "regions and masked windows belong together");
  if (regions) {
    TORCH_CHECK(regions->dim() == 2 && regions->size(1) == blocks * BLOCK && regions->is_contiguous());
    TORCH_CHECK(masked->scalar_type() == at::kBool && masked->numel() == regions->size(0) && masked->is_contiguous());
    check_float32({&*regions});
    in.regions = regions->const_data_ptr<float>();
    in.masked = masked->const_data_ptr<bool>();
    in.masks = regions->size(0);
  }
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

Tensor nystra_plus_v5(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    const Tensor& queries,
    const Tensor& keys,
    const std::optional<Tensor>& entries,
    const std::optional<Tensor>& query_places,
    const std::optional<Tensor>& key_places,
    const std::optional<Tensor>& means,
    const std::optional<Tensor>& regions,
    const std::optional<Tensor>& masked,
    const Tensor& candidates,
    int64_t marks,
    int64_t near,
    int64_t block,
    int64_t groups,
    int64_t clustering,
    const std::optional<Tensor>& places,
    double scale) {
  check_float32({&queries, &keys});
  const Tensor out = output_like(v);
  V5Inputs in{};
  take(in, q, k, v, out, scale);
  find(in, places);
  TORCH_CHECK(queries.dim() == 3 && queries.size(0) == in.heads && queries.size(1) == in.tokens, "features do not fit");
  TORCH_CHECK(keys.sizes() == queries.sizes(), "features do not fit");
  TORCH_CHECK(queries.is_contiguous() && keys.is_contiguous());
  if (entries) {
    TORCH_CHECK(query_places && key_places && means, "the bias of pairs is not all there");
    check_float32({&*entries, &*means});
    TORCH_CHECK(entries->dim() == 2 && entries->size(0) == in.heads && entries->is_contiguous(), "entries do not fit");
    TORCH_CHECK(means->sizes() == at::IntArrayRef({in.heads, in.tokens}) && means->is_contiguous(), "means do not fit");
    for (const Tensor* where : {&*query_places, &*key_places})
      TORCH_CHECK(where->scalar_type() == at::kInt && where->numel() == in.tokens && where->is_contiguous());
    in.entries = entries->const_data_ptr<float>();
    in.entry_count = entries->size(1);
    in.query_places = query_places->const_data_ptr<int32_t>();
    in.key_places = key_places->const_data_ptr<int32_t>();
    in.means = means->const_data_ptr<float>();
  }
  TORCH_CHECK(candidates.scalar_type() == at::kLong && candidates.dim() == 1 && candidates.is_contiguous());
  TORCH_CHECK(0 < marks && marks <= candidates.numel() && candidates.numel() <= in.tokens, "clusters do not fit");
  TORCH_CHECK(0 <= near && 0 < block && block % 8 == 0 && groups >= 0 && clustering >= 0, "sizes do not fit");
  TORCH_CHECK(groups == 0 || block % groups == 0, "groups do not fit the block");
  TORCH_CHECK(regions.has_value() == masked.has_value(), "regions and masked windows belong together");
  if (regions) {
    TORCH_CHECK(regions->dim() == 3 && regions->size(1) == in.tokens && regions->is_contiguous(), "regions do not fit");
    TORCH_CHECK(masked->scalar_type() == at::kBool && masked->numel() == regions->size(0) && masked->is_contiguous());
    check_float32({&*regions});
    in.regions = regions->const_data_ptr<float>();
    in.region_columns = regions->size(2);
    in.masked = masked->const_data_ptr<bool>();
    in.masks = regions->size(0);
  }
  in.marks = marks, in.near = near, in.block = block, in.groups = groups, in.clustering = clustering;
  in.rank = queries.size(2);
  in.queries = queries.const_data_ptr<float>();
  in.keys = keys.const_data_ptr<float>();
  in.candidates = candidates.const_data_ptr<int64_t>();
  in.candidate_count = candidates.numel();
  for_heads<NystraPlusV5>(in, q, [](NystraPlusV5& worker, int64_t window, int64_t head, int64_t) {
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
    bool norms_of_all,
    const std::optional<Tensor>& places,
    double scale) {
  const Tensor out = output_like(v);
  NystraInputs in{};
  take(in, q, k, v, out, scale);
  find(in, places);
  TORCH_CHECK(height * width == in.tokens, "the window does not fit the tokens");
  in.height = height;
  in.width = width;
  in.rows = rows;
  in.columns = columns;
  in.iterations = iterations;
  in.guard = static_cast<float>(guard);
  const int64_t sequences = in.windows * in.heads;
  const Tensor pooled = floats(q, sequences * Nystra::kept(in)), norms = floats(q, 2 * sequences);
  in.pooled = pooled.mutable_data_ptr<float>();
  float *of_columns = norms.mutable_data_ptr<float>(), *of_rows = of_columns + sequences;
  for_heads<Nystra>(in, q, [&](Nystra& worker, int64_t window, int64_t head, int64_t place) {
    std::tie(of_columns[place], of_rows[place]) = worker.pool(window, head, place);
  });
  if (norms_of_all && sequences > 0) {
    std::fill_n(of_columns, sequences, *std::max_element(of_columns, of_columns + sequences));
    std::fill_n(of_rows, sequences, *std::max_element(of_rows, of_rows + sequences));
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
      "Tensor centres, Tensor? regions, Tensor? masked, int iterations, bool exact_diagonal, Tensor? places, "
      "float scale) -> Tensor");
  library.def(
      "nystra_plus_v5(Tensor q, Tensor k, Tensor v, Tensor queries, Tensor keys, Tensor? entries, "
      "Tensor? query_places, Tensor? key_places, Tensor? means, Tensor? regions, Tensor? masked, Tensor candidates, "
      "int marks, int near, int block, int groups, int clustering, Tensor? places, float scale) -> Tensor");
  library.def(
      "nystra(Tensor q, Tensor k, Tensor v, int height, int width, int rows, int columns, int iterations, "
      "float guard, bool norms_of_all, Tensor? places, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(nystra_bench, CPU, library) {
  library.impl("nystra_plus", &nystra_plus);
  library.impl("nystra_plus_v5", &nystra_plus_v5);
  library.impl("nystra", &nystra);
}

} // namespace nystra
