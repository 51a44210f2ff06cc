// One kernel for each group of CUDA's functions that the shim offers; test_gpu_intrinsics.py knows what they return.
#include "tensor.cuh"

extern "C" __global__ void shuffle(int kind, int width, const int* operands, const int* values, int* out) {
  const int lane = threadIdx.x, value = values[lane], operand = operands[lane];
  const unsigned all = 0xffffffffu;
  if (kind == 0) out[lane] = __shfl_sync(all, value, operand, width);
  if (kind == 1) out[lane] = __shfl_up_sync(all, value, operand, width);
  if (kind == 2) out[lane] = __shfl_down_sync(all, value, operand, width);
  if (kind == 3) out[lane] = __shfl_xor_sync(all, value, operand, width);
}

extern "C" __global__ void shuffle_wide(const double* values, double* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, values[threadIdx.x], 5);
}

extern "C" __global__ void vote(unsigned mask, const int* values, unsigned* out) {
  const int lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  out[lane] = __ballot_sync(mask, values[lane]);
  out[32 + lane] = __any_sync(mask, values[lane]);
  out[64 + lane] = __all_sync(mask, values[lane]);
}

extern "C" __global__ void barrier_vote(const int* values, int* out) {
  const int thread = threadIdx.x, n = blockDim.x;
  out[thread] = __syncthreads_count(values[thread]);
  out[n + thread] = __syncthreads_and(values[thread]);
  out[2 * n + thread] = __syncthreads_or(values[thread]);
}

// Warp w adds up what warp w + 1 has written after its own __syncwarp.
extern "C" __global__ void meet(const int* values, int* out) {
  __shared__ int kept[64];
  const int lane = threadIdx.x & 31, first = threadIdx.x & ~31;
  kept[threadIdx.x] = values[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = kept[first + (lane + 1) % 32];
  __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
}

extern "C" __global__ void integers(const unsigned* a, const unsigned* b, const unsigned* c, unsigned* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned long long wide = (unsigned long long)b[i] << 32 | a[i];
  out[i] = (unsigned)__dp4a((int)a[i], (int)b[i], (int)c[i]);
  out[n + i] = __dp4a(a[i], b[i], c[i]);
  out[2 * n + i] = __popc(a[i]);
  out[3 * n + i] = __popcll(wide);
  out[4 * n + i] = __clz((int)a[i]);
  out[5 * n + i] = __clzll((long long)wide);
  out[6 * n + i] = __ffs((int)a[i]);
  out[7 * n + i] = __ffsll((long long)wide);
  out[8 * n + i] = __brev(a[i]);
  out[9 * n + i] = __byte_perm(a[i], b[i], c[i]);
  out[10 * n + i] = __funnelshift_l(a[i], b[i], c[i]);
  out[11 * n + i] = __funnelshift_r(a[i], b[i], c[i]);
  out[12 * n + i] = __umulhi(a[i], b[i]);
  out[13 * n + i] = min(a[i], b[i]);
  out[14 * n + i] = (unsigned)max((int)a[i], (int)b[i]);
}

extern "C" __global__ void floats(const float* a, const float* b, const float* c, float* out, int* rounded, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  out[i] = __fadd_rn(a[i], b[i]);
  out[n + i] = __fsub_rn(a[i], b[i]);
  out[2 * n + i] = __fmul_rn(a[i], b[i]);
  out[3 * n + i] = __fdiv_rn(a[i], b[i]);
  out[4 * n + i] = __fsqrt_rn(a[i]);
  out[5 * n + i] = __fmaf_rn(a[i], b[i], c[i]);
  out[6 * n + i] = a[i] * b[i] + c[i];
  out[7 * n + i] = __int_as_float(__float_as_int(a[i]));
  out[8 * n + i] = __double2float_rn(__dsub_rn(__dmul_rn(a[i], b[i]), (double)c[i]));
  rounded[i] = __float2int_rn(a[i]);
}

template <class T>
__device__ void change(T* words, T operand) {
  atomicAdd(&words[0], operand);
  atomicMin(&words[1], operand);
  atomicMax(&words[2], operand);
  atomicOr(&words[3], operand);
  atomicAnd(&words[4], operand);
  atomicXor(&words[5], operand);
  atomicExch(&words[6], operand);
  atomicCAS(&words[7], (T)7, operand);
}

extern "C" __global__ void atomics(unsigned* words, unsigned long long* wide, float* sum) {
  change(words, blockIdx.x * blockDim.x + threadIdx.x + 1);
  change(wide, (unsigned long long)(blockIdx.x * blockDim.x + threadIdx.x + 1) << 33);
  atomicAdd(sum, 1.f);
}

extern "C" __global__ void place(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  int* at = out + 6LL * (block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread);
  at[0] = threadIdx.x, at[1] = threadIdx.y, at[2] = threadIdx.z;
  at[3] = blockIdx.x, at[4] = blockIdx.y, at[5] = blockIdx.z;
}

extern "C" __global__ void vectors(const float* in, float* out) {
  const float4 v = reinterpret_cast<const float4*>(in)[threadIdx.x];
  reinterpret_cast<float4*>(out)[threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
}

extern "C" __global__ void uninitialised(int* out) {
  __shared__ int kept[4];
  out[blockIdx.x] = kept[blockIdx.x & 3];
  kept[blockIdx.x & 3] = 0;
}

// A lane's parts of the matrices, one after the other: rows (32, 4), columns (32, 2), sums (32, 4).
extern "C" __global__ void multiply(const unsigned* rows, const unsigned* columns, int* sums) {
  const int lane = threadIdx.x;
  unsigned own_rows[4], own_columns[2];
  int own_sums[4];
  for (int i = 0; i < 4; ++i) own_rows[i] = rows[4 * lane + i], own_sums[i] = sums[4 * lane + i];
  for (int i = 0; i < 2; ++i) own_columns[i] = columns[2 * lane + i];
  multiply_add(own_sums, own_rows, own_columns);
  for (int i = 0; i < 4; ++i) sums[4 * lane + i] = own_sums[i];
}
