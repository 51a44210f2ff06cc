// What the kernels' sources share: where the stored layout keeps a row's planes.

constexpr unsigned WHOLE_WARP = 0xffffffffu;
// Leading planes lie in blocks of so many rows (tqindex.codec.packing: BLOCK).
constexpr int STORED_BLOCK = 8;

// Where byte i of a row lies in its block of a leading plane, `row` from 0 to 7, `width` bytes to a plane: whole words of
// the 8 rows follow each other, then what is left in pieces of 4, 2 and 1 bytes (tqindex.codec.packing: interleave_rows).
__device__ __forceinline__ int lead_place(int i, int row, int width) {
  const int tail = width & 7, words = width - tail;
  int size = 8, start = i & ~7;
  if (i >= words) {
    const int left = i - words;
    size = left < (tail & 4) ? 4 : left < (tail & 6) ? 2 : 1;
    start = words + (size == 4 ? 0 : size == 2 ? tail & 4 : tail & 6);
  }
  return STORED_BLOCK * start + row * size + (i - start);
}

// Where a thread puts what it keeps in a list that has *count entries; raises *count by those of its warp, all of which
// must call.
__device__ __forceinline__ unsigned append_place(bool is_kept, unsigned* count) {
  const unsigned kept = __ballot_sync(WHOLE_WARP, is_kept), lane = threadIdx.x % 32;
  unsigned first = 0;
  if (lane == 0 && kept) first = atomicAdd(count, (unsigned)__popc(kept));
  return __shfl_sync(WHOLE_WARP, first, 0) + __popc(kept & ((1u << lane) - 1));
}

// A key that is smaller for what is better.
__device__ __forceinline__ unsigned score_key(float score) {
  const unsigned bits = __float_as_uint(score + 0.f);  // 0 for -0
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}
__device__ __forceinline__ float score_of_key(unsigned key) {
  return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffff);
}
