// One query at a time, or few: the first plane of all rows, which is a sign for each coordinate, tells a bound of each
// row's score (tqindex.codec.refinement); only rows whose bound reaches what k rows are known to score are read in
// full.
//
// 1. bound_rows: bounds of all rows, and of each group of rows the one that its first plane alone makes the best
// 2. the likeliest of these are scored in full: the k-th best of their scores is one that the k-th best of all reaches
// 3. list_survivors: the rows whose bound reaches it
// 4. score_survivors: scores these in full, and keeps those that reach it, from which the k best are selected
#include "common.cuh"
#include "codes.cuh"

// Blocks of one multiprocessor: 80 registers for each thread, 128 where codes of 8 bits or of a trellis are scored. From
// Hopper on bounds fit in 64, and more blocks hide more of the memory's latency: an H100 takes a fifth less time.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BOUND_BLOCKS = 3;
#else
constexpr int BOUND_BLOCKS = 4;
#endif
constexpr int THREADS = 256, SCORE_BLOCKS = CODE_BITS == 8 || TRELLIS ? 2 : 3;
// Coordinates of a query that are in shared memory at a time, as halves.
constexpr int CHUNK_HALVES = 256;
// Lanes that share a row which is scored in full; 8 rows of a warp, as a block of the leading planes has them.
constexpr int LANES = 4, WARP_ROWS = 32 / LANES, BLOCK_ROWS = THREADS / LANES;
// Words that a thread reads of a row before it needs the first.
constexpr int AHEAD = 4;
// Groups of rows that a warp has, of each of which one row is likely.
constexpr int WARP_GROUPS = 4, BLOCK_GROUPS = THREADS / 32 * WARP_GROUPS;
// What float32 sums of scores may differ by, relative to their largest part (tqindex.kernels.cascade).
constexpr float SLACK = 1.f / (1 << 21);
// The same of a bound, and the least step of a query by which there are bounds (tqindex.kernels.coarse, .queries).
constexpr float BOUND_SLACK = 1.f / (1 << 20), LEAST_STEP = 1.f / (1ll << 55) / (1ll << 55);

// A bound is kept as a byte: where it lies, rounded up, between the least and the largest of the THREADS rows that a
// block bounds together; 0 for a row that is not live. Bounds are written and read again, and four bytes of each would
// be a third of a short row's first plane.
struct Range {
  float least, largest;

  __device__ float step() const { return (largest - least) / 254.f; }
  __device__ float read(int code) const { return code == 255 ? largest : least + (code - 1) * step(); }
  __device__ int store(float bound) const {
    if (!(step() > 0.f && step() < 1e38f)) return 255;
    int code = 1 + (int)fminf((bound - least) / step(), 254.f);
    while (code < 255 && read(code) < bound) ++code;
    return code;
  }
};

// Bring the halves first.. of a query to shared memory.
__device__ void stage_query(const signed char* query, int halves, int first, int4* staged) {
  const int count = min(CHUNK_HALVES, halves - first) * 2;
  const int4* from = reinterpret_cast<const int4*>(query) + 2 * first;
  for (int i = threadIdx.x; i < count; i += THREADS) staged[i] = from[i];
}

// The same, by bits: word i of 8 has the coordinates i, i + 8, i + 16 and i + 24, one of each byte of a plane's half.
__device__ void stage_query_by_bits(const signed char* query, int halves, int first, int4* staged) {
  const int4* from = reinterpret_cast<const int4*>(query) + 2 * first;
  for (int half = threadIdx.x; half < min(CHUNK_HALVES, halves - first); half += THREADS) {
    const int4 low = from[2 * half], high = from[2 * half + 1];
    const int lower[4] = {low.x, low.z, high.x, high.z}, upper[4] = {low.y, low.w, high.y, high.w};
    int even[4], odd[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      even[i] = (int)__byte_perm((unsigned)lower[i], (unsigned)upper[i], 0x6420);
      odd[i] = (int)__byte_perm((unsigned)lower[i], (unsigned)upper[i], 0x7531);
    }
    staged[2 * half] = make_int4(even[0], even[1], even[2], even[3]);
    staged[2 * half + 1] = make_int4(odd[0], odd[1], odd[2], odd[3]);
  }
}

// Sums of a query over the set bits of a plane: steps[i] has that of word i times 2^i, and the last times -2^7, since a
// mask alone, without a shift, leaves bit i of each byte where it is.
struct BitSums {
  int steps[STEPS];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) steps[i] = 0;
  }
  __device__ void add(unsigned bits, int4 low, int4 high) {
    const int query[STEPS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < STEPS; ++i) steps[i] = __dp4a((int)(bits & 0x01010101u << i), query[i], steps[i]);
  }
  __device__ void add_word(unsigned long long word, const int4* query) {
    add((unsigned)word, query[0], query[1]);
    add((unsigned)(word >> HALF), query[2], query[3]);
  }
  __device__ int total() const {
    int sum = -(steps[STEPS - 1] >> (STEPS - 1));
#pragma unroll
    for (int i = 0; i < STEPS - 1; ++i) sum += steps[i] >> i;
    return sum;
  }
};

__device__ __forceinline__ bool is_live_row(const unsigned char* live, int has_live, long long row) {
  return !has_live || (live[row / 8] >> row % 8 & 1);
}

// What a query makes of a sum over the set bits of a row's first plane: scale * (gap * sum + estimate) is the partial
// score, and with `bound` for `estimate` what the score stays below.
struct Weights {
  float gap, estimate, bound;
};

// lowest, gap, margin: the codec's numbers for a query of step 1 (few.py: bound_constants)
__device__ Weights weigh(float step, int sum, int squares, double lowest, double gap, double margin) {
  if (!(step >= LEAST_STEP)) return {0.f, 0.f, 3e38f};  // too short for bounds: all rows reach every threshold
  const double estimate = step * lowest * sum;
  return {(float)(step * gap), (float)estimate, (float)(estimate + step * margin * sqrt((double)squares))};
}

// The range of the bounds of a block's live rows; all threads must call, with a bound of -inf where there is none.
// room: used by one call of two, so that threads may go on before all have read.
__device__ Range find_range(float bound, float2* room) {
  const bool is_there = bound > no_score();
  float least = is_there ? bound : -no_score(), largest = bound;
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    least = fminf(least, __shfl_xor_sync(WHOLE_WARP, least, apart));
    largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, apart));
  }
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = make_float2(least, largest);
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; ++warp) {
    least = fminf(least, room[warp].x);
    largest = fmaxf(largest, room[warp].y);
  }
  return {least, largest};
}

// Bound every live row by its first plane, -inf for others; find of each group of rows the best estimate.
//
// Blocks: (rows, queries); thread t of block b has the rows (b * turns + turn) * THREADS + t, and every WARP_GROUPS-th
// thread of a warp is of the same group: rows that follow each other, and are often alike, are of several
// lead: the first plane; lowest .. margin: as weigh
// bounds: (nq, n), ranges: (nq, ceil(n / THREADS), 2), as Range
// estimates, estimated_rows: (nq, blocks.x * BLOCK_GROUPS), -inf and NO_ROW for a group without live rows
extern "C" __global__ void __launch_bounds__(THREADS, BOUND_BLOCKS)
    bound_rows(const unsigned char* __restrict__ lead, int width, const float* __restrict__ scales,
               const float* __restrict__ offsets, int has_offsets, const unsigned char* __restrict__ live,
               int has_live, long long n, const signed char* __restrict__ queries, int depth,
               const float* __restrict__ reals, const int* __restrict__ integers, double lowest, double gap,
               double margin, int turns, unsigned char* __restrict__ bounds, float* __restrict__ ranges,
               float* __restrict__ estimates, unsigned* __restrict__ estimated_rows) {
  __shared__ int4 staged[2 * CHUNK_HALVES];
  __shared__ Weights weights;
  __shared__ float2 room[2][THREADS / 32];
  const long long query = blockIdx.y;
  const int halves = depth / HALF;
  float best = no_score();
  unsigned best_row = NO_ROW;
  if (threadIdx.x == 0)
    weights = weigh(reals[3 * query], integers[3 * query], integers[3 * query + 2], lowest, gap, margin);
  if (halves <= CHUNK_HALVES) stage_query_by_bits(queries + query * depth, halves, 0, staged);
  __syncthreads();
  for (int turn = 0; turn < turns; ++turn) {
    const long long row = ((long long)blockIdx.x * turns + turn) * THREADS + threadIdx.x;
    const bool is_live = row < n && is_live_row(live, has_live, row);
    const unsigned char* block = lead + row / STORED_BLOCK * STORED_BLOCK * width;
    BitSums sums;
    sums.clear();
    for (int first = 0; first < halves; first += CHUNK_HALVES) {
      if (halves > CHUNK_HALVES) {
        __syncthreads();  // what was staged before has been read
        stage_query_by_bits(queries + query * depth, halves, first, staged);
        __syncthreads();
      }
      if (!is_live) continue;
      const int last = min(first + CHUNK_HALVES, (width + 3) / 4);
      const int last_ahead = min(last, (width >> 3) * WORD_HALVES) - AHEAD * WORD_HALVES;
      const auto* words = reinterpret_cast<const unsigned long long*>(block) + row % STORED_BLOCK;
      int half = first;
      for (; half <= last_ahead; half += AHEAD * WORD_HALVES) {
        unsigned long long ahead[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) ahead[i] = words[STORED_BLOCK * (half / WORD_HALVES + i)];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) sums.add_word(ahead[i], staged + 2 * (half - first + i * WORD_HALVES));
      }
#pragma unroll 1
      for (; half < last; half += WORD_HALVES) {
        const unsigned long long word = load_lead_word(block, row % STORED_BLOCK, width, half / WORD_HALVES);
        sums.add_word(word, staged + 2 * (half - first));
      }
    }
    float bound = no_score();
    if (is_live) {
      const float scale = scales[row], sum = weights.gap * (float)sums.total();
      float offset = 0.f;
      if (has_offsets) offset = offsets[row] + BOUND_SLACK * fabsf(offsets[row]);
      bound = (weights.bound + sum) * scale + offset;
      const float estimate = (weights.estimate + sum) * scale + offset;
      if (estimate > best) best = estimate, best_row = (unsigned)row;
    }
    const Range range = find_range(bound, room[turn % 2]);
    if (row < n) bounds[query * n + row] = is_live ? range.store(bound) : 0;
    if (threadIdx.x == 0 && row < n) {
      float* out = ranges + 2 * (query * ((n + THREADS - 1) / THREADS) + row / THREADS);
      out[0] = range.least, out[1] = range.largest;
    }
  }
#pragma unroll
  for (int apart = WARP_GROUPS; apart < 32; apart *= 2) {
    const float other = __shfl_xor_sync(WHOLE_WARP, best, apart);
    const unsigned other_row = __shfl_xor_sync(WHOLE_WARP, best_row, apart);
    if (other > best || (other == best && other_row < best_row)) best = other, best_row = other_row;
  }
  if (threadIdx.x % 32 >= WARP_GROUPS) return;
  const int group = threadIdx.x / 32 * WARP_GROUPS + threadIdx.x % 32;
  const long long at = (query * gridDim.x + blockIdx.x) * BLOCK_GROUPS + group;
  estimates[at] = best, estimated_rows[at] = best_row;
}

// The threshold of bounds, which lack the query's bias.
__device__ __forceinline__ float lowered(float threshold, float bias) {
  return threshold - bias - SLACK * (fabsf(threshold) + fabsf(bias));
}

// List the rows whose bound reaches the k-th of the best, (nq, k); rows: (nq, n), counts: (nq,), zeroed.
// Blocks: (ranges, queries); bounds, ranges: as bound_rows writes them
extern "C" __global__ void __launch_bounds__(THREADS)
    list_survivors(const unsigned char* __restrict__ bounds, const float* __restrict__ ranges, long long n,
                   const float* __restrict__ best, int k, const float* __restrict__ reals,
                   unsigned* __restrict__ rows, unsigned* __restrict__ counts) {
  const long long query = blockIdx.y, row = (long long)blockIdx.x * THREADS + threadIdx.x;
  const float threshold = lowered(best[query * k + k - 1], reals[3 * query + 2]);
  const float* own = ranges + 2 * (query * gridDim.x + blockIdx.x);
  const Range range = {own[0], own[1]};
  const int code = row < n ? bounds[query * n + row] : 0;
  const bool is_kept = code > 0 && range.read(code) >= threshold;
  const unsigned place = append_place(is_kept, counts + query);
  if (is_kept) rows[query * n + place] = (unsigned)row;
}

struct Sides {
  const float *scales, *sketch_scales, *offsets;
  int has_offsets;
};

// A query, its levels and those of its sketch in the order of the steps.
struct Query {
  const signed char *levels, *sketch_levels;
  int halves;
  QuerySides sides;
};

// A block's part of a query; with all of it there, it is staged once.
struct Staged {
  int4 *levels, *sketch_levels;

  __device__ void fill(const Query& query, int first) const {
    stage_query(query.levels, query.halves, first, levels);
    if (SKETCH) stage_query(query.sketch_levels, query.halves, first, sketch_levels);
  }
};

// The product of a half, or that of its signs, with a query, added to a sum.
template <class Expansion>
__device__ __forceinline__ int dot_half(const unsigned* halves, unsigned history, const unsigned* table,
                                        const int4* query, int sum) {
  const int4 low = query[0], high = query[1];
  const int words[STEPS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  Expansion gathered;
  gathered.gather(halves, history);
#pragma unroll
  for (int step = 0; step < STEPS; step += 2) {
    int levels[2];
    gathered.look_up_pair(step / 2, table, levels);
    sum = __dp4a(levels[1], words[step + 1], __dp4a(levels[0], words[step], sum));
  }
  return sum;
}

// The score of a row, by its LANES lanes together; all threads of the block must call. row: NO_ROW for none, -inf then.
__device__ float score_row(const Codes& codes, const Sides& sides, unsigned row, const Query& query,
                           const unsigned* table, const Staged& staged) {
  const int part = threadIdx.x % 32 / WARP_ROWS;
  const float scale = row == NO_ROW ? 0.f : sides.scales[row];
  int product = 0, signs = 0;
  for (int first = 0; first < query.halves; first += CHUNK_HALVES) {
    if (query.halves > CHUNK_HALVES) {
      __syncthreads();  // what was staged before has been read
      staged.fill(query, first);
      __syncthreads();
    }
    const int last = row == NO_ROW ? 0 : min(first + CHUNK_HALVES, (codes.width + 3) / 4);
#pragma unroll 1
    for (int half = first + part; half < last; half += LANES) {
      unsigned bits[PLANES];
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) bits[plane] = load_half(codes, plane, row, half);
      const unsigned history = load_history(codes, row, half, scale);
      product = dot_half<Gathered>(bits, history, table, staged.levels + 2 * (half - first), product);
#if SKETCH
      signs = dot_half<GatheredSigns>(bits, history, table, staged.sketch_levels + 2 * (half - first), signs);
#endif
    }
  }
#pragma unroll
  for (int apart = WARP_ROWS; apart < 32; apart *= 2) {
    product += __shfl_xor_sync(WHOLE_WARP, product, apart);
    if (SKETCH) signs += __shfl_xor_sync(WHOLE_WARP, signs, apart);
  }
  if (row == NO_ROW) return no_score();
  float score = level_score(scale, query.sides, product);
  if (SKETCH) score += sketch_score(sides.sketch_scales[row], query.sides, signs);
  if (sides.has_offsets) score += sides.offsets[row];
  return score + query.sides.bias;
}

// Score `count` rows in full, or those that `rows` lists, (nq, count), or (count,) with rows_stride 0.
// scores: (nq, count), -inf for NO_ROW
//
// Blocks: (any number, queries); lead .. width: as Codes; queries .. integers: as in scan.cu; levels: the codebook's
extern "C" __global__ void __launch_bounds__(THREADS, SCORE_BLOCKS)
    score_rows(const unsigned char* __restrict__ lead, const unsigned char* __restrict__ rest, long long blocks,
               int leading, int width, const float* __restrict__ scales, const float* __restrict__ sketch_scales,
               const float* __restrict__ offsets, int has_offsets, const unsigned* __restrict__ rows, int has_rows,
               long long rows_stride, long long count,
               const signed char* __restrict__ queries, const signed char* __restrict__ sketch_queries,
               const float* __restrict__ reals, const int* __restrict__ integers,
               const unsigned* __restrict__ levels, int depth, float* __restrict__ scores) {
  __shared__ int4 staged_levels[2 * CHUNK_HALVES], staged_sketch[SKETCH ? 2 * CHUNK_HALVES : 1];
  const Codes codes = {lead, rest, blocks, leading, width};
  const Sides sides = {scales, sketch_scales, offsets, has_offsets};
  KEEP_LEVELS(table, levels)
  const long long q = blockIdx.y;
  const Query query = {queries + q * depth, sketch_queries + SKETCH * q * depth, depth / HALF,
                       load_sides(reals, integers, q)};
  const Staged staged = {staged_levels, staged_sketch};
  const int own = threadIdx.x / 32 * WARP_ROWS + threadIdx.x % WARP_ROWS;
  staged.fill(query, 0);
  __syncthreads();
  const long long begin = (long long)blockIdx.x * BLOCK_ROWS, step = (long long)gridDim.x * BLOCK_ROWS;
  for (long long first = begin; first < count; first += step) {
    const long long i = first + own;
    const unsigned row = i >= count ? NO_ROW : has_rows ? rows[q * rows_stride + i] : (unsigned)i;
    const float score = score_row(codes, sides, row, query, table, staged);
    if (i < count && threadIdx.x % 32 < WARP_ROWS) scores[q * count + i] = score;
  }
}

// Score the rows of each query's list, (nq, n), of which counts[query] are there, and keep those that reach the k-th of
// the best, (nq, k): kept_scores, kept_rows (nq, n), kept_counts (nq,), zeroed. Blocks: (any number, queries).
extern "C" __global__ void __launch_bounds__(THREADS, SCORE_BLOCKS)
    score_survivors(const unsigned char* __restrict__ lead, const unsigned char* __restrict__ rest, long long blocks,
                    int leading, int width, const float* __restrict__ scales,
                    const float* __restrict__ sketch_scales, const float* __restrict__ offsets, int has_offsets,
                    const unsigned* __restrict__ rows, const unsigned* __restrict__ counts, long long n,
                    const signed char* __restrict__ queries, const signed char* __restrict__ sketch_queries,
                    const float* __restrict__ reals, const int* __restrict__ integers,
                    const unsigned* __restrict__ levels, int depth, const float* __restrict__ best, int k,
                    float* __restrict__ kept_scores, unsigned* __restrict__ kept_rows,
                    unsigned* __restrict__ kept_counts) {
  __shared__ int4 staged_levels[2 * CHUNK_HALVES], staged_sketch[SKETCH ? 2 * CHUNK_HALVES : 1];
  const long long q = blockIdx.y, count = counts[q];
  if ((long long)blockIdx.x * BLOCK_ROWS >= count) return;  // a whole block
  const Codes codes = {lead, rest, blocks, leading, width};
  const Sides sides = {scales, sketch_scales, offsets, has_offsets};
  KEEP_LEVELS(table, levels)
  const Query query = {queries + q * depth, sketch_queries + SKETCH * q * depth, depth / HALF,
                       load_sides(reals, integers, q)};
  const Staged staged = {staged_levels, staged_sketch};
  const int own = threadIdx.x / 32 * WARP_ROWS + threadIdx.x % WARP_ROWS;
  const float threshold = best[q * k + k - 1];
  staged.fill(query, 0);
  __syncthreads();
  const long long begin = (long long)blockIdx.x * BLOCK_ROWS, step = (long long)gridDim.x * BLOCK_ROWS;
  for (long long first = begin; first < count; first += step) {
    const unsigned row = first + own < count ? rows[q * n + first + own] : NO_ROW;
    const float score = score_row(codes, sides, row, query, table, staged);
    const bool is_kept = row != NO_ROW && threadIdx.x % 32 < WARP_ROWS && score >= threshold;
    const unsigned place = append_place(is_kept, kept_counts + q);
    if (is_kept) kept_scores[q * n + place] = score, kept_rows[q * n + place] = row;
  }
}
