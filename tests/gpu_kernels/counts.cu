// Kernels whose traffic is known; test_gpu_counts.py says what it is.
extern "C" __global__ void copy(const float* in, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
}

extern "C" __global__ void copy_vectors(const float* in, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  reinterpret_cast<float4*>(out)[i] = reinterpret_cast<const float4*>(in)[i];
}

extern "C" __global__ void gather(const float* in, const int* table, float* out, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[(long long)i * stride] + (float)table[threadIdx.x];
}

extern "C" __global__ void banks(float* out, int stride) {
  __shared__ float kept[32 * 33];
  kept[threadIdx.x * stride] = 1.f;
  __syncthreads();
  out[threadIdx.x] = kept[threadIdx.x * stride];
}

// Two multiplications and an addition a turn, in float32; one addition in float64; a dp4a; half of the warp goes on.
extern "C" __global__ void arithmetic(const float* in, float* out, double* wide, int* dots, int turns) {
  float sum = in[threadIdx.x];
  double other = wide[threadIdx.x];
  int dot = 0;
  for (int turn = 0; turn < turns; ++turn) {
    sum = sum * sum * 0.5f + 1.f;
    other += 1.0;
    dot = __dp4a(dot, dot, turn);
  }
  if (threadIdx.x < 16) {
    for (int turn = 0; turn < turns; ++turn) sum *= 3.f;
  }
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, sum, 1);
  wide[threadIdx.x] = other;
  dots[threadIdx.x] = dot + (__ballot_sync(0xffffffffu, dot > 0) != 0);
}

extern "C" __global__ void add_up(const int* in, int* total) { atomicAdd(total, in[threadIdx.x]); }

extern "C" __global__ void permute(const unsigned* in, unsigned* out, int turns) {
  unsigned value = in[threadIdx.x];
  for (int turn = 0; turn < turns; ++turn) value = __brev(__byte_perm(value, turn, 0x3715));
  out[threadIdx.x] = value;
}

// The first block and the last change the same numbers.
extern "C" __global__ void ends(float* values) {
  if (blockIdx.x == 0 || blockIdx.x == gridDim.x - 1) values[threadIdx.x] += 1.f;
}
