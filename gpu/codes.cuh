// Codes in the stored layout (tqindex.kernels.rows.StoredRows), and the integers and scores that they give.
// CODE_BITS: planes of the codebook's code; SKETCH: whether one more plane holds sketch signs (kind "prod"); TRELLIS:
// whether a coordinate's level is decided by the bits before its own too (kind "trellis").

#ifndef CODE_BITS
#define CODE_BITS 4
#endif
#ifndef SKETCH
#define SKETCH 0
#endif
#ifndef TRELLIS
#define TRELLIS 0
#endif

// Coordinates of a half, four bytes of a plane; their levels are 8 words. Word 2 i has those of the coordinates i, i + 4,
// i + 8 and i + 12, word 2 i + 1 those of 16 coordinates further, so that codes are gathered in nibbles, eight at a time;
// queries come in that order.
constexpr int HALF = 32, STEPS = 8, WORD_HALVES = 2;
constexpr int PLANES = CODE_BITS + SKETCH;
// Row number of an empty place.
constexpr unsigned NO_ROW = 0xffffffffu;

struct Codes {
  const unsigned char* lead;  // (leading, blocks, 8 * width): the first planes, by blocks of 8 rows
  const unsigned char* rest;  // (rows, others * width): the other planes, row by row; begins and ends at whole ints
  long long blocks;
  int leading, width;
};

// Two and one bytes that a block keeps of a row after its words, and after its piece of four.
__device__ __forceinline__ unsigned load_small_pieces(const unsigned char* pieces, int lane, int tail) {
  unsigned bits = 0;
  if (tail & 2) bits = reinterpret_cast<const unsigned short*>(pieces)[lane];
  if (tail & 1) bits |= (unsigned)pieces[STORED_BLOCK * (tail & 2) + lane] << 8 * (tail & 2);
  return bits;
}

__device__ __forceinline__ unsigned load_lead_half(const unsigned char* block, int lane, int width, int half) {
  const int words = width >> 3, word = half / WORD_HALVES, tail = width & 7;
  const unsigned char* at = block + 8 * STORED_BLOCK * word;
  if (word < words) return reinterpret_cast<const unsigned*>(at)[WORD_HALVES * lane + half % WORD_HALVES];
  if (word > words) return 0;
  if (!(tail & 4)) return half % WORD_HALVES ? 0 : load_small_pieces(at, lane, tail);
  if (half % WORD_HALVES == 0) return reinterpret_cast<const unsigned*>(at)[lane];
  return load_small_pieces(at + 4 * STORED_BLOCK, lane, tail);
}

// 8 bytes of a row's plane in its block, 0 beyond its width.
__device__ __forceinline__ unsigned long long load_lead_word(const unsigned char* block, int lane, int width,
                                                             int word) {
  if (word < width >> 3) return reinterpret_cast<const unsigned long long*>(block)[STORED_BLOCK * word + lane];
  const unsigned low = load_lead_half(block, lane, width, WORD_HALVES * word);
  return (unsigned long long)load_lead_half(block, lane, width, WORD_HALVES * word + 1) << HALF | low;
}

// Of an array of whole ints the 4 bytes from byte `at` on, of which only the first `count` are wanted.
__device__ __forceinline__ unsigned load_bytes(const unsigned char* from, long long at, int count) {
  const unsigned* words = reinterpret_cast<const unsigned*>(from) + (at >> 2);
  const int skipped = at & 3;
  const unsigned next = skipped + count > 4 ? words[1] : 0;
  const unsigned bytes = __funnelshift_r(words[0], next, 8 * skipped);
  return count < 4 ? bytes & ((1u << 8 * count) - 1) : bytes;
}

// The bits of coordinates 32 half.. of a row in one plane; 0 beyond its width.
__device__ __forceinline__ unsigned load_half(const Codes& codes, int plane, long long row, int half) {
  const int width = codes.width, left = width - 4 * half;
  if (left <= 0) return 0;
  if (plane < codes.leading) {
    const long long block = plane * codes.blocks + row / STORED_BLOCK;
    return load_lead_half(codes.lead + block * STORED_BLOCK * width, row % STORED_BLOCK, width, half);
  }
  const long long at = (row * (PLANES - codes.leading) + (plane - codes.leading)) * width + 4 * half;
  return load_bytes(codes.rest, at, left < 4 ? left : 4);
}

__device__ __forceinline__ unsigned take_step(unsigned bits, int step) { return bits >> step & 0x01010101u; }

// The levels, int8, of four codes, one in each byte; table: the codebook's levels, of which 8 bits need none.
__device__ __forceinline__ int look_up(unsigned codes, const unsigned* table) {
#if CODE_BITS == 8
  return codes ^ 0x80808080u;
#else
  // Three bits of code i to nibble i, by which __byte_perm chooses one of 8 bytes.
  const unsigned pairs = codes | codes >> 4, chosen = ((pairs & 0xff) | (pairs >> 8 & 0xff00)) & 0x7777;
  unsigned levels = __byte_perm(table[0], table[1], chosen);
#if CODE_BITS == 4
  const unsigned upper = take_step(codes, 3) * 0xff;
  levels = (levels & ~upper) | (__byte_perm(table[2], table[3], chosen) & upper);
#endif
  return levels;
#endif
}

// Codes of COUNT planes' halves, from the most significant: in nibble j of codes[i] that of coordinate 4 j + i.
template <int COUNT>
__device__ __forceinline__ void gather_codes(const unsigned* halves, unsigned (&codes)[4]) {
  constexpr unsigned ONE = 0x11111111u, TWO = 0x33333333u, EVEN = 0x55555555u;
  // Of two planes the bits of coordinates 2 j, or 2 j + 1, side by side.
  const auto even = [&](int i) { return (halves[i] & EVEN) << 1 | (halves[i + 1] & EVEN); };
  const auto odd = [&](int i) { return (halves[i] & ~EVEN) | (halves[i + 1] >> 1 & EVEN); };
  const unsigned pairs[2] = {COUNT > 1 ? even(0) : 0, COUNT > 1 ? odd(0) : 0};
  const unsigned others[2] = {COUNT > 3 ? even(COUNT - 2) : 0, COUNT > 3 ? odd(COUNT - 2) : 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned pair = pairs[i % 2];
    if (COUNT == 1) codes[i] = halves[0] >> i & ONE;
    if (COUNT == 2) codes[i] = pair >> i / 2 * 2 & TWO;
    if (COUNT == 3) codes[i] = (i < 2 ? (pair & TWO) << 1 : pair >> 1 & TWO << 1) | (halves[COUNT - 1] >> i & ONE);
    if (COUNT == 4) codes[i] = (i < 2 ? (pair & TWO) << 2 : pair & ~TWO) | (others[i % 2] >> i / 2 * 2 & TWO);
  }
}

// The levels of eight codes of up to 4 bits, which are in nibbles; table: int8 levels.
template <int COUNT>
__device__ __forceinline__ void look_up_nibbles(unsigned codes, const unsigned* table, int* levels) {
  const unsigned chosen = COUNT == 4 ? codes & 0x77777777u : codes, upper = codes >> 3 & 0x11111111u;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned found = __byte_perm(table[0], table[1], chosen >> 16 * i);
    if (COUNT == 4) {
      const unsigned is_upper = __byte_perm(0xff00u, 0, upper >> 16 * i);  // 0 or 0xff
      found = (found & ~is_upper) | (__byte_perm(table[2], table[3], chosen >> 16 * i) & is_upper);
    }
    levels[i] = (int)found;
  }
}

// Bytes of two nibbles each, those of coordinates 8 j + i and 8 j + 4 + i in the words of places i.
struct Bytes {
  unsigned even, odd;

  __device__ __forceinline__ Bytes(unsigned upper, unsigned lower)
      : even((upper & 0x0f0f0f0fu) << 4 | (lower & 0x0f0f0f0fu)),
        odd((upper & 0xf0f0f0f0u) | (lower >> 4 & 0x0f0f0f0fu)) {}
  // In the order of levels, those of word 2 i and of word 2 i + 1.
  __device__ __forceinline__ unsigned first() const { return __byte_perm(even, odd, 0x5140); }
  __device__ __forceinline__ unsigned second() const { return __byte_perm(even, odd, 0x7362); }
};

#if TRELLIS
// The codes of the three coordinates before a half, the nearest in the lowest nibble: of a row's first half its start,
// 8 - CODE_BITS bits, which are the lowest of its scale (tqindex.codec.trellis).
__device__ __forceinline__ unsigned load_history(const Codes& codes, long long row, int half, float scale) {
  unsigned history = 0;
  if (half == 0) {
    const unsigned start = __float_as_uint(scale) & 0xff;
#pragma unroll
    for (int before = 0; before < 3; ++before)
      history |= (start >> CODE_BITS * before & ((1u << CODE_BITS) - 1)) << 4 * before;
    return history;
  }
#pragma unroll
  for (int plane = 0; plane < CODE_BITS; ++plane) {
    const unsigned bits = load_half(codes, plane, row, half - 1);
#pragma unroll
    for (int before = 0; before < 3; ++before)
      history |= (bits >> (HALF - 1 - before) & 1) << (4 * before + CODE_BITS - 1 - plane);
  }
  return history;
}

// A half's codes on their way to levels. Of nibbles in words of places i the coordinates before are in the words before;
// before the first, in the last ones, one nibble further.
struct Gathered {
  unsigned codes[4 + 3];  // of places -3 to 3

  __device__ __forceinline__ void gather(const unsigned* halves, unsigned history) {
    unsigned own[4];
    gather_codes<CODE_BITS>(halves, own);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[3 + i] = own[i];
#pragma unroll
    for (int before = 1; before <= 3; ++before)
      codes[3 - before] = own[4 - before] << 4 | (history >> 4 * (before - 1) & 15);
  }

  // table: int8 levels by windows, in shared memory
  __device__ __forceinline__ void look_up_pair(int i, const unsigned* table, int* levels) const {
    const unsigned now = codes[3 + i], last = codes[2 + i], second = codes[1 + i], third = codes[i];
    const unsigned upper = CODE_BITS == 4   ? last
                           : CODE_BITS == 3 ? (second & 0x33333333u) << 2 | (last >> 1 & 0x33333333u)
                                            : third << 2 | second;
    const unsigned lower = CODE_BITS == 4 ? now : CODE_BITS == 3 ? (last & 0x11111111u) << 3 | now : last << 2 | now;
    const Bytes windows(upper, lower);
    levels[0] = look_up_windows(windows.first(), table);
    levels[1] = look_up_windows(windows.second(), table);
  }

 private:
  __device__ __forceinline__ static int look_up_windows(unsigned windows, const unsigned* table) {
    const unsigned char* levels = reinterpret_cast<const unsigned char*>(table);
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) found |= (unsigned)levels[windows >> 8 * i & 255] << 8 * i;
    return (int)found;
  }
};
#else
__device__ __forceinline__ unsigned load_history(const Codes&, long long, int, float) { return 0; }

// A half's codes on their way to levels: words 2 i and 2 i + 1 of them come from codes[i], of 8 bits from two.
struct Gathered {
  unsigned codes[CODE_BITS == 8 ? 8 : 4];

  __device__ __forceinline__ void gather(const unsigned* halves, unsigned) {
    unsigned upper[4];
    gather_codes<(CODE_BITS == 8 ? 4 : CODE_BITS)>(halves, upper);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = upper[i];
#if CODE_BITS == 8
    gather_codes<4>(halves + 4, upper);
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[4 + i] = upper[i];
#endif
  }

  __device__ __forceinline__ void look_up_pair(int i, const unsigned* table, int* levels) const {
#if CODE_BITS == 8
    const Bytes bytes(codes[i], codes[4 + i]);
    levels[0] = (int)(bytes.first() ^ 0x80808080u);
    levels[1] = (int)(bytes.second() ^ 0x80808080u);
#else
    look_up_nibbles<CODE_BITS>(codes[i], table, levels);
#endif
  }
};
#endif

// How kernels keep the codebook's levels: those of up to 4 bits in registers, those of a trellis in shared memory.
constexpr int LEVEL_WORDS = TRELLIS ? 64 : 4;
#if TRELLIS
#define KEEP_LEVELS(table, levels)                                                        \
  __shared__ unsigned table[LEVEL_WORDS];                                                 \
  for (int i = threadIdx.x; i < LEVEL_WORDS; i += blockDim.x) table[i] = levels[i];
#else
#define KEEP_LEVELS(table, levels) \
  const unsigned table[LEVEL_WORDS] = {levels[0], levels[1], levels[2], levels[3]};
#endif

// The signs of a sketch, as 0 and 1, in the order of levels.
struct GatheredSigns {
  unsigned codes[4];

  __device__ __forceinline__ void gather(const unsigned* halves, unsigned) { gather_codes<1>(halves + CODE_BITS, codes); }
  __device__ __forceinline__ void look_up_pair(int i, const unsigned*, int* signs) const {
    const unsigned bits[2] = {0x0100u, 0};
    look_up_nibbles<1>(codes[i], bits, signs);
  }
};

__device__ __forceinline__ float no_score() { return __int_as_float(0xff800000); }  // -inf

// -- scores: float32, in the order of operations of tqindex.codec.Codec.scores

// What a query brings to its scores besides its levels. Of 8 bits a level is half of 2 (code - 128) + 1, and the step
// counts the half, so that the integer is 2 product + sum; a sketch sign is 2 bit - 1.
struct QuerySides {
  float step, sketch_step, bias;
  int sum, sketch_sum;
};

__device__ __forceinline__ float part_of_score(float scale, float step, int product) {
  return scale * (step * (float)product);
}

__device__ __forceinline__ float level_score(float scale, const QuerySides& query, int product) {
  return part_of_score(scale, query.step, CODE_BITS == 8 ? 2 * product + query.sum : product);
}

__device__ __forceinline__ float sketch_score(float scale, const QuerySides& query, int product) {
  return part_of_score(scale, query.sketch_step, 2 * product - query.sketch_sum);
}

// reals, integers: as order_queries in codes.cu writes them.
__device__ __forceinline__ QuerySides load_sides(const float* reals, const int* integers, long long query) {
  return {reals[3 * query], reals[3 * query + 1], reals[3 * query + 2], integers[3 * query], integers[3 * query + 1]};
}
