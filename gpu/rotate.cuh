// Projections of the rows in shared memory, in the order of operations of tqindex.codec.rotation.
//
// LEVELS_AT_ONCE: levels of a transform that go through registers between two visits to shared memory.

constexpr int HADAMARD = 0, MATRIX = 1;

__device__ constexpr int log2_floor(int n) { return n <= 1 ? 0 : 1 + log2_floor(n / 2); }

constexpr int ROUNDS = 3;
// A transform takes SPAN = 2**LEVELS coordinates: the first ones, or those from LAST on.
constexpr int LEVELS = log2_floor(DIM), SPAN = 1 << LEVELS, LAST = DIM - SPAN;
constexpr int SIGN_WORDS = (SPAN + 31) / 32;
// Coordinates that a thread has in registers at once, neighbours at a transform's first visit; groups of them, and how
// many of these a thread takes; and what is left of a row beyond them, by threads.
constexpr int GROUP = 1 << LEVELS_AT_ONCE, GROUPS = SPAN / GROUP, OWN_GROUPS = (GROUPS + TEAM - 1) / TEAM;
constexpr int BEYOND = (DIM - SPAN + TEAM - 1) / TEAM;

// Seeded numbers of a codec's projections, the rotation's first.
// sources: (number, ROUNDS, DIM), where in the row a permuted coordinate comes from, as place() has it; the first SPAN
// by their number in a group, so that neighbouring threads read neighbours. signs: bits of (number, ROUNDS, 2, SPAN), each
// transform's in whole words, 1 for a negative sign; columns: (number, DIM, DIM); each counts the projections of its kind
// alone.
struct Projections {
  const unsigned short* sources;
  const unsigned* signs;
  const float* columns;
  float sign_scale;
};

__device__ __forceinline__ int own_group(int number) { return member() + number * TEAM; }

// The coordinates of a group in a visit for COUNT levels from level FIRST on, which are 2**FIRST apart, of a transform
// that begins at `start`; see OWN_STEP.
template <int FIRST, int COUNT>
struct Visit {
  int first;
  float* at;

  __device__ __forceinline__ Visit(float* row, int start, int group) {
    first = start + ((group >> FIRST) << (FIRST + COUNT) | (group & ((1 << FIRST) - 1)));
    at = LAST % 32 == 0 ? row + place(first) : row;
  }
  __device__ __forceinline__ float& operator[](int i) const {
    return at[place((LAST % 32 == 0 ? 0 : first) + (i << FIRST))];
  }
  __device__ __forceinline__ void load(float (&values)[1 << COUNT]) const {
#pragma unroll
    for (int i = 0; i < 1 << COUNT; ++i) values[i] = (*this)[i];
  }
  __device__ __forceinline__ void store(const float (&values)[1 << COUNT]) const {
#pragma unroll
    for (int i = 0; i < 1 << COUNT; ++i) (*this)[i] = values[i];
  }
};

template <int COUNT>
__device__ __forceinline__ void transform_group(float (&values)[1 << COUNT]) {
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
}

// Multiplies neighbouring coordinates by +-scale; bits: 1 for a negative sign, from the lowest on.
__device__ __forceinline__ void sign_group(float (&values)[GROUP], unsigned bits, float scale) {
#pragma unroll
  for (int i = 0; i < GROUP; ++i)
    values[i] = __uint_as_float(__float_as_uint(values[i] * scale) ^ (bits << (31 - i) & 0x80000000u));
}

// The levels of a transform from DONE on, of the coordinates from `start` on.
template <int DONE>
__device__ __forceinline__ void transform_rest(float* row, int start) {
  if constexpr (DONE < LEVELS) {
    constexpr int COUNT = LEVELS - DONE < LEVELS_AT_ONCE ? LEVELS - DONE : LEVELS_AT_ONCE;
    constexpr int COUNT_GROUPS = SPAN >> COUNT;
#pragma unroll
    for (int number = 0; number < (COUNT_GROUPS + TEAM - 1) / TEAM; ++number) {
      if (!has_one(number, COUNT_GROUPS)) continue;
      float values[1 << COUNT];
      const Visit<DONE, COUNT> visit(row, start, own_group(number));
      visit.load(values);
      transform_group<COUNT>(values);
      visit.store(values);
    }
    sync_team();
    transform_rest<DONE + COUNT>(row, start);
  }
}

// One round of permutation, signs and two Walsh-Hadamard transforms. The permuted coordinates of the first transform
// go to the registers in which it begins, the others back to the row.
__device__ __forceinline__ void rotate_once(float* row, const unsigned short* sources, const unsigned* signs,
                                            float scale) {
  float groups[OWN_GROUPS][GROUP], beyond[BEYOND + !BEYOND];  // an array has a size
#pragma unroll
  for (int number = 0; number < OWN_GROUPS; ++number) {
    if (!has_one(number, GROUPS)) continue;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) groups[number][i] = row[sources[i * GROUPS + own_group(number)]];
  }
#pragma unroll
  for (int i = 0; i < BEYOND; ++i) {
    if (has_one(i, DIM - SPAN)) beyond[i] = row[sources[SPAN + member() + i * TEAM]];
  }
  sync_team();
  float* rest = row + place(SPAN + member());
#pragma unroll
  for (int i = 0; i < BEYOND; ++i) {
    if (has_one(i, DIM - SPAN)) rest[i * OWN_STEP] = beyond[i];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int start = half * LAST;
#pragma unroll
    for (int number = 0; number < OWN_GROUPS; ++number) {
      if (!has_one(number, GROUPS)) continue;
      const int first = own_group(number) * GROUP;
      const Visit<0, LEVELS_AT_ONCE> visit(row, start, own_group(number));
      if (half) visit.load(groups[number]);
      sign_group(groups[number], signs[half * SIGN_WORDS + first / 32] >> first % 32, scale);
      transform_group<LEVELS_AT_ONCE>(groups[number]);
      visit.store(groups[number]);
    }
    sync_team();
    transform_rest<LEVELS_AT_ONCE>(row, start);
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

// Applies a projection to every row of the block, of which each thread brings its own coordinates, and leaves them in
// shared memory.
// KIND: the projection's kind; NUMBER: how many of this kind came before.
template <int KIND, int NUMBER>
__device__ __forceinline__ void project_rows(const Own& x, const Projections& projections) {
  store_own(x);
  if constexpr (KIND == HADAMARD) {
    sync_team();
    const unsigned short* sources = projections.sources + NUMBER * ROUNDS * DIM;
    const unsigned* signs = projections.signs + NUMBER * ROUNDS * 2 * SIGN_WORDS;
#pragma unroll 1
    for (int turn = 0; turn < ROUNDS; ++turn) {
      rotate_once(coordinates[team()], sources + turn * DIM, signs + turn * 2 * SIGN_WORDS, projections.sign_scale);
    }
  } else {
    multiply_rows(projections.columns + (long long)NUMBER * DIM * DIM);
  }
}
