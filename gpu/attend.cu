// Attention on packed keys and values: products of a head's keys with its few queries, sums of its values by weights.
// The numbers are those of tqindex.kernels.kv, in its order of operations.
//
// Keys are strips of 16 tokens, values strips of 16 channels of a page (tqindex.kernels.kv_layout). A thread has a lane
// of them, a token or a channel, and multiplies its codes with all of the head's queries, or with all of their weights
// of the page's tokens times norms: codes are read once. Each of these vectors is the sum of two of int8, so that
// products are exact integers.
//
// 1. score_means: what the means of keys' pages add to logits
// 2. score_keys: the logits of packed tokens; their softmax, with that of exact tokens, is the caller's
// 3. weigh_values: each block the sum of some pages
// 4. add_sums: these, one after the other, so that the result does not depend on the order in which blocks run
#include "common.cuh"
#include "codes.cuh"

// Queries of a head that a thread has at a time, its group; a second group of 8 takes the codes from the cache.
#ifndef QUERIES
#define QUERIES 4
#endif

constexpr int THREADS = 128;
constexpr int GROUPS = QUERIES == 8 ? 2 : 1, MOST_QUERIES = GROUPS * QUERIES;
// Blocks of one multiprocessor: 80 registers for each thread, and 128 for 8 queries.
constexpr int BLOCKS = QUERIES == 8 ? 4 : 6;
// Lanes of a strip; codes of a step, which lie in the four bytes of a word, or in fields of them.
constexpr int LANES = 16, STEP = 4;
// Steps of the vectors that are in shared memory at a time; a page has at least 8.
constexpr int MOST_STEPS = 128, MOST_PAGES = MOST_STEPS / 8;
// Words of the two parts of a group's vectors, which lie side by side in each step.
constexpr int STEP_WORDS = 2 * QUERIES;
// A vector's second part is so much finer than its first; what is smaller than LEAST counts as 0.
constexpr float COARSEST = 127.f, FINER = 254.f, LEAST = 1.f / (1ll << 50) / (1ll << 50);
// Norms of 16 bits (tqindex.kernels.kv_norms): the bits of a float32 that are cut off, and the exponent of 2**-32.
constexpr int NORM_CUT = 13, LEAST_EXPONENT = (127 - 32) << 10;
// Steps whose codes fill whole words, and these words. A code of 3 bits is kept as a field of 2 bits and one of 1.
constexpr int UNIT_STEPS = CODE_BITS == 3 ? 8 : 8 / CODE_BITS, UNIT_WORDS = CODE_BITS == 3 ? 3 : 1;

__device__ __forceinline__ float unpack_norm(unsigned short norm) {
  return norm ? __uint_as_float((unsigned)(norm + LEAST_EXPONENT) << NORM_CUT) : 0.f;
}

// The codes of a step of a unit, one in each byte.
__device__ __forceinline__ unsigned unit_codes(const unsigned* words, int step) {
#if CODE_BITS == 3
  return (words[step / 4] >> step % 4 * 2 & 0x03030303u) << 1 | take_step(words[2], step);
#else
  return words[0] >> step * CODE_BITS & ((1u << CODE_BITS) - 1) * 0x01010101u;
#endif
}

// What the products of a vector's two parts become a float32 by; a reading's shift and half step are in them.
struct Side {
  int shift[2];
  float factor[2];
};

// How levels are read: a level is step * (look_up + shift / 2); half: of the step.
struct Reading {
  int shift;
  float half;
};

// Bring a vector to shared memory as two of int8, by a warp, all of whose lanes must call.
//
// number(i): the vector's i-th, 0 beyond its end; staged: the vector's place in the first step of its group
template <class Number>
__device__ void stage_vector(Number number, int steps, Reading reading, int* staged, Side* side) {
  const int lane = threadIdx.x % 32;
  int bits = 0;  // absolute numbers are ordered as their bits are; NaN is above all
  for (int i = lane; i < STEP * steps; i += 32) bits = max(bits, __float_as_int(number(i)) & 0x7fffffff);
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) bits = max(bits, __shfl_xor_sync(WHOLE_WARP, bits, apart));
  const double largest = __int_as_float(bits);
  const float inverse = largest > LEAST ? (float)(COARSEST / largest) : 0.f;
  int sums[2] = {0, 0};
  for (int step = lane; step < steps; step += 32) {
    unsigned coarse = 0, fine = 0;
#pragma unroll
    for (int byte = 0; byte < STEP; ++byte) {
      const float scaled = number(STEP * step + byte) * inverse;
      const int rounded = __float2int_rn(scaled), rest = __float2int_rn((scaled - (float)rounded) * FINER);
      coarse |= (rounded & 0xffu) << 8 * byte, fine |= (rest & 0xffu) << 8 * byte;
    }
    staged[step * STEP_WORDS] = coarse, staged[step * STEP_WORDS + 1] = fine;
    sums[0] = __dp4a((int)coarse, 0x01010101, sums[0]), sums[1] = __dp4a((int)fine, 0x01010101, sums[1]);
  }
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sums[part] += __shfl_xor_sync(WHOLE_WARP, sums[part], apart);
    if (lane == 0) {
      side->shift[part] = reading.shift * sums[part];
      side->factor[part] = reading.half * (float)(largest / (part ? (double)COARSEST * FINER : COARSEST));
    }
  }
}

// The products of one lane with the parts of a group's vectors.
struct Products {
  int parts[QUERIES][2];

  // words: the lane's first; those of a lane lie LANES apart
  __device__ void multiply(const unsigned* words, int units, const unsigned* table, const int* staged) {
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) parts[q][0] = parts[q][1] = 0;
#pragma unroll 2
    for (int unit = 0; unit < units; ++unit) {
      unsigned bits[UNIT_WORDS];
#pragma unroll
      for (int word = 0; word < UNIT_WORDS; ++word) bits[word] = words[(unit * UNIT_WORDS + word) * LANES];
#pragma unroll
      for (int step = 0; step < UNIT_STEPS; ++step)
        add(look_up(unit_codes(bits, step), table), staged + (unit * UNIT_STEPS + step) * STEP_WORDS);
    }
  }

  __device__ __forceinline__ void add(int levels, const int* vectors) {
#if QUERIES == 1
    const int2 one = *reinterpret_cast<const int2*>(vectors);
    parts[0][0] = __dp4a(levels, one.x, parts[0][0]), parts[0][1] = __dp4a(levels, one.y, parts[0][1]);
#else
#pragma unroll
    for (int q = 0; q < QUERIES; q += 2) {
      const int4 two = reinterpret_cast<const int4*>(vectors)[q / 2];
      parts[q][0] = __dp4a(levels, two.x, parts[q][0]), parts[q][1] = __dp4a(levels, two.y, parts[q][1]);
      parts[q + 1][0] = __dp4a(levels, two.z, parts[q + 1][0]);
      parts[q + 1][1] = __dp4a(levels, two.w, parts[q + 1][1]);
    }
#endif
  }

  __device__ __forceinline__ float total(int q, const Side& side) const {
    return (float)(2 * parts[q][0] + side.shift[0]) * side.factor[0] +
           (float)(2 * parts[q][1] + side.shift[1]) * side.factor[1];
  }
};

// Products of pages' means, the bits of bfloat16, with queries that are not rotated.
//
// Blocks: (pages, heads), of LANES threads for each query, whole warps
// means: (heads, pages, dim); queries: (heads, n, dim); out: (heads, n, pages)
extern "C" __global__ void __launch_bounds__(2 * THREADS)
    score_means(const unsigned short* __restrict__ means, const float* __restrict__ queries, int n, int dim,
                float* __restrict__ out) {
  const int q = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const long long pages = gridDim.x, page = blockIdx.x, head = blockIdx.y;
  const unsigned short* mean = means + (head * pages + page) * dim;
  const float* query = queries + (head * n + q) * dim;
  float sum = 0.f, total = 0.f;
  if (q < n)
    for (int i = lane; i < dim; i += LANES) sum += query[i] * __uint_as_float((unsigned)mean[i] << 16);
#pragma unroll
  for (int from = 0; from < LANES; ++from) total += __shfl_sync(WHOLE_WARP, sum, from, LANES);
  if (q < n && lane == 0) out[(head * n + q) * pages + page] = total;
}

// Logits of each head's first tokens, to columns at..: what their pages' means add, or if there are no pages what is
// there, plus their products with the head's queries.
//
// Blocks: (any number, heads), of THREADS
// words: (heads, strips, units, UNIT_WORDS, LANES); norms: (heads, strips * LANES); levels: 16 of int8
// queries: (heads, n, dim), rotated, n up to MOST_QUERIES; mean_scores: (heads, n, pages); out: (heads, n, columns)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    score_keys(const unsigned* __restrict__ words, const unsigned short* __restrict__ norms,
               const unsigned* __restrict__ levels, int shift, float half, long long strips, int units,
               const float* __restrict__ queries, int n, int dim, const float* __restrict__ mean_scores,
               long long pages, int page, long long at, long long tokens, long long columns,
               float* __restrict__ out) {
  __shared__ int4 room[MOST_STEPS * GROUPS * STEP_WORDS / 4];
  __shared__ Side sides[MOST_QUERIES];
  int* staged = reinterpret_cast<int*>(room);
  const int steps = units * UNIT_STEPS, groups = (n + QUERIES - 1) / QUERIES;
  const long long head = blockIdx.y;
  const unsigned table[4] = {levels[0], levels[1], levels[2], levels[3]};
  for (int q = threadIdx.x / 32; q < groups * QUERIES; q += THREADS / 32) {
    const float* query = queries + (head * n + q) * dim;
    const int count = q < n ? dim : 0;
    const auto number = [=](int i) { return i < count ? query[i] : 0.f; };
    int* to = staged + q / QUERIES * steps * STEP_WORDS + q % QUERIES * 2;
    stage_vector(number, steps, {shift, half}, to, sides + q);
  }
  __syncthreads();
  const long long step = (long long)gridDim.x * THREADS;
  for (long long token = (long long)blockIdx.x * THREADS + threadIdx.x; token < tokens; token += step) {
    const long long strip = head * strips + token / LANES;
    const unsigned* lane = words + strip * units * UNIT_WORDS * LANES + token % LANES;
    const float norm = unpack_norm(norms[head * strips * LANES + token]);
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
      Products products;
      products.multiply(lane, units, table, staged + group * steps * STEP_WORDS);
#pragma unroll
      for (int i = 0; i < QUERIES; ++i) {
        const int q = group * QUERIES + i;
        if (q >= n) break;
        float* to = out + (head * n + q) * columns + at + token;
        const float base = pages ? mean_scores[(head * n + q) * pages + token / page] : *to;
        *to = base + norm * products.total(i, sides[q]);
      }
    }
  }
}

// Sums of the values of each head's first tokens, by the weights in columns at.. of each query: of each block those of
// the pages blockIdx.x * block_pages.., one after the other.
//
// Blocks: (any number, heads, enough for all channels), of threads (whole warps of channels, groups)
// words: (heads, pages, strips, units, UNIT_WORDS, LANES); norms: (heads, pages * page); levels: 16 of int8
// weights: (heads, n, columns), n up to MOST_QUERIES; sums: (blocks.x, heads, n, dim)
extern "C" __global__ void __launch_bounds__(THREADS * GROUPS, BLOCKS / GROUPS)
    weigh_values(const unsigned* __restrict__ words, const unsigned short* __restrict__ norms,
                 const unsigned* __restrict__ levels, int shift, float half, long long pages, int strips, int units,
                 const float* __restrict__ weights, int n, long long at, long long tokens, long long columns, int dim,
                 int block_pages, float* __restrict__ sums) {
  __shared__ int4 room[MOST_STEPS * GROUPS * STEP_WORDS / 4];
  __shared__ Side sides[MOST_PAGES * MOST_QUERIES];
  int* staged = reinterpret_cast<int*>(room);
  const int steps = units * UNIT_STEPS, page = STEP * steps, at_once = MOST_STEPS / steps;
  const int vectors = blockDim.y * QUERIES, warps = blockDim.y * blockDim.x / 32;
  const int channel = blockIdx.z * blockDim.x + threadIdx.x, group = threadIdx.y;
  const long long head = blockIdx.y, first = (long long)blockIdx.x * block_pages;
  const long long last = min(first + block_pages, (tokens + page - 1) / page);
  const unsigned table[4] = {levels[0], levels[1], levels[2], levels[3]};
  float totals[QUERIES];
#pragma unroll
  for (int q = 0; q < QUERIES; ++q) totals[q] = 0.f;
  for (long long begin = first; begin < last; begin += at_once) {
    const int count = (int)min((long long)at_once, last - begin);
    __syncthreads();  // what was staged before has been read
    for (int i = (threadIdx.y * blockDim.x + threadIdx.x) / 32; i < count * vectors; i += warps) {
      const int q = i % vectors;
      const long long start = (begin + i / vectors) * page;
      const int left = q < n ? (int)min((long long)page, tokens - start) : 0;
      const float* own = weights + (head * n + q) * columns + at + start;
      const unsigned short* own_norms = norms + head * pages * page + start;
      const auto number = [=](int t) { return t < left ? own[t] * unpack_norm(own_norms[t]) : 0.f; };
      int* to = staged + i / QUERIES * steps * STEP_WORDS + q % QUERIES * 2;
      stage_vector(number, steps, {shift, half}, to, sides + i);
    }
    __syncthreads();
    if (channel >= dim) continue;
    for (int i = 0; i < count; ++i) {
      const long long strip = (head * pages + begin + i) * strips + channel / LANES;
      const int first_vector = i * vectors + group * QUERIES;
      Products products;
      products.multiply(words + strip * units * UNIT_WORDS * LANES + channel % LANES, units, table,
                        staged + first_vector / QUERIES * steps * STEP_WORDS);
#pragma unroll
      for (int q = 0; q < QUERIES; ++q) totals[q] += products.total(q, sides[first_vector + q]);
    }
  }
  if (channel >= dim) return;
#pragma unroll
  for (int i = 0; i < QUERIES; ++i) {
    const int q = group * QUERIES + i;
    if (q < n) sums[((blockIdx.x * (long long)gridDim.y + head) * n + q) * dim + channel] = totals[i];
  }
}

// Add (parts, count) to out, (count,), part after part.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_sums(const float* __restrict__ sums, int parts, long long count, float* __restrict__ out) {
  const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  float total = out[i];
  for (int part = 0; part < parts; ++part) total += sums[part * count + i];
  out[i] = total;
}
