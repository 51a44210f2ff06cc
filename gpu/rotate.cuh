// Projections of the rows in shared memory, in the order of operations of tqindex.codec.rotation.

constexpr int HADAMARD = 0, MATRIX = 1;

__device__ constexpr int log2_floor(int n) { return n <= 1 ? 0 : 1 + log2_floor(n / 2); }

constexpr int ROUNDS = 3;
// A transform takes SPAN = 2**LEVELS coordinates: the first ones, or those from LAST on.
constexpr int LEVELS = log2_floor(DIM), SPAN = 1 << LEVELS, LAST = DIM - SPAN;
constexpr int SIGN_WORDS = (SPAN + 31) / 32;
// Levels that go through registers between two visits to shared memory: as many as leave each thread work.
constexpr int OWN_LEVELS = LEVELS - log2_floor(TEAM);
constexpr int LEVELS_AT_ONCE = OWN_LEVELS < 1 ? 1 : OWN_LEVELS > 4 ? 4 : OWN_LEVELS;

// Seeded numbers of a codec's projections, the rotation's first.
// permutations: (number, ROUNDS, DIM); signs: bits of (number, ROUNDS, 2, SPAN), each transform's in whole words, 1 for
// a negative sign; columns: (number, DIM, DIM); each counts the projections of its kind alone.
struct Projections {
  const unsigned short* permutations;
  const unsigned* signs;
  const float* columns;
  float sign_scale;
};

// place() of a transform's coordinate, of bits that `first` does not have beyond it; see OWN_STEP.
__device__ __forceinline__ int place_beyond(int start, int first, int beyond) {
  return LAST % 32 == 0 ? place(start + first) + place(beyond) : place(start + first + beyond);
}

// COUNT levels of a transform from level FIRST on, of the coordinates from `start` on; the first level multiplies them by
// their signs before.
template <int FIRST, int COUNT>
__device__ __forceinline__ void transform_levels(float* row, int start, const unsigned* signs, float scale) {
  for (int group = member(); group < SPAN >> COUNT; group += TEAM) {
    const int first = (group >> FIRST) << (FIRST + COUNT) | (group & ((1 << FIRST) - 1));
    float values[1 << COUNT];
#pragma unroll
    for (int i = 0; i < 1 << COUNT; ++i) values[i] = row[place_beyond(start, first, i << FIRST)];
    if (FIRST == 0) {
      const unsigned bits = signs[first / 32] >> first % 32;
#pragma unroll
      for (int i = 0; i < 1 << COUNT; ++i) values[i] *= bits >> i & 1 ? -scale : scale;
    }
#pragma unroll
    for (int level = 0; level < COUNT; ++level) {
#pragma unroll
      for (int i = 0; i < 1 << COUNT; ++i) {
        if (i >> level & 1) continue;
        const float a = values[i], b = values[i | 1 << level];
        values[i] = a + b;
        values[i | 1 << level] = a - b;
      }
    }
#pragma unroll
    for (int i = 0; i < 1 << COUNT; ++i) row[place_beyond(start, first, i << FIRST)] = values[i];
  }
  sync_team();
}

template <int DONE>
__device__ __forceinline__ void transform(float* row, int start, const unsigned* signs, float scale) {
  if constexpr (DONE < LEVELS) {
    constexpr int COUNT = LEVELS - DONE < LEVELS_AT_ONCE ? LEVELS - DONE : LEVELS_AT_ONCE;
    transform_levels<DONE, COUNT>(row, start, signs, scale);
    transform<DONE + COUNT>(row, start, signs, scale);
  }
}

// Three rounds of permutation, signs and Walsh-Hadamard transforms: HadamardRotation.apply.
__device__ __forceinline__ void rotate_row(float* row, const unsigned short* permutations, const unsigned* signs,
                                           float scale) {
  float* own = own_row();
#pragma unroll 1
  for (int turn = 0; turn < ROUNDS; ++turn) {
    const unsigned short* sources = permutations + turn * DIM + member();
    float values[SLOTS];
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
      if (owns(slot)) values[slot] = row[place(sources[slot * TEAM])];
    }
    sync_team();
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
      if (owns(slot)) own[slot * OWN_STEP] = values[slot];
    }
    sync_team();
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      transform<0>(row, half * LAST, signs + (2 * turn + half) * SIGN_WORDS, scale);
    }
  }
}

// Multiplies all rows of the block by a matrix, one input coordinate after the other: MatrixProjection.apply. Here a
// thread takes the same coordinates of every row, so that each column is read once for all of them.
__device__ __forceinline__ void multiply_rows(const float* columns) {
  constexpr int OUTPUTS = (DIM + BLOCK - 1) / BLOCK;
  // So many at a time: the entries that are waited for take a register each.
  constexpr int STEP = 4;
  float sums[ROWS][OUTPUTS] = {};
  __syncthreads();
#pragma unroll
  for (int first = 0; first < OUTPUTS; first += STEP) {
#pragma unroll 1
    for (int i = 0; i < DIM; ++i) {
#pragma unroll
      for (int output = first; output < OUTPUTS && output < first + STEP; ++output) {
        const int j = threadIdx.x + output * BLOCK;
        const float entry = j < DIM ? columns[(long long)i * DIM + j] : 0.0f;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[r][output] += coordinates[r][place(i)] * entry;
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int output = 0; output < OUTPUTS; ++output) {
    const int j = threadIdx.x + output * BLOCK;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (j < DIM) coordinates[r][place(j)] = sums[r][output];
    }
  }
  __syncthreads();
}

// Applies a projection to every row of the block, which may just have been written; KIND: its kind; NUMBER: how many of
// this kind came before.
template <int KIND, int NUMBER>
__device__ __forceinline__ void project_rows(const Projections& projections) {
  if constexpr (KIND == HADAMARD) {
    sync_team();
    rotate_row(coordinates[team()], projections.permutations + NUMBER * ROUNDS * DIM,
               projections.signs + NUMBER * ROUNDS * 2 * SIGN_WORDS, projections.sign_scale);
  } else {
    multiply_rows(projections.columns + (long long)NUMBER * DIM * DIM);
  }
}
