// Rows, each with a team of whole warps that holds its coordinates in registers, and sums over a row whose order is part
// of the format.
//
// DIM: coordinates of a row. BLOCK: threads of a block. ROWS: rows of a block, a power of two up to 8.

constexpr int TEAM = BLOCK / ROWS;
// A thread owns the coordinates member(), member() + TEAM, ...
constexpr int SLOTS = (DIM + TEAM - 1) / TEAM;

__device__ constexpr int round_up_to_power(int n) { return n <= 1 ? 1 : 2 * round_up_to_power((n + 1) / 2); }

// The row of a block that this thread works on, and which of that row's threads it is.
__device__ __forceinline__ int team() { return threadIdx.x / TEAM; }
__device__ __forceinline__ int member() { return threadIdx.x % TEAM; }

// Whether a thread has a thing of some number, where `count` of them are dealt out to the team in turn and others have.
__device__ __forceinline__ bool has_one(int number, int count) {
  return count % TEAM == 0 || (number + 1) * TEAM <= count || member() + number * TEAM < count;
}
__device__ __forceinline__ bool owns(int slot) { return has_one(slot, DIM); }

// Waits for the row's other threads.
__device__ __forceinline__ void sync_team() {
  if (TEAM == 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// One place in 33 stays empty, so that threads which each take 16 neighbours do not wait for the same bank.
__device__ __forceinline__ int place(int j) { return j + (j >> 5); }
constexpr int PITCH = DIM + (DIM - 1) / 32;
// place() of a sum is the sum of both, where one is a multiple of 32 or the two have no bit in common. So a thread's own
// coordinates are so far apart; computed one by one, their addresses would take a register each.
constexpr int OWN_STEP = TEAM + TEAM / 32;

// Rows on the way from one thread to another.
__shared__ float coordinates[ROWS][PITCH];
__shared__ double team_values[TEAM > 32 ? BLOCK : 1];

// A thread's own coordinates of its team's row.
typedef float Own[SLOTS];

// Where a thread's own coordinates are in shared memory, OWN_STEP apart.
__device__ __forceinline__ float* own_row() { return coordinates[team()] + place(member()); }

__device__ __forceinline__ void store_own(const Own& x) {
  float* row = own_row();
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (owns(slot)) row[slot * OWN_STEP] = x[slot];
  }
}

__device__ __forceinline__ void load_own(Own& x) {
  const float* row = own_row();
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (owns(slot)) x[slot] = row[slot * OWN_STEP];
  }
}

// Replaces each of the own coordinates by change(its value, its slot).
template <class Change>
__device__ __forceinline__ void change_own(Own& x, Change change) {
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (owns(slot)) x[slot] = change(x[slot], slot);
  }
}

struct Add {
  __device__ __forceinline__ double operator()(double a, double b) const { return a + b; }
};
struct Larger {
  __device__ __forceinline__ double operator()(double a, double b) const { return a < b ? b : a; }
};

// Adds terms as tree_sum of tqindex.codec.sums does: the axis is padded to a power of two, then its upper half joins its
// lower half until one is left. So a thread's own terms come first, then the same lanes of all warps, then lanes.
// term(slot): of the thread's own coordinate of that number. Padding is -0, which changes no sum.
constexpr int TERMS_AT_ONCE = 8;
template <int SLOT, int STRIDE, class Term>
__device__ __forceinline__ double add_own(Term term) {
  if constexpr (STRIDE < round_up_to_power(SLOTS)) {
    const double lower = add_own<SLOT, 2 * STRIDE>(term);
    // The compiler moves no loads across this: those of all terms at once would not fit in registers.
    if (round_up_to_power(SLOTS) / STRIDE > TERMS_AT_ONCE) __syncwarp();
    return lower + add_own<SLOT + STRIDE, 2 * STRIDE>(term);
  } else if constexpr (SLOT < SLOTS) {
    return owns(SLOT) ? term(SLOT) : -0.0;
  } else {
    return -0.0;
  }
}

template <int WARP, int STRIDE, class Combine>
__device__ __forceinline__ double combine_warps(Combine combine) {
  if constexpr (STRIDE < TEAM / 32) {
    const double lower = combine_warps<WARP, 2 * STRIDE>(combine);
    return combine(lower, combine_warps<WARP + STRIDE, 2 * STRIDE>(combine));
  } else {
    return team_values[team() * TEAM + WARP * 32 + threadIdx.x % 32];
  }
}

// Combines one value of each thread of a team; they all get the result, and all threads of the block must call it.
template <class Combine>
__device__ __forceinline__ double combine_members(Combine combine, double value) {
  if constexpr (TEAM > 32) {
    __syncthreads();  // all have read the values of the call before
    team_values[threadIdx.x] = value;
    __syncthreads();
    value = combine_warps<0, 1>(combine);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(WHOLE_WARP, value, distance));
  }
  return value;
}

template <class Term>
__device__ __forceinline__ double sum_team(Term term) {
  return combine_members(Add(), add_own<0, 1>(term));
}
