// Codes in the stored layout (tqindex.kernels.rows.StoredRows), and the integers and scores that they give.
// CODE_BITS: planes of the codebook's code; SKETCH: whether one more plane holds sketch signs (kind "prod").

#ifndef CODE_BITS
#define CODE_BITS 4
#endif
#ifndef SKETCH
#define SKETCH 0
#endif

// Coordinates of a half: four bytes of a plane. Step i of 8 takes from it the coordinates i, i + 8, i + 16 and i + 24,
// one from each byte, so that four levels come out of a shift and a mask; queries come in that order.
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

// The levels of a step of the halves of all planes of the code.
__device__ __forceinline__ int expand_step(const unsigned* halves, int step, const unsigned* table) {
  unsigned codes = 0;
#pragma unroll
  for (int plane = 0; plane < CODE_BITS; ++plane) codes = codes << 1 | take_step(halves[plane], step);
  return look_up(codes, table);
}

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
