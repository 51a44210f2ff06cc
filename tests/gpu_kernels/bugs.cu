// Small kernels that are right as they stand; each macro BUG_... puts one bug in, which test_gpu_bugs.py wants caught.
#define BLOCK 64

// Inner products of an int8 query and 4-bit codes, two to a byte; one block for each row.
// codes: (n, dim / 2); query: (dim); out: (n)
extern "C" __global__ void __launch_bounds__(BLOCK)
    score(const unsigned char* codes, const signed char* query, int* out, int dim) {
  __shared__ signed char levels[16];
  __shared__ int partial[BLOCK / 32];
  const int thread = threadIdx.x, words = dim / 4;
#if defined(BUG_SHARED_NOT_SET)
  if (thread < 15) levels[thread] = (signed char)(16 * thread - 120);
#else
  if (thread < 16) levels[thread] = (signed char)(16 * thread - 120);
#endif
#if !defined(BUG_NO_BARRIER)
  __syncthreads();
#endif
#if defined(BUG_GLOBAL_OUT_OF_BOUNDS)
  const int end = words + 1;
#else
  const int end = words;
#endif
#if defined(BUG_MISALIGNED)
  const unsigned char* row = codes + (long long)blockIdx.x * (dim / 2) + 1;
#else
  const unsigned char* row = codes + (long long)blockIdx.x * (dim / 2);
#endif
  int sum = 0;
  for (int word = thread; word < end; word += BLOCK) {
    const unsigned c = reinterpret_cast<const unsigned short*>(row)[word];
    const unsigned x = (levels[c & 15] & 255u) | (levels[c >> 4 & 15] & 255u) << 8 | (levels[c >> 8 & 15] & 255u) << 16 |
                       (levels[c >> 12] & 255u) << 24;
    sum = __dp4a((int)x, reinterpret_cast<const int*>(query)[word], sum);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (thread % 32 == 0) partial[thread / 32] = sum;
#if defined(BUG_DIVERGENT_BARRIER)
  if (thread < 32)
#endif
    __syncthreads();
  if (thread) return;
#if defined(BUG_SHARED_OUT_OF_BOUNDS)
  const int count = BLOCK / 32 + 1;
#else
  const int count = BLOCK / 32;
#endif
  int total = 0;
  for (int warp = 0; warp < count; ++warp) total += partial[warp];
  out[blockIdx.x] = total;
}

// How often each 4-bit code occurs.
extern "C" __global__ void histogram(const unsigned char* codes, long long bytes, unsigned* counts) {
  __shared__ unsigned mine[16];
  if (threadIdx.x < 16) mine[threadIdx.x] = 0;
  __syncthreads();
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < bytes; i += step) {
#if defined(BUG_SHARED_NOT_ATOMIC)
    mine[codes[i] & 15] += 1;
    mine[codes[i] >> 4] += 1;
#else
    atomicAdd(&mine[codes[i] & 15], 1);
    atomicAdd(&mine[codes[i] >> 4], 1);
#endif
  }
  __syncthreads();
#if defined(BUG_GLOBAL_NOT_ATOMIC)
  if (threadIdx.x < 16) counts[threadIdx.x] += mine[threadIdx.x];
#else
  if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
#endif
}

// Each lane takes its neighbour's value through shared memory; a shuffle orders no memory, __syncwarp does.
extern "C" __global__ void rotate(const int* values, int* out) {
  __shared__ int kept[32];
  kept[threadIdx.x] = values[threadIdx.x];
#if defined(BUG_SHUFFLE_FOR_SYNC)
  const int extra = __shfl_xor_sync(0xffffffffu, 0, 1);
#else
  const int extra = 0;
  __syncwarp();
#endif
  out[threadIdx.x] = kept[(threadIdx.x + 1) % 32] + extra;
}
