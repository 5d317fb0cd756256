// Forward for few classes: a block has a tile of whole rows in shared memory, a warp takes each row,
// and then each thread a column of the tile. One launch gives the rows' statistics and the columns'
// partial moments.
#include "common.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct TileTask {
  Logits<T> logits;
  RowWeights weights;
  double eps;
  std::int64_t part_rows;
  int tile_rows;     // R
  int slices;        // S: threads that share the rows of a column; rows r, r + S, ... of a tile each
  T* stats;          // [6 B + 5 C]
  double* row_sums;  // [P]: sum of w (1 - r) over the rows of each part
  double* counts;    // [P]: kept rows of each part
  T* partials;       // [P, M, C]: the columns' partial moments
};

// The softmaxes of one row, by one warp: exponentials to e and h, statistics to stats.
// Returns w (1 - r).
template <typename T, typename S>
__device__ double row_of_tile(const TileTask<T>& task, std::int64_t row, int lane,
                              T* e, T* h,                     // [C]
                              T* p_scale_out, T* q_scale_out) {
  const Logits<T>& in = task.logits;
  const Row<T, S> student(in.student, row), teacher(in.teacher, row);
  T z_max = kMinusInfinityOf<T>, y_max = kMinusInfinityOf<T>;
#pragma unroll 4
  for (int j = lane; j < in.cols; j += 32) {
    const T z = student.at(j), y = teacher.at(j);
    e[j] = z;
    h[j] = y;
    z_max = larger(z_max, z);
    y_max = larger(y_max, y);
  }
  z_max = warp_max(z_max);
  y_max = warp_max(y_max);
  T sum_e = 0, sum_h = 0;
#pragma unroll 2
  for (int j = lane; j < in.cols; j += 32) {  // what this lane has written
    const T a = scaled_exp(e[j] - z_max, in.exp), b = scaled_exp(h[j] - y_max, in.exp);
    e[j] = a;
    h[j] = b;
    sum_e += a;
    sum_h += b;
  }
  const T p_scale = T(1) / warp_sum(sum_e), q_scale = T(1) / warp_sum(sum_h);
  const T mean = in.centered ? in.class_mean : T(0);
  T pp = 0, qq = 0, pq = 0;
#pragma unroll 2
  for (int j = lane; j < in.cols; j += 32) {
    const T p = e[j] * p_scale - mean, q = h[j] * q_scale - mean;
    pp += p * p;
    qq += q * q;
    pq += p * q;
  }
  pp = warp_sum(pp);
  qq = warp_sum(qq);
  pq = warp_sum(pq);
  if (lane != 0) return 0;
  *p_scale_out = p_scale;
  *q_scale_out = q_scale;
  const T weight = static_cast<T>(task.weights.in_loss(row));
  const T r = store_row_statistics(z_max, p_scale, y_max, q_scale, pp, qq, pq, weight,
                                   static_cast<T>(task.eps), task.stats + row * kRowStats);
  return task.weights.of(row) * (1.0 - static_cast<double>(r));
}

// totals: [10, S * C], of which each (slice, column) belongs to one thread throughout.
template <typename T>
__device__ ColumnTotal<T> load_total(const T* totals, int place, int stride) {
  ColumnTotal<T> total;
  T* const numbers[] = {&total.pp,     &total.pp_rest, &total.qq,     &total.qq_rest, &total.pq,
                        &total.pq_rest, &total.mean_p, &total.rest_p, &total.mean_q,  &total.rest_q};
#pragma unroll
  for (int k = 0; k < ColumnTotal<T>::kNumbers; ++k) *numbers[k] = totals[k * stride + place];
  return total;
}
template <typename T>
__device__ void store_total(T* totals, int place, int stride, const ColumnTotal<T>& total) {
  const T numbers[] = {total.pp,      total.pp_rest, total.qq,     total.qq_rest, total.pq,
                       total.pq_rest, total.mean_p,  total.rest_p, total.mean_q,  total.rest_q};
#pragma unroll
  for (int k = 0; k < ColumnTotal<T>::kNumbers; ++k) totals[k * stride + place] = numbers[k];
}

template <typename T, typename S>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T, float, kTileThreads>)
    tile_kernel(const TileTask<T> task) {
  extern __shared__ double shared[];
  const Logits<T>& in = task.logits;
  const int cols = in.cols, tile_rows = task.tile_rows, slices = task.slices;
  const int tile_size = tile_rows * cols, width = slices * cols;
  double* row_losses = shared;                                // [warps]
  T* e = reinterpret_cast<T*>(row_losses + kTileWarps);       // [R, C]
  T* h = e + tile_size;                                       // [R, C]
  T* p_scale = h + tile_size;                                 // [R]
  T* q_scale = p_scale + tile_rows;                           // [R]
  T* kept = q_scale + tile_rows;                              // [R]: 0 or 1
  T* totals = kept + tile_rows;                               // [10, S, C]; only with columns
  T* slice_rows = totals + ColumnTotal<T>::kNumbers * width;  // [S]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slice = slices == 1 ? 0 : thread / cols;

  if (in.intra) {
    for (int place = thread; place < width; place += kTileThreads) {
      store_total(totals, place, width, ColumnTotal<T>{});
    }
  }
  T rows_before = 0;  // kept rows of this thread's slice
  double row_loss = 0;
  const std::int64_t begin = blockIdx.x * task.part_rows;
  const std::int64_t end = min(begin + task.part_rows, in.rows);
  for (std::int64_t first = begin; first < end; first += tile_rows) {
    for (int r = warp; r < tile_rows; r += kTileWarps) {
      const std::int64_t row = first + r;
      const bool keep = row < end && in.keeps(row);
      if (lane == 0) kept[r] = keep ? T(1) : T(0);
      if (!keep) continue;
      row_loss += row_of_tile<T, S>(task, row, lane, e + r * cols, h + r * cols, p_scale + r,
                                    q_scale + r);
    }
    if (!in.intra) continue;
    __syncthreads();
    T block_rows = 0;
    // One column for each thread where rows are shared, else one column after the other.
    for (int place = thread; place < width; place += kTileThreads) {
      const int j = place - slice * cols;
      ColumnBlock<T> block{};
      block_rows = 0;
      for (int r = slice; r < tile_rows; r += slices) {
        if (kept[r] == T(0)) continue;
        const T a = e[r * cols + j], b = h[r * cols + j];
        if (in.centered) {
          const T inverse = inverse_of_count(block_rows + T(1));
          block.add_centered(a, p_scale[r], b, q_scale[r], inverse, block_rows * inverse);
        } else {
          block.add(a * p_scale[r], b * q_scale[r]);
        }
        block_rows += T(1);
      }
      ColumnTotal<T> total = load_total(totals, place, width);
      total.merge(block, rows_before, block_rows, in.centered);
      store_total(totals, place, width, total);
    }
    rows_before += block_rows;
    __syncthreads();
  }

  if (lane == 0) row_losses[warp] = row_loss;
  if (in.intra && thread < width && thread == slice * cols) slice_rows[slice] = rows_before;
  __syncthreads();
  if (thread == 0) {
    double sum = 0;
    for (int i = 0; i < kTileWarps; ++i) sum += row_losses[i];
    task.row_sums[blockIdx.x] = sum;
  }
  if (!in.intra) return;
  T* partial = task.partials +
               static_cast<std::int64_t>(blockIdx.x) * moment_count(in.centered) * cols;
  for (int j = thread; j < cols; j += kTileThreads) {
    ColumnTotal<T> total = load_total(totals, j, width);
    T rows = slice_rows[0];
    for (int s = 1; s < slices; ++s) {
      total.merge(load_total(totals, s * cols + j, width).rounded(), rows, slice_rows[s],
                  in.centered);
      rows += slice_rows[s];
    }
    store_partial(partial + j, cols, total.rounded(), in.centered);
    if (j == 0) task.counts[blockIdx.x] = static_cast<double>(rows);
  }
}

}  // namespace

cudaError_t launch_tile(const Call& call, const ForwardPlan& plan, void* stats, char* scratch) {
  return with_types(call, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const TileTask<T> task{logits_of<T, S>(call),
                           row_weights(call, scratch),
                           call.params.eps,
                           plan.part_rows,
                           plan.tile_rows,
                           plan.slices,
                           static_cast<T*>(stats),
                           reinterpret_cast<double*>(scratch + plan.at_row_sums),
                           reinterpret_cast<double*>(scratch + plan.at_counts),
                           reinterpret_cast<T*>(scratch + plan.at_partials)};
    const cudaError_t error = allow_shared(tile_kernel<T, S>, plan.shared_bytes);
    if (error != cudaSuccess) return error;
    tile_kernel<T, S><<<plan.parts, kTileThreads, plan.shared_bytes, call.stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace r2kd
