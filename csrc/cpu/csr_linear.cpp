// A linear layer with a sparse weight, on the CPU. Compiled once per instruction set; dispatch.cpp
// picks one.
//
// Samples are in the lanes: up to 8 registers of them, packed as x[k][sample], so that one entry of the
// weight is a broadcast and 8 fused multiply-adds. Columns are taken in blocks whose packed samples
// stay in the caches; the sums of a chunk of rows wait in between.

#include <algorithm>

#include "csr_rows.h"
#include "lanes.h"
#include "parallel.h"
#include "sparse_entries.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

constexpr int kL = kLanes<float>;
constexpr std::int64_t kMostSamples = kTile * kL;  // of one block
constexpr std::int64_t kChunkRows = 128;
// Columns of a block hold so many entries of a row that fetching and storing the sums pays. Their
// packed samples at least fill the first-level cache, and at most half of the second: the rest is left
// to the weight and the sums.
constexpr std::int64_t kEntriesPerVisit = 24;
constexpr std::int64_t kFirstLevel = 28 << 10;
constexpr std::int64_t kSecondLevel = 192 << 10;

std::int64_t block_columns(const CsrMatrix& weight, std::int64_t entries, std::int64_t samples) {
  const std::int64_t bytes = samples * std::int64_t{sizeof(float)};
  const std::int64_t first = std::max<std::int64_t>(kFirstLevel / bytes, 1);
  const std::int64_t second = std::max<std::int64_t>(kSecondLevel / bytes, 1);
  const std::int64_t paying =
      entries == 0 ? second : kEntriesPerVisit * weight.rows * weight.cols / entries + 1;
  const std::int64_t most = std::min(std::max(paying, first), second);
  const std::int64_t blocks = (weight.cols + most - 1) / most;
  return (weight.cols + blocks - 1) / blocks;
}

struct Scratch {
  Scratch(Carver& carver, std::int64_t cols)
      : packed(carver.take<float>(cols * kMostSamples)),
        sums(carver.take<float>(kChunkRows * kMostSamples)),
        lines(carver.take<float>(std::max(8 * cols, kMostSamples * kChunkRows))),
        left(carver.take<std::int64_t>(kChunkRows)) {}
  float* packed;       // [K, samples]
  float* sums;         // [chunk, samples]
  float* lines;        // [8, K] while packing, [samples, chunk] while unpacking
  std::int64_t* left;  // [chunk], the first entry of each row that is not added yet
};

// packed[k][b] = x[begin + b][k]; 0 in the lanes past `count`.
void pack(const ConstMatrix& x, std::int64_t begin, std::int64_t count, std::int64_t cols,
          std::int64_t samples, const Scratch& scratch) {
  const bool in_place = x.dtype == DType::float32 && x.col_stride == 1;
  for (std::int64_t b = 0; b < samples; b += 8) {
    const std::int64_t rows = std::min<std::int64_t>(8, samples - b);
    if (in_place && b + 8 <= count) {
      transpose(static_cast<const float*>(x.data) + (begin + b) * x.row_stride, x.row_stride, rows, cols,
                scratch.packed + b, samples);
      continue;
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      float* line = scratch.lines + i * cols;
      if (b + i < count) {
        load_line(x.data, x.dtype, (begin + b + i) * x.row_stride, x.col_stride, cols, line);
      } else {
        std::fill(line, line + cols, 0.0f);
      }
    }
    transpose(scratch.lines, cols, rows, cols, scratch.packed + b, samples);
  }
}

struct Call {
  const CsrMatrix& weight;
  const float* values;  // [nnz], in float
  const float* bias;    // [R], in float, or null
  void* y;              // [B, R]
  DType dtype;
};

// y[begin .. begin + count) x [rows.begin, rows.end) from packed samples, TILE registers of them.
template <int TILE>
void add_rows(const Call& call, std::int64_t begin, std::int64_t count, Range rows,
              std::int64_t columns_per_block, const Scratch& scratch) {
  constexpr std::int64_t samples = TILE * kL;
  const CsrMatrix& weight = call.weight;
  const std::int64_t chunk = rows.end - rows.begin;
  for (std::int64_t r = 0; r < chunk; ++r) {
    const float start = call.bias == nullptr ? 0.0f : call.bias[rows.begin + r];
    std::fill(scratch.sums + r * samples, scratch.sums + (r + 1) * samples, start);
    scratch.left[r] = weight.row_offsets[rows.begin + r];
  }
  const auto place = [](std::int32_t column) { return column * samples; };
  for (std::int64_t k = 0; k < weight.cols; k += columns_per_block) {
    const auto limit = static_cast<std::int32_t>(std::min(k + columns_per_block, weight.cols));
    for (std::int64_t r = 0; r < chunk; ++r) {
      const std::int64_t ahead = std::min(r + kRowsAhead, chunk - 1);
      prefetch_entries(call.values, weight.columns, scratch.left[ahead]);
      const Entries row{call.values, weight.columns, scratch.left[r],
                        weight.row_offsets[rows.begin + r + 1]};
      scratch.left[r] = add_entries<1, TILE>(row, limit, scratch.packed, 0, kL, place,
                                             scratch.sums + r * samples);
    }
  }
  transpose(scratch.sums, samples, chunk, count, scratch.lines, chunk);
  for (std::int64_t b = 0; b < count; ++b) {
    store_line(scratch.lines + b * chunk, chunk, call.y, call.dtype,
               (begin + b) * weight.rows + rows.begin);
  }
}

}  // namespace

Status csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight, const void* bias,
                  void* y, int threads) {
  if (batch == 0 || weight.rows == 0) return Status::ok;
  const std::int64_t entries = weight.row_offsets[weight.rows];
  const WideNumbers wide(weight.values, entries, bias, weight.rows, x.dtype);
  if (!wide.ok()) return Status::out_of_memory;
  const Call call{weight, wide.values(), wide.bias(), y, x.dtype};

  // Items are blocks of samples times chunks of rows, chunks fastest: a part packs a block once.
  const std::int64_t blocks = (batch + kMostSamples - 1) / kMostSamples;
  const std::int64_t chunks = (weight.rows + kChunkRows - 1) / kChunkRows;
  const std::int64_t items = blocks * chunks;
  const std::int64_t work = (entries + weight.rows + weight.cols) * batch / kL;
  const int parts = part_count(items, work / items + 1, threads);
  Carver sizes(nullptr);
  Scratch(sizes, weight.cols);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const Scratch scratch(carver, weight.cols);
    const Range range = part_range(items, parts, part);
    std::int64_t packed = -1;
    for (std::int64_t item = range.begin; item < range.end; ++item) {
      const std::int64_t block = item / chunks, begin = block * kMostSamples;
      const std::int64_t count = std::min(kMostSamples, batch - begin);
      const int tile = static_cast<int>((count + kL - 1) / kL);
      const Range rows = part_range(weight.rows, static_cast<int>(chunks), static_cast<int>(item % chunks));
      if (block != packed) {
        pack(x, begin, count, weight.cols, tile * kL, scratch);
        packed = block;
      }
      const std::int64_t columns = block_columns(weight, entries, tile * kL);
      const auto add = [&](auto size) {
        add_rows<decltype(size)::value>(call, begin, count, rows, columns, scratch);
      };
      with_size<kTile>(tile, add);
    }
  };
  run_parts(parts, body);
  return Status::ok;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
