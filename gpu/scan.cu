// Many queries against many rows: codes are expanded to int8 levels in registers and multiplied with a tile of queries
// by the tensor cores; of the scores each block keeps the best KEEP, or, where KEEP is 0, writes all.
#include "common.cuh"
#include "codes.cuh"
#include "tensor.cuh"

#ifndef KEEP
#define KEEP 16
#endif

// Blocks of one multiprocessor: 128 registers for each thread; of 8 bits Blackwell's compiler takes more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && CODE_BITS == 8
constexpr int MOST_BLOCKS = 1;
#else
constexpr int MOST_BLOCKS = 2;
#endif
constexpr int THREADS = 256;
// A warp has the rows of one product of the tensor cores, and columns of its 8 queries (scan.py: tile_queries).
constexpr int WARP_ROWS = 16, COLUMN = 8, TILE_ROWS = THREADS / 32 * WARP_ROWS;
constexpr int TILE_QUERIES = KEEP > 16 ? 32 : SKETCH || TRELLIS || CODE_BITS == 8 ? 64 : 128,
              COLUMNS = TILE_QUERIES / COLUMN;
// Whether a lane has registers for what it needs next.
constexpr bool LOADS_AHEAD = CODE_BITS < 8;
// Columns between which a warp may stop, where there are no more queries.
constexpr int COLUMNS_AT_ONCE = 4;
// A lane has products of two rows, 8 apart, and of two neighbouring queries of each column.
constexpr int OWN_ROWS = 2, OWN = 4;
// Coordinates that are in shared memory at a time, as ints of four; lines are longer by what keeps lanes that read 8
// bytes each of neighbouring lines out of each other's banks.
constexpr int CHUNK_HALVES = 4, CHUNK = CHUNK_HALVES * STEPS, LINE = CHUNK + 2;
// Queries whose scores are in shared memory at a time; of their lines the same holds for 4 bytes.
constexpr int SLICE = 16, SLICE_LINE = TILE_ROWS + 4;
constexpr int STAGED = TILE_QUERIES * LINE, SLICE_ROOM = KEEP ? SLICE * SLICE_LINE : 0;

// Which rows and queries of a product are a lane's: rows group() and group() + 8, queries 2 * pair() and the next.
__device__ __forceinline__ int group() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int pair() { return threadIdx.x % 4; }

// The rows of a lane, NO_ROW for none; where no row is, the first is read and what comes of it is not used.
typedef unsigned OwnRows[OWN_ROWS];
struct Halves {
  unsigned planes[OWN_ROWS][PLANES], history[OWN_ROWS];
};

// Load of each own row the half first + pair(): the four lanes of a row have one each.
template <bool SIGNS>
__device__ __forceinline__ void load_halves(const Codes& codes, const float* scales, const OwnRows& rows, int first,
                                            Halves& halves) {
  constexpr int BEGIN = SIGNS ? CODE_BITS : 0, END = SIGNS ? PLANES : CODE_BITS;
  const unsigned half = first + pair(), width = codes.width;
#pragma unroll
  for (int i = 0; i < OWN_ROWS; ++i) {
    const unsigned row = rows[i] == NO_ROW ? 0 : rows[i];
    halves.history[i] = load_history(codes, row, half, TRELLIS ? scales[row] : 0.f);
  }
  if (width % 4 || 4 * (first + CHUNK_HALVES) > (width & ~7u)) {
#pragma unroll
    for (int i = 0; i < OWN_ROWS; ++i)
#pragma unroll
      for (int plane = BEGIN; plane < END; ++plane) {
        halves.planes[i][plane] = load_half(codes, plane, rows[i] == NO_ROW ? 0 : rows[i], half);
        // The compiler moves no loads across this: all their addresses would not fit in registers.
        if (CODE_BITS == 8) __syncwarp();
      }
    return;
  }
  // Of both layouts these are whole words.
  const unsigned in_lead = 8 * STORED_BLOCK * (half / WORD_HALVES) + 4 * (half % WORD_HALVES);
#pragma unroll
  for (int i = 0; i < OWN_ROWS; ++i) {
    const unsigned row = rows[i] == NO_ROW ? 0 : rows[i];
    const unsigned char* lead = codes.lead + (unsigned long long)(row / STORED_BLOCK) * (STORED_BLOCK * width) +
                                (row % STORED_BLOCK * 8 + in_lead);
    const unsigned char* rest = codes.rest + (unsigned long long)row * ((PLANES - codes.leading) * width) + 4 * half;
#pragma unroll
    for (int plane = BEGIN; plane < END; ++plane) {
      const unsigned char* at = plane < codes.leading ? lead + plane * codes.blocks * (STORED_BLOCK * width)
                                                      : rest + (plane - codes.leading) * width;
      halves.planes[i][plane] = *reinterpret_cast<const unsigned*>(at);
    }
  }
}

// Queries as order_queries in codes.cu writes them.
struct Queries {
  const signed char *levels, *sketch_levels;
  int depth;
  long long first;  // of the tile
  int there;        // in the tile
};

// Bring the halves first.. of the tile's queries to shared memory, their levels or those of their sketch. In the places
// of queries that are not there, the last comes again.
template <bool SIGNS>
__device__ __forceinline__ void stage_queries(const Queries& queries, int first, int2* staged) {
  constexpr int PIECES = CHUNK / 4, AT_ONCE = THREADS / PIECES;
  static_assert(TILE_QUERIES % AT_ONCE == 0, "each thread stages as many pieces");
  const int4* from = reinterpret_cast<const int4*>(SIGNS ? queries.sketch_levels : queries.levels);
  const int piece = threadIdx.x % PIECES, pitch = queries.depth / 16;
  from += queries.first * pitch + first * (HALF / 16) + piece;
#pragma unroll
  for (int i = 0; i < TILE_QUERIES / AT_ONCE; ++i) {
    const int query = i * AT_ONCE + threadIdx.x / PIECES;
    const int4 levels = from[min(query, queries.there - 1) * pitch];
    int2* to = staged + query * (LINE / 2) + 2 * piece;
    to[0] = make_int2(levels.x, levels.y), to[1] = make_int2(levels.z, levels.w);
  }
}

// A warp's products of its rows and the tile's queries; with the levels, or with the signs as bits. The order in which
// coordinates come does not matter: a lane takes those of one half of its rows, of queries the same.
template <bool SIGNS, class Expansion>
__device__ __forceinline__ void multiply_tile(const Codes& codes, const float* scales, const OwnRows& rows,
                                              const Queries& queries, const unsigned* table, int2* staged,
                                              int (&sums)[COLUMNS][OWN]) {
  const int2* own = staged + group() * (LINE / 2) + pair() * (STEPS / 2);
  const int halves = queries.depth / HALF;
  Halves now, next;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column)
#pragma unroll
    for (int i = 0; i < OWN; ++i) sums[column][i] = 0;
  if (LOADS_AHEAD) load_halves<SIGNS>(codes, scales, rows, 0, now);
#pragma unroll 1
  for (int first = 0; first < halves; first += CHUNK_HALVES) {
    __syncthreads();  // what was staged before has been read
    stage_queries<SIGNS>(queries, first, staged);
    if (LOADS_AHEAD) {
      if (first + CHUNK_HALVES < halves) load_halves<SIGNS>(codes, scales, rows, first + CHUNK_HALVES, next);
    } else {
      load_halves<SIGNS>(codes, scales, rows, first, now);
    }
    __syncthreads();
    Expansion own_codes[OWN_ROWS];
#pragma unroll
    for (int i = 0; i < OWN_ROWS; ++i) own_codes[i].gather(now.planes[i], now.history[i]);
#pragma unroll
    for (int step = 0; step < STEPS; step += 2) {
      int of_row[OWN_ROWS][2];
#pragma unroll
      for (int i = 0; i < OWN_ROWS; ++i) own_codes[i].look_up_pair(step / 2, table, of_row[i]);
      const unsigned levels[4] = {(unsigned)of_row[0][0], (unsigned)of_row[1][0], (unsigned)of_row[0][1],
                                  (unsigned)of_row[1][1]};
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
        if (column % COLUMNS_AT_ONCE == 0 && column * COLUMN >= queries.there) break;
        const int2 pieces = own[column * COLUMN * (LINE / 2) + step / 2];
        const unsigned query[2] = {(unsigned)pieces.x, (unsigned)pieces.y};
        multiply_add(sums[column], levels, query);
      }
    }
    if (LOADS_AHEAD) now = next;
  }
}

struct Sides {
  const float *scales, *sketch_scales, *offsets;
  int has_offsets;
};

// What an own row brings to its scores besides its codes.
struct RowSides {
  float scale, sketch_scale, offset;
};

// Replaces each score of this lane by change(it, its product, its query, its row).
template <class Change>
__device__ __forceinline__ void change_scores(const Sides& sides, const OwnRows& rows, const QuerySides* queries,
                                              const int (&sums)[COLUMNS][OWN], float (&scores)[COLUMNS][OWN],
                                              Change change) {
  RowSides of_row[OWN_ROWS];
#pragma unroll
  for (int i = 0; i < OWN_ROWS; ++i) {
    const unsigned row = rows[i] == NO_ROW ? 0 : rows[i];
    of_row[i] = {sides.scales[row], SKETCH ? sides.sketch_scales[row] : 0.f,
                 sides.has_offsets ? sides.offsets[row] : 0.f};
  }
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const QuerySides query = queries[column * COLUMN + 2 * pair() + j];
#pragma unroll
      for (int i = 0; i < OWN_ROWS; ++i) {
        float& score = scores[column][2 * i + j];
        score = change(score, sums[column][2 * i + j], query, of_row[i]);
      }
    }
}

// Scores of a warp's rows and the tile's queries, those of this lane. query_sides: of the tile, in shared memory.
__device__ __forceinline__ void score_tile(const Codes& codes, const Sides& sides, const OwnRows& rows,
                                           const Queries& queries, const QuerySides* query_sides,
                                           const unsigned* table, int2* staged, float (&scores)[COLUMNS][OWN]) {
  int sums[COLUMNS][OWN];
  multiply_tile<false, Gathered>(codes, sides.scales, rows, queries, table, staged, sums);
#if SKETCH
  change_scores(sides, rows, query_sides, sums, scores,
                [](float, int product, const QuerySides& query, const RowSides& row) {
                  return level_score(row.scale, query, product);
                });
  multiply_tile<true, GatheredSigns>(codes, sides.scales, rows, queries, table, staged, sums);
#endif
  change_scores(sides, rows, query_sides, sums, scores,
                [&](float score, int product, const QuerySides& query, const RowSides& row) {
                  score = SKETCH ? score + sketch_score(row.sketch_scale, query, product)
                                 : level_score(row.scale, query, product);
                  if (sides.has_offsets) score += row.offset;
                  return score + query.bias;
                });
}

#if KEEP
// The best of each query of the tile, best first: larger score, then smaller id.
__shared__ float best_scores[TILE_QUERIES][KEEP];
__shared__ unsigned best_rows[TILE_QUERIES][KEEP];

// Ids of rows of equal scores decide; without stored ones they follow the rows.
struct Order {
  const long long* ids;
  int has_ids;
  __device__ bool operator()(float score, unsigned row, float other, unsigned other_row) const {
    if (score != other) return score > other;
    if (other_row == NO_ROW || row == NO_ROW || !has_ids) return row < other_row;
    return ids[row] < ids[other_row];
  }
};

// A whole warp puts one row in its place among the best k of a query.
__device__ void insert(const Order& is_better, int query, int k, float score, unsigned row) {
  for (int first = (k - 1) / 32 * 32; first >= 0; first -= 32) {
    const int place = first + threadIdx.x % 32;
    float kept = score;
    unsigned kept_row = row;
    if (place < k) {
      const float own = best_scores[query][place];
      const unsigned own_row = best_rows[query][place];
      if (is_better(own, own_row, score, row)) {
        kept = own, kept_row = own_row;
      } else if (place > 0) {
        const float before = best_scores[query][place - 1];
        const unsigned before_row = best_rows[query][place - 1];
        if (!is_better(before, before_row, score, row)) kept = before, kept_row = before_row;
      }
    }
    __syncwarp();  // all have read before any writes
    if (place < k) best_scores[query][place] = kept, best_rows[query][place] = kept_row;
    __syncwarp();
  }
}

// Which slices have scores that may be among the best, as bits; the scores of rows that are none become -inf.
// least: as keep_best
__device__ __forceinline__ unsigned find_slices(const OwnRows& rows, const float* least,
                                                float (&scores)[COLUMNS][OWN]) {
  unsigned asked = 0;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column)
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      float& score = scores[column][i];
      if (rows[i / 2] == NO_ROW) score = no_score();
      if (score >= least[column * COLUMN + 2 * pair() + i % 2] && score > no_score())
        asked |= 1u << column * COLUMN / SLICE;
    }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) asked |= __shfl_xor_sync(WHOLE_WARP, asked, apart);
  return asked;
}

// Bring a slice of scores to shared memory; each column's are in registers of their own, which have no index.
__device__ __forceinline__ void store_slice(const float (&scores)[COLUMNS][OWN], int first_row, int first_query,
                                            float* slice) {
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const int query = column * COLUMN - first_query;
    if (query < 0 || query >= SLICE) continue;
#pragma unroll
    for (int i = 0; i < OWN; ++i)
      slice[(query + 2 * pair() + i % 2) * SLICE_LINE + first_row + i / 2 * COLUMN] = scores[column][i];
  }
}

// Put a slice's best scores, (SLICE, SLICE_LINE), among the best k, each warp those of its own queries; the largest
// first, so that no more than k are ever put in.
//
// first_query: of the slice; `there`: queries of the tile
// least: scores that k rows are known to reach, by query; other blocks learn it from `reached`
__device__ void keep_best(const Order& is_better, const float* slice, const unsigned* tile_rows, int first_query,
                          int there, int k, const float* least, unsigned* reached) {
  constexpr int OF_LANE = TILE_ROWS / 32;
  const int lane = threadIdx.x % 32, last = min(first_query + SLICE, there);
  for (int query = first_query + threadIdx.x / 32; query < last; query += THREADS / 32) {
    float scores[OF_LANE];
#pragma unroll
    for (int i = 0; i < OF_LANE; ++i) {
      const float score = slice[(query - first_query) * SLICE_LINE + 32 * i + lane];
      scores[i] = score >= least[query] ? score : no_score();
    }
    bool has_changed = false;
    while (true) {
      float best = scores[0];
      unsigned row = tile_rows[lane];
#pragma unroll
      for (int i = 1; i < OF_LANE; ++i) {
        const unsigned other = tile_rows[32 * i + lane];
        if (is_better(scores[i], other, best, row)) best = scores[i], row = other;
      }
      const bool is_kept =
          best > no_score() && is_better(best, row, best_scores[query][k - 1], best_rows[query][k - 1]);
      float largest = is_kept ? best : no_score();
      if (!__ballot_sync(WHOLE_WARP, is_kept)) break;
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, apart));
      const int chosen = __ffs(__ballot_sync(WHOLE_WARP, is_kept && best == largest)) - 1;
      insert(is_better, query, k, largest, __shfl_sync(WHOLE_WARP, row, chosen));
#pragma unroll
      for (int i = 0; i < OF_LANE; ++i)
        if (lane == chosen && tile_rows[32 * i + lane] == row) scores[i] = no_score();
      has_changed = true;
    }
    if (has_changed && lane == 0) atomicMin(reached + query, score_key(best_scores[query][k - 1]));
  }
}
#endif

// Score `count` rows from `start` on, or those that `numbers` lists, against all queries.
//
// lead .. width: as Codes; scales, sketch_scales, offsets, ids: of the rows; numbers: (count,)
// queries .. integers: as Queries; levels: the codebook's, as look_up takes them
// rows_per_part: a multiple of TILE_ROWS; grid.x: so many parts of the rows times tiles of queries. Blocks that follow
// each other have the same rows, so that those which run side by side read the codes from memory once
// KEEP > 0: found, found_rows (nq, parts, k): the best of each block, NO_ROW for none; k <= KEEP; what cannot be among
// the best k of all may be left out. before (nq, k): the best of other rows; reached (nq,): keys of scores that k rows
// reach, at first that of -inf
// KEEP = 0: found (nq, count); found_rows, before and reached are not used
extern "C" __global__ void __launch_bounds__(THREADS, MOST_BLOCKS) scan_tiles(
    const unsigned char* __restrict__ lead, const unsigned char* __restrict__ rest, long long blocks, int leading,
    int width, const float* __restrict__ scales, const float* __restrict__ sketch_scales,
    const float* __restrict__ offsets, int has_offsets, const long long* __restrict__ ids, int has_ids,
    const unsigned* __restrict__ numbers, int has_numbers, long long start, long long count,
    long long rows_per_part,
    const signed char* __restrict__ queries, const signed char* __restrict__ sketch_queries,
    const float* __restrict__ reals, const int* __restrict__ integers, const unsigned* __restrict__ levels, int nq,
    int depth, int k, const float* __restrict__ before, unsigned* __restrict__ reached, float* __restrict__ found,
    unsigned* __restrict__ found_rows) {
  __shared__ int2 room[(STAGED > SLICE_ROOM ? STAGED : SLICE_ROOM) / 2];  // queries, then scores
  __shared__ QuerySides query_sides[TILE_QUERIES];
  __shared__ unsigned tile_rows[TILE_ROWS];
  const Codes codes = {lead, rest, blocks, leading, width};
  const Sides sides = {scales, sketch_scales, offsets, has_offsets};
  KEEP_LEVELS(table, levels)
  const int tiles = (nq + TILE_QUERIES - 1) / TILE_QUERIES;
  const long long first_query = (long long)(blockIdx.x % tiles) * TILE_QUERIES;
  const long long part = blockIdx.x / tiles, parts = gridDim.x / tiles;
  const int there = (int)min(nq - first_query, (long long)TILE_QUERIES);
  const Queries tile_queries = {queries, sketch_queries, depth, first_query, there};
  const int first_own = threadIdx.x / 32 * WARP_ROWS + group();
  for (int i = threadIdx.x; i < TILE_QUERIES; i += THREADS)
    query_sides[i] = load_sides(reals, integers, first_query + min(i, there - 1));
#if KEEP
  __shared__ float least[TILE_QUERIES];
  __shared__ unsigned slices[2];  // which of a tile's slices are to be looked at, in turns
  float* slice = reinterpret_cast<float*>(room);
  int turn = 0;
  if (threadIdx.x == 0) slices[0] = 0;
  const Order is_better = {ids, has_ids};
  for (int i = threadIdx.x; i < TILE_QUERIES * KEEP; i += THREADS) {
    best_scores[i / KEEP][i % KEEP] = no_score();
    best_rows[i / KEEP][i % KEEP] = NO_ROW;
  }
#endif
  const long long stop = min((part + 1) * rows_per_part, count);
  for (long long first = part * rows_per_part; first < stop; first += TILE_ROWS) {
    __syncthreads();  // the last tile's rows and scores have been read
    if (threadIdx.x < TILE_ROWS) {
      const long long i = first + threadIdx.x;
      tile_rows[threadIdx.x] = i >= stop ? NO_ROW : has_numbers ? numbers[i] : (unsigned)(start + i);
    }
#if KEEP
    if (threadIdx.x < TILE_QUERIES) {
      float known = -no_score();  // where there is no query
      if (threadIdx.x < there)
        known = fmaxf(score_of_key(atomicMin(reached + first_query + threadIdx.x, 0xffffffffu)),
                      fmaxf(best_scores[threadIdx.x][k - 1], before[(first_query + threadIdx.x) * k + k - 1]));
      least[threadIdx.x] = known;
    }
#endif
    __syncthreads();
    const OwnRows own_rows = {tile_rows[first_own], tile_rows[first_own + COLUMN]};
    float scores[COLUMNS][OWN];
    score_tile(codes, sides, own_rows, tile_queries, query_sides, table, room, scores);
#if KEEP
    const unsigned asked = find_slices(own_rows, least, scores);
    if (threadIdx.x % 32 == 0 && asked) atomicOr(&slices[turn % 2], asked);
    __syncthreads();
    const unsigned kept_slices = slices[turn % 2];
    ++turn;
    if (threadIdx.x == 0) slices[turn % 2] = 0;
#pragma unroll 1
    for (unsigned left = kept_slices; left; left &= left - 1) {
      const int first_kept = (__ffs((int)left) - 1) * SLICE;
      store_slice(scores, first_own, first_kept, slice);
      __syncthreads();
      keep_best(is_better, slice, tile_rows, first_kept, there, k, least, reached + first_query);
      __syncthreads();
    }
#else
#pragma unroll
    for (int column = 0; column < COLUMNS; ++column)
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int query = column * COLUMN + 2 * pair() + i % 2, row = first_own + i / 2 * COLUMN;
        if (own_rows[i / 2] != NO_ROW && query < there) found[(first_query + query) * count + first + row] = scores[column][i];
      }
#endif
  }
#if KEEP
  __syncthreads();
  for (int i = threadIdx.x; i < TILE_QUERIES * k; i += THREADS) {
    const long long query = first_query + i / k;
    if (query >= nq) break;
    const long long at = (query * parts + part) * k + i % k;
    found[at] = best_scores[i / k][i % k];
    found_rows[at] = best_rows[i / k][i % k];
  }
#endif
}
