// Vectors to codes and queries to int8, equal bit for bit to tqindex.codec.codec: arithmetic is part of the format, so
// this file is compiled without contraction to fused multiply-adds. A vector is read once, its codes are written once;
// between them it stays in shared memory, ROWS rows to a block.
//
// BITS: of the codebook. ROTATION, SKETCH: kinds of projection (rotate.cuh); without a sketch SKETCH is -1.
// HALF: 1 where vectors are float16. DIM, BLOCK, ROWS: see team.cuh; LEVELS_AT_ONCE: see rotate.cuh.
#include "common.cuh"
#include "team.cuh"
#include "rotate.cuh"

// Bits of `form`: what the codec and the metric ask for.
constexpr int NORMALISED = 1, SQUARED = 2, CENTRED = 4, UNBIASED = 8, GAUSSIAN = 16;
// Places of `refused`: the first row that has NaN or inf, is zero where it needs a direction, or is too long.
constexpr int NOT_FINITE = 0, NO_DIRECTION = 1, TOO_LONG = 2;
constexpr double LARGEST_NORM = 1152921504606846976.0;  // 2**60, MAX_NORM of tqindex.checks
constexpr double LARGEST_DOUBLE = 1.7976931348623157e308;

constexpr bool HAS_SKETCH = SKETCH >= 0, UNIFORM = BITS == 8;
constexpr int CODES = 1 << BITS, ENTRIES = UNIFORM ? 1 : 2 * CODES;  // an array has a size
constexpr int PLANES = BITS + HAS_SKETCH, LEADING = PLANES < 2 ? PLANES : 2, OTHERS = PLANES - LEADING;
constexpr int PLANE_BYTES = (DIM + 7) / 8, PLANE_WORDS = (DIM + 31) / 32;
// Threads of a multiprocessor that registers must be enough for: 80 to a thread, 128, 168, or 255 where it has more to
// hold.
constexpr int RESIDENT_THREADS =
    SLOTS + 4 * HAS_SKETCH <= 16 ? 768 : SLOTS > 32 ? 256 : HAS_SKETCH && BLOCK == 128 ? 384 : 512;
constexpr int RESIDENT = RESIDENT_THREADS / BLOCK;
// How many projections of the sketch's kind come before it.
constexpr int SKETCH_NUMBER = SKETCH == ROTATION;

// -- input

__device__ __forceinline__ float to_float(float value) { return value; }

// A float16: its bits in the place of a float's have an exponent that is 112 too small.
__device__ __forceinline__ float to_float(unsigned short half) {
  const unsigned magnitude = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  const unsigned finite = __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f);
  return __uint_as_float(sign | (magnitude < 0x7c00u ? finite : magnitude << 13 | 0x7f800000u));
}

#if HALF
typedef unsigned short Input;
#else
typedef float Input;
#endif

struct Refusals {
  unsigned long long* first;  // (3,), at first the largest number
  __device__ __forceinline__ void add(int kind, long long row) const {
    atomicMin(&first[kind], static_cast<unsigned long long>(row));
  }
};

__device__ __forceinline__ double quotient(double a, double b) { return b != 0.0 ? a / b : 0.0; }

struct Prepared {
  double square, norm;  // after normalisation and centring; 0 where the row is refused
  double along;         // with the centre: of vectors after centring, of queries before
};

__device__ __forceinline__ void scale_own(Own& x, double factor) {
  change_own(x, [&](float value, int) { return (float)((double)value * factor); });
}

__device__ __forceinline__ double square_own(const Own& x) {
  return sum_team([&](int slot) { return (double)x[slot] * (double)x[slot]; });
}

// Reads a row to its team's registers, normalises it if the metric does, and subtracts the centre. Queries that are
// refused become zeros, since NaN cannot be rounded to an integer. `live`: whether to say so; teams without a row of
// their own work on any.
template <bool QUERIES, class Value>
__device__ __forceinline__ Prepared prepare_row(Own& x, const Value* row, bool live, long long number,
                                                const float* center, int form, Refusals refused) {
  const auto along_center = [&] {
    return sum_team([&](int slot) { return (double)x[slot] * (double)center[member() + slot * TEAM]; });
  };
  change_own(x, [&](float, int slot) { return to_float(row[member() + slot * TEAM]); });
  Prepared prepared = {0.0, 0.0, 0.0};
  if (form & NORMALISED) {
    const double length = sqrt(square_own(x));
    if (live && length == 0.0 && member() == 0) refused.add(NO_DIRECTION, number);
    scale_own(x, quotient(1.0, length));
  }
  if (form & CENTRED) {
    if (QUERIES) prepared.along = along_center();
    change_own(x, [&](float value, int slot) { return value - center[member() + slot * TEAM]; });
    if (!QUERIES) prepared.along = along_center();
  }
  prepared.square = square_own(x);
  prepared.norm = sqrt(prepared.square);
  const bool usable = prepared.norm <= LARGEST_NORM;  // false for NaN too
  if (__syncthreads_or(!usable)) {
    // Squares of floats do not overflow a double, so that a sum of magnitudes is finite if all its terms are.
    double sum = 0.0;
    for (int j = member(); j < DIM; j += TEAM) sum += fabs((double)to_float(row[j]));
    sum = combine_members(Add(), sum);
    if (!usable) {
      if (live && member() == 0) refused.add(sum <= LARGEST_DOUBLE ? TOO_LONG : NOT_FINITE, number);
      if (QUERIES) change_own(x, [](float, int) { return 0.0f; });
      prepared = {0.0, 0.0, 0.0};
    }
  }
  return prepared;
}

// -- quantisation

// A coordinate's code: how many boundaries are at most y. Calls take(plane, bit) from the most significant bit on.
// book: the boundaries as a tree, that of node i before those of 2 i and 2 i + 1, from 1 on, then the levels; none for the
// grid of 8 bits, whose boundaries are multiples of its step.
template <class Take>
__device__ __forceinline__ int find_code(float y, const float* book, float step, Take take) {
  if constexpr (UNIFORM) {
    // Multiples k of the step are exact. The float below one is less by more than 2**-24 of it, and half of what lies
    // between k and the float below is less than 2**-24 of k: no quotient rounds up to k.
    const float cell = floorf(y / step), end = CODES / 2;
    const int code = (int)(cell < -end ? -end : cell < end ? cell : end - 1.0f) + CODES / 2;
#pragma unroll
    for (int plane = 0; plane < BITS; ++plane) take(plane, code >> (BITS - 1 - plane) & 1);
    return code;
  } else {
    unsigned node = 1;
#pragma unroll
    for (int plane = 0; plane < BITS; ++plane) {
      const unsigned is_above = y >= book[node];
      take(plane, is_above);
      node = 2 * node + is_above;
    }
    return (int)node - CODES;
  }
}

__device__ __forceinline__ float level_of(int code, const float* book) {
  return UNIFORM ? code - (CODES - 1) / 2.0f : book[CODES + code];
}

// Planes of a row. Of a word of 32 neighbouring coordinates each lane of a warp brings a bit; lane i keeps the words of
// the slots i, i + 32, ...
constexpr int KEPT = (SLOTS + 31) / 32;

__device__ __forceinline__ unsigned kept_bits(int slot) { return threadIdx.x % 32 == (unsigned)slot % 32 ? ~0u : 0u; }

// is_there: whether the row has a direction; else its codes are 0.
template <int COUNT>
__device__ __forceinline__ void store_kept(const unsigned (&kept)[KEPT][COUNT], bool is_there,
                                           unsigned (*planes)[PLANE_WORDS]) {
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    const int slot = i * 32 + threadIdx.x % 32, word = member() / 32 + slot * (TEAM / 32);
#pragma unroll
    for (int plane = 0; plane < COUNT; ++plane) {
      if (slot < SLOTS && word < PLANE_WORDS) planes[plane][word] = is_there ? kept[i][plane] : 0;
    }
  }
}

// The codes of a thread's own coordinates. The levels instead would take a register each.
struct OwnCodes {
  static constexpr int PER_WORD = BITS == 3 ? 8 : 32 / BITS, WORDS = (SLOTS + PER_WORD - 1) / PER_WORD;
  unsigned words[WORDS] = {};

  __device__ __forceinline__ int get(int slot) const {
    return words[slot / PER_WORD] >> slot % PER_WORD * BITS & (CODES - 1);
  }

  // Finds the codes of the row in shared memory, word by word: unrolled, they would be most of the kernel.
  __device__ __forceinline__ void find(const float* book, float step, unsigned (&kept)[KEPT][BITS]) {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
#pragma unroll 1
      for (int first = i * 32; first < SLOTS && first < i * 32 + 32; first += PER_WORD) {
        const unsigned found = find_word(first, book, step, kept[i]);
#pragma unroll
        for (int word = 0; word < WORDS; ++word) words[word] = word * PER_WORD == first ? found : words[word];
      }
    }
  }

  __device__ __forceinline__ static unsigned find_word(int first, const float* book, float step,
                                                       unsigned (&kept)[BITS]) {
    const float* row = own_row() + first * OWN_STEP;
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < PER_WORD && i < SLOTS; ++i) {
      if (SLOTS % PER_WORD && first + i >= SLOTS) break;
      const unsigned own = kept_bits(first + i);
      const float y = owns(first + i) ? row[i * OWN_STEP] : __int_as_float(0xff800000);  // of -inf the code is 0
      const auto keep = [&](int plane, unsigned bit) { kept[plane] |= __ballot_sync(WHOLE_WARP, bit) & own; };
      word |= find_code(y, book, step, keep) << i * BITS;
    }
    return word;
  }
};

// -- output: the stored layout, tqindex.kernels.rows: StoredRows

#if (DIM + 7) / 8 % 4
typedef unsigned char Unit;
#else
typedef unsigned Unit;
#endif
constexpr int UNIT = sizeof(Unit), UNITS = PLANE_BYTES / UNIT;

// The stored rows of a block are first, first + 1, ..., of which those from `start` on and before `stop` are written.
struct Target {
  long long first, start, stop;
  __device__ __forceinline__ bool has(int r) const { return first + r >= start && first + r < stop; }
};

__device__ __forceinline__ void store_planes(const unsigned (*planes)[PLANES][PLANE_WORDS], Target target,
                                             unsigned char* lead, long long stored_blocks, unsigned char* rest) {
  for (int i = threadIdx.x; i < LEADING * ROWS * UNITS; i += BLOCK) {
    // Neighbouring threads take the rows of a word, which are neighbours in memory.
    const int r = i % ROWS, unit = i / ROWS % UNITS, plane = i / (ROWS * UNITS);
    if (!target.has(r)) continue;
    const long long row = target.first + r, block = plane * stored_blocks + row / STORED_BLOCK;
    const int at = lead_place(unit * UNIT, row % STORED_BLOCK, PLANE_BYTES);
    *reinterpret_cast<Unit*>(lead + block * (STORED_BLOCK * PLANE_BYTES) + at) =
        reinterpret_cast<const Unit*>(planes[r][plane])[unit];
  }
  if constexpr (OTHERS > 0) {
    constexpr int ROW_UNITS = OTHERS > 0 ? OTHERS * UNITS : 1;  // NVRTC warns of the division by 0 that is left out
    for (int i = threadIdx.x; i < ROWS * ROW_UNITS; i += BLOCK) {
      const int r = i / ROW_UNITS, unit = i % ROW_UNITS;
      if (!target.has(r)) continue;
      reinterpret_cast<Unit*>(rest + (target.first + r) * (OTHERS * PLANE_BYTES))[unit] =
          reinterpret_cast<const Unit*>(planes[r][LEADING + unit / UNITS])[unit % UNITS];
    }
  }
}

// Encodes n vectors as the stored rows from `at` on.
//
// vectors: (n, DIM). center: (DIM,), read if CENTRED. book: see find_code. sources, signs, columns: see
// Projections. gaussian_factor: sqrt(pi / 2). lead: (LEADING, stored_blocks, 8 * PLANE_BYTES). rest:
// (rows, OTHERS * PLANE_BYTES). scales, sketch_scales, offsets: (rows,), the latter two where there are any. Block b
// takes the rows from (at / ROWS + b) * ROWS on. The centre, which may be read twice, is not __restrict__: the compiler
// would keep it in registers in between.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
encode_rows(const Input* __restrict__ vectors, long long n, long long at, const float* center,
            const float* __restrict__ book, const unsigned short* __restrict__ sources,
            const unsigned* __restrict__ signs, const float* __restrict__ columns, float sign_scale, double step,
            double gaussian_factor, int form, unsigned char* lead, long long stored_blocks, unsigned char* rest,
            float* scales, float* sketch_scales, float* offsets, unsigned long long* refused) {
  __shared__ unsigned planes[ROWS][PLANES][PLANE_WORDS];
  __shared__ float entries[ENTRIES];
  const Projections projections = {sources, signs, columns, sign_scale};
  const Target target = {(at / ROWS + blockIdx.x) * ROWS, at, at + n};
  const long long stored = target.first + team();
  const bool live = target.has(team()), writes = live && member() == 0;
  const long long number = live ? stored - at : 0;
  for (int i = threadIdx.x; !UNIFORM && i < ENTRIES; i += BLOCK) entries[i] = book[i];

  Own x;
  const double root = sqrt((double)DIM);
  const Prepared row = prepare_row<false>(x, vectors + number * DIM, live, number, center, form, Refusals{refused});
  const double norm = row.norm;
  if (writes && form & SQUARED) offsets[stored] = (float)(-0.5 * (norm * norm));
  if (writes && !(form & SQUARED) && form & CENTRED) offsets[stored] = (float)row.along;
  scale_own(x, quotient(root, norm));
  project_rows<ROTATION, 0>(x, projections);

  OwnCodes codes;
  unsigned kept[KEPT][BITS] = {};
  codes.find(entries, (float)step, kept);
  store_kept(kept, norm != 0.0, planes[team()]);
  const float* rotated = own_row();
  const auto level = [&](int slot) { return level_of(codes.get(slot), entries); };
  const bool unbiased = form & UNBIASED;
  double factor = 1.0;
  if (unbiased || HAS_SKETCH) {
    const double along =
        sum_team([&](int slot) { return (double)rotated[slot * OWN_STEP] * (double)level(slot); }) * step;
    if (unbiased) factor = quotient((double)DIM, along);
    if constexpr (HAS_SKETCH) {
      const double square = sum_team([&](int slot) { return (double)level(slot) * (double)level(slot); });
      factor = unbiased ? quotient(along, square * (step * step)) : 1.0;
    }
  }
  if (writes) scales[stored] = norm == 0.0 ? 0.0f : (float)(norm / root * factor);

  if constexpr (HAS_SKETCH) {
    const float value = (float)(factor * step);
    load_own(x);
    change_own(x, [&](float y, int slot) { return y - value * level(slot); });
    const double square = square_own(x);
    project_rows<SKETCH, SKETCH_NUMBER>(x, projections);
    const double magnitude = sum_team([&](int slot) { return fabs((double)rotated[slot * OWN_STEP]); });
    const double share = form & GAUSSIAN ? gaussian_factor * sqrt(square) / DIM : quotient(square, magnitude);
    if (writes) sketch_scales[stored] = norm == 0.0 ? 0.0f : (float)(norm / root * share);
    unsigned positive[KEPT][1] = {};
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
      const bool is_positive = owns(slot) && rotated[slot * OWN_STEP] >= 0.0f;
      positive[slot / 32][0] |= __ballot_sync(WHOLE_WARP, is_positive) & kept_bits(slot);
    }
    store_kept(positive, norm != 0.0, planes[team()] + BITS);
  }
  __syncthreads();
  store_planes(planes, target, lead, stored_blocks, rest);
}

// Rounds a row to integers in [-127, 127], each `step` wide, and pads it with zeros to `depth`.
struct Rounded {
  double step;
  int sum;
};
__device__ __forceinline__ Rounded round_row(const Own& x, bool live, long long number, signed char* levels,
                                             int depth) {
  float own_largest = 0.0f;
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (owns(slot)) own_largest = fmaxf(own_largest, fabsf(x[slot]));
  }
  const double largest = combine_members(Larger(), (double)own_largest);
  const double factor = quotient(127.0, largest);
  int sum = 0;
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (!owns(slot)) continue;
    const int level = (int)rint((double)x[slot] * factor);
    if (live) levels[number * depth + member() + slot * TEAM] = (signed char)level;
    sum += level;
  }
  for (int j = DIM + member(); live && j < depth; j += TEAM) levels[number * depth + j] = 0;
  // Sums of integers are exact in a double.
  return {largest / 127.0, (int)combine_members(Add(), sum)};
}

// Centres, rotates and rounds n queries: tqindex.codec.Codec.encode_queries.
//
// queries: (n, DIM). step: the codebook's, halved where the codebook has an offset. levels, sketch_levels: (n, depth).
// steps, sums, biases, sketch_steps: (n,). The rest as encode_rows has it.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
encode_queries(const float* __restrict__ queries, long long n, const float* center,
               const unsigned short* __restrict__ sources, const unsigned* __restrict__ signs,
               const float* __restrict__ columns, float sign_scale, double step, int form, int depth,
               signed char* levels, float* steps, int* sums, float* biases, signed char* sketch_levels,
               float* sketch_steps, unsigned long long* refused) {
  const Projections projections = {sources, signs, columns, sign_scale};
  const long long own = (long long)blockIdx.x * ROWS + team(), number = own < n ? own : 0;
  const bool live = own < n, writes = live && member() == 0;
  Own x;
  const Prepared row = prepare_row<true>(x, queries + number * DIM, live, number, center, form, Refusals{refused});
  project_rows<ROTATION, 0>(x, projections);
  load_own(x);
  const Rounded rounded = round_row(x, live, number, levels, depth);
  if (writes) {
    steps[number] = (float)(rounded.step * step);
    sums[number] = rounded.sum;
    biases[number] = (float)(form & SQUARED ? -0.5 * row.square : row.along);
  }
  if constexpr (HAS_SKETCH) {
    project_rows<SKETCH, SKETCH_NUMBER>(x, projections);
    load_own(x);
    const Rounded sketched = round_row(x, live, number, sketch_levels, depth);
    if (writes) sketch_steps[number] = (float)sketched.step;
  }
}
