// Many queries against many rows: a tile of codes is expanded to int8 levels in shared memory and multiplied with a
// tile of queries; of the scores each block keeps the best KEEP, or, where KEEP is 0, writes all.
//
// dp4a and not the int8 units of tensor cores: those are reached through mma.h or inline PTX, neither of which the host
// run can compile, so that their results could not be tested without a device.
#include "common.cuh"
#include "codes.cuh"

#ifndef KEEP
#define KEEP 32
#endif

constexpr int THREADS = 256, MOST_BLOCKS = 2;  // of one multiprocessor: 128 registers for each thread
constexpr int TILE_ROWS = 64, TILE_QUERIES = KEEP > 32 ? 32 : 64;
// Coordinates that are in shared memory at a time, as ints of four; lines are longer by what keeps 8 threads that read
// 16 bytes each of neighbouring lines out of each other's banks.
constexpr int CHUNK_HALVES = 4, CHUNK = CHUNK_HALVES * STEPS, LINE = CHUNK + 4;
// Products of a thread: rows and queries that lie 16 apart.
constexpr int SPREAD = 16, OWN_ROWS = TILE_ROWS / SPREAD, OWN_QUERIES = TILE_QUERIES / SPREAD;
constexpr int STAGED = (TILE_ROWS + TILE_QUERIES) * LINE, SCORES_LINE = TILE_ROWS + 1;
constexpr int ROOM = STAGED > TILE_QUERIES * SCORES_LINE ? STAGED : TILE_QUERIES * SCORES_LINE;
static_assert(ROOM % 4 == 0, "the room is whole int4");
static_assert(TILE_ROWS * CHUNK_HALVES == THREADS, "a thread expands one half of a row");

// Expand the halves first..first + 4 of the tile's rows, of which this thread's is `row`, or NO_ROW.
template <bool SIGNS>
__device__ void stage_rows(const Codes& codes, unsigned row, int first, const unsigned* table, int* staged) {
  const int half = first + threadIdx.x % CHUNK_HALVES;
  unsigned halves[PLANES];
#pragma unroll
  for (int plane = SIGNS ? CODE_BITS : 0; plane < (SIGNS ? PLANES : CODE_BITS); ++plane)
    halves[plane] = row == NO_ROW ? 0 : load_half(codes, plane, row, half);
  int4* out = reinterpret_cast<int4*>(staged + threadIdx.x / CHUNK_HALVES * LINE + threadIdx.x % CHUNK_HALVES * STEPS);
#pragma unroll
  for (int step = 0; step < STEPS; step += 4) {
    int levels[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      levels[i] = SIGNS ? take_step(halves[PLANES - 1], step + i) : expand_step(halves, step + i, table);
    out[step / 4] = make_int4(levels[0], levels[1], levels[2], levels[3]);
  }
}

// Queries as order_queries in codes.cu writes them.
struct Queries {
  const signed char *levels, *sketch_levels;
  const float* reals;
  const int* integers;
  int count, depth;
  long long first;  // of the tile
};

// Bring the halves first.. of the tile's queries to shared memory, their levels or those of their sketch.
template <bool SIGNS>
__device__ void stage_queries(const Queries& queries, int first, int* staged) {
  constexpr int PIECES = CHUNK / 4;
  const int4* from = reinterpret_cast<const int4*>(SIGNS ? queries.sketch_levels : queries.levels);
  for (int i = threadIdx.x; i < TILE_QUERIES * PIECES; i += THREADS) {
    const int in_tile = i / PIECES, piece = i % PIECES;
    const long long query = queries.first + in_tile;
    reinterpret_cast<int4*>(staged + in_tile * LINE)[piece] =
        query < queries.count ? from[query * (queries.depth / 16) + first * (HALF / 16) + piece]
                              : make_int4(0, 0, 0, 0);
  }
}

__device__ __forceinline__ int dot16(int4 a, int4 b, int sum) {
  return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, sum))));
}

// A tile of rows, NO_ROW where there is none.
struct Tile {
  const unsigned* rows;
  int* staged;  // room for levels and queries

  __device__ unsigned own_row(int a) const { return rows[threadIdx.x % SPREAD + a * SPREAD]; }
};

// Products of the tile's rows and queries, those of this thread; with the levels, or with the signs as bits.
template <bool SIGNS>
__device__ void multiply_tile(const Codes& codes, const Tile& tile, const Queries& queries, const unsigned* table,
                              int (&products)[OWN_ROWS][OWN_QUERIES]) {
  const unsigned expanded_row = tile.rows[threadIdx.x / CHUNK_HALVES];
  int* staged_queries = tile.staged + TILE_ROWS * LINE;
  const int* own_levels = tile.staged + threadIdx.x % SPREAD * LINE;
  const int* own_queries = staged_queries + threadIdx.x / SPREAD * LINE;
#pragma unroll
  for (int a = 0; a < OWN_ROWS; ++a)
#pragma unroll
    for (int b = 0; b < OWN_QUERIES; ++b) products[a][b] = 0;
  for (int first = 0; first < queries.depth / HALF; first += CHUNK_HALVES) {
    __syncthreads();  // what was staged before has been read
    stage_rows<SIGNS>(codes, expanded_row, first, table, tile.staged);
    stage_queries<SIGNS>(queries, first, staged_queries);
    __syncthreads();
#pragma unroll 1
    for (int at = 0; at < CHUNK; at += 4) {
      int4 levels[OWN_ROWS];
#pragma unroll
      for (int a = 0; a < OWN_ROWS; ++a)
        levels[a] = *reinterpret_cast<const int4*>(own_levels + a * SPREAD * LINE + at);
#pragma unroll
      for (int b = 0; b < OWN_QUERIES; ++b) {
        const int4 query = *reinterpret_cast<const int4*>(own_queries + b * SPREAD * LINE + at);
#pragma unroll
        for (int a = 0; a < OWN_ROWS; ++a) products[a][b] = dot16(levels[a], query, products[a][b]);
      }
    }
  }
}

struct Sides {
  const float *scales, *sketch_scales, *offsets;
  int has_offsets;
};

// Scores of the tile's rows and queries, those of this thread.
__device__ void score_tile(const Codes& codes, const Sides& sides, const Tile& tile, const Queries& queries,
                           const unsigned* table, float (&scores)[OWN_ROWS][OWN_QUERIES]) {
  int products[OWN_ROWS][OWN_QUERIES];
  const long long first_query = queries.first + threadIdx.x / SPREAD, last = queries.count - 1;
  multiply_tile<false>(codes, tile, queries, table, products);
#pragma unroll
  for (int b = 0; b < OWN_QUERIES; ++b) {
    const QuerySides query = load_sides(queries.reals, queries.integers, min(first_query + b * SPREAD, last));
#pragma unroll
    for (int a = 0; a < OWN_ROWS; ++a) {
      const unsigned row = tile.own_row(a);
      scores[a][b] = row == NO_ROW ? 0.f : level_score(sides.scales[row], query, products[a][b]);
    }
  }
#if SKETCH
  multiply_tile<true>(codes, tile, queries, table, products);
#endif
#pragma unroll
  for (int b = 0; b < OWN_QUERIES; ++b) {
    const QuerySides query = load_sides(queries.reals, queries.integers, min(first_query + b * SPREAD, last));
#pragma unroll
    for (int a = 0; a < OWN_ROWS; ++a) {
      const unsigned row = tile.own_row(a);
      if (row == NO_ROW) continue;
#if SKETCH
      scores[a][b] += sketch_score(sides.sketch_scales[row], query, products[a][b]);
#endif
      if (sides.has_offsets) scores[a][b] += sides.offsets[row];
      scores[a][b] += query.bias;
    }
  }
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

// Keep the best of a tile's scores, (TILE_QUERIES, SCORES_LINE), each warp for its own queries.
// `there`: queries of the tile.
__device__ void keep_best(const Order& is_better, const int* tile, const unsigned* tile_rows, int there, int k) {
  for (int query = threadIdx.x / 32; query < there; query += THREADS / 32) {
    for (int first = 0; first < TILE_ROWS; first += 32) {
      const float score = __int_as_float(tile[query * SCORES_LINE + first + threadIdx.x % 32]);
      const unsigned row = tile_rows[first + threadIdx.x % 32];
      const bool is_kept =
          row != NO_ROW && is_better(score, row, best_scores[query][k - 1], best_rows[query][k - 1]);
      for (unsigned left = __ballot_sync(WHOLE_WARP, is_kept); left; left &= left - 1) {
        const int lane = __ffs(left) - 1;
        insert(is_better, query, k, __shfl_sync(WHOLE_WARP, score, lane), __shfl_sync(WHOLE_WARP, row, lane));
      }
    }
  }
}
#endif

// Score `count` rows from `start` on, or those that `numbers` lists, against all queries.
//
// lead .. width: as Codes; scales, sketch_scales, offsets, ids: of the rows; numbers: (count,)
// queries .. integers: as Queries; levels: the codebook's, as look_up takes them
// rows_per_part: a multiple of TILE_ROWS; grid.x: so many parts of the rows times tiles of queries. Blocks that follow
// each other have the same rows, so that those which run side by side read the codes from memory once
// KEEP > 0: found, found_rows (nq, parts, k): the best of each block, NO_ROW for none; k <= KEEP
// KEEP = 0: found (nq, count); found_rows is not used
extern "C" __global__ void __launch_bounds__(THREADS, MOST_BLOCKS) scan_tiles(
    const unsigned char* __restrict__ lead, const unsigned char* __restrict__ rest, long long blocks, int leading,
    int width, const float* __restrict__ scales, const float* __restrict__ sketch_scales,
    const float* __restrict__ offsets, int has_offsets, const long long* __restrict__ ids, int has_ids,
    const unsigned* __restrict__ numbers, int has_numbers, long long start, long long count,
    long long rows_per_part,
    const signed char* __restrict__ queries, const signed char* __restrict__ sketch_queries,
    const float* __restrict__ reals, const int* __restrict__ integers, const unsigned* __restrict__ levels, int nq,
    int depth, int k, float* __restrict__ found, unsigned* __restrict__ found_rows) {
  __shared__ int4 pieces[ROOM / 4];
  __shared__ unsigned tile_rows[TILE_ROWS];
  const Codes codes = {lead, rest, blocks, leading, width};
  const Sides sides = {scales, sketch_scales, offsets, has_offsets};
  const unsigned table[4] = {levels[0], levels[1], levels[2], levels[3]};
  const int tiles = (nq + TILE_QUERIES - 1) / TILE_QUERIES;
  const long long first_query = (long long)(blockIdx.x % tiles) * TILE_QUERIES;
  const long long part = blockIdx.x / tiles, parts = gridDim.x / tiles;
  const Queries tile_queries = {queries, sketch_queries, reals, integers, nq, depth, first_query};
  int* room = reinterpret_cast<int*>(pieces);
  const Tile tile = {tile_rows, room};
  const int own_row = threadIdx.x % SPREAD, own_query = threadIdx.x / SPREAD;
#if KEEP
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
    __syncthreads();
    float scores[OWN_ROWS][OWN_QUERIES];
    score_tile(codes, sides, tile, tile_queries, table, scores);
#if KEEP
    __syncthreads();  // scores take the place of levels
#pragma unroll
    for (int a = 0; a < OWN_ROWS; ++a)
#pragma unroll
      for (int b = 0; b < OWN_QUERIES; ++b)
        room[(own_query + b * SPREAD) * SCORES_LINE + own_row + a * SPREAD] = __float_as_int(scores[a][b]);
    __syncthreads();
    keep_best(is_better, room, tile_rows, (int)min(nq - first_query, (long long)TILE_QUERIES), k);
#else
#pragma unroll
    for (int a = 0; a < OWN_ROWS; ++a)
#pragma unroll
      for (int b = 0; b < OWN_QUERIES; ++b) {
        const long long query = first_query + own_query + b * SPREAD;
        if (tile.own_row(a) != NO_ROW && query < nq) found[query * count + first + own_row + a * SPREAD] = scores[a][b];
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
