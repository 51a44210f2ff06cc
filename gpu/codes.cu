// What scans take, from what is there: queries in the order in which codes are expanded, numbers of live rows.
#include "common.cuh"
#include "codes.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ unsigned char level_of(const signed char* levels, int columns, int coordinate) {
  return coordinate < columns ? levels[coordinate] : 0;
}

// Write a query's levels in the order of codes.cuh; returns this thread's parts of their sum and of their squares'.
__device__ int2 order_levels(const signed char* levels, int columns, int depth, int* out) {
  int sum = 0, squares = 0;
  for (int i = threadIdx.x; i < depth / 4; i += THREADS) {
    const int step = i % STEPS, first = i / STEPS * HALF + step / 2 + step % 2 * (HALF / 2);
    unsigned four = 0;
    for (int byte = 0; byte < 4; ++byte) four |= (unsigned)level_of(levels, columns, first + 4 * byte) << 8 * byte;
    out[i] = four;
    sum = __dp4a((int)four, 0x01010101, sum);
    squares = __dp4a((int)four, (int)four, squares);
  }
  return make_int2(sum, squares);
}

// Bring queries to the form of the scans; blocks: one for each query.
//
// levels .. sketch_steps: as tqindex.codec.codes.QueryCodes, columns at least dim; sketch: whether there is one
// out_levels, out_sketch: int8 (blocks, depth), depth a multiple of HALF; zero beyond the columns
// reals: (blocks, 3), step, sketch step and bias; integers: (blocks, 3), sum, sketch sum, and sum of squares
extern "C" __global__ void __launch_bounds__(THREADS)
    order_queries(const signed char* __restrict__ levels, const float* __restrict__ steps,
                  const int* __restrict__ sums, const float* __restrict__ biases,
                  const signed char* __restrict__ sketch_levels, const float* __restrict__ sketch_steps, int sketch,
                  int columns, int depth, signed char* __restrict__ out_levels, signed char* __restrict__ out_sketch,
                  float* __restrict__ reals, int* __restrict__ integers) {
  __shared__ int squares, sketch_sum;
  const long long query = blockIdx.x, from = query * columns, to = query * depth;
  if (threadIdx.x == 0) squares = sketch_sum = 0;
  __syncthreads();
  atomicAdd(&squares, order_levels(levels + from, columns, depth, reinterpret_cast<int*>(out_levels + to)).y);
  if (sketch)
    atomicAdd(&sketch_sum,
              order_levels(sketch_levels + from, columns, depth, reinterpret_cast<int*>(out_sketch + to)).x);
  __syncthreads();
  if (threadIdx.x != 0) return;
  reals[3 * query] = steps[query];
  reals[3 * query + 1] = sketch ? sketch_steps[query] : 0.f;
  reals[3 * query + 2] = biases[query];
  integers[3 * query] = sums[query];
  integers[3 * query + 1] = sketch_sum;
  integers[3 * query + 2] = squares;
}

// List the rows whose bit is set in `live`, (ceil(n / 8),): numbers in any order, how many to count[0], which was 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    list_live(const unsigned char* __restrict__ live, long long n, unsigned* __restrict__ numbers,
              unsigned* __restrict__ count) {
  const long long row = (long long)blockIdx.x * THREADS + threadIdx.x;
  const bool is_live = row < n && live[row / 8] >> row % 8 & 1;
  const unsigned place = append_place(is_live, count);
  if (is_live) numbers[place] = (unsigned)row;
}
