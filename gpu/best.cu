// The best k of many candidates, by score and then by id: a radix selection, which reads the candidates once for each
// byte of the key until it is decided, and a sort of what is left.
#include "common.cuh"

constexpr int THREADS = 256, MOST_BLOCKS = 4, BINS = 256, BIN_BITS = 8;
constexpr int SCORE_BYTES = 4, ID_BYTES = 8;
// So many are sorted in shared memory at once.
constexpr int RUN = 2048;
constexpr unsigned NO_ROW = 0xffffffffu;
constexpr long long NO_ID = 0x7fffffffffffffff;
typedef unsigned long long Key;

__device__ __forceinline__ float no_score() { return __int_as_float(0xff800000); }  // -inf

__device__ __forceinline__ bool is_better(float score, long long id, float other, long long other_id) {
  return score > other || (score == other && id < other_id);
}

// As score_key of a score, for an id.
__device__ __forceinline__ Key id_key(long long id) { return (Key)id ^ 1ull << 63; }

// Candidates of one query: `count` of its row of scores from `first` on, then the `k` best so far.
struct Candidates {
  const float* scores;
  const unsigned* numbers;     // rows of the scores, or null: they count from 0
  const long long* entry_ids;  // ids of the scores, or null: those of their rows
  const long long* ids;        // of the rows, or null: they count from first_id
  long long first_id, first, count;
  const float* best_scores;
  const long long* best_ids;
  long long best;

  __device__ long long size() const { return count + best; }
  __device__ float score(long long i) const { return i < count ? scores[first + i] : best_scores[i - count]; }
  __device__ long long id(long long i) const {
    if (i >= count) return best_ids[i - count];
    if (score(i) == no_score()) return NO_ID;
    if (entry_ids) return entry_ids[first + i];
    const unsigned row = numbers ? numbers[first + i] : (unsigned)(first + i);
    if (row == NO_ROW) return NO_ID;
    return ids ? ids[row] : first_id + row;
  }
};

// The smallest keys: those whose first `bytes` bytes are below `cut`, and `equal` of those where they are cut itself.
struct Cut {
  unsigned score;
  Key id;
  int bytes;
  long long equal;

  // Below 0 for a key that is taken, 0 for one at the cut; the id is asked for only where it decides.
  __device__ int compare(const Candidates& from, long long i) const {
    if (bytes == 0) return 0;
    const int score_shift = bytes < SCORE_BYTES ? BIN_BITS * (SCORE_BYTES - bytes) : 0;
    const unsigned key = score_key(from.score(i)) >> score_shift, wanted = score >> score_shift;
    if (key != wanted) return key < wanted ? -1 : 1;
    if (bytes <= SCORE_BYTES) return 0;
    const int shift = BIN_BITS * (SCORE_BYTES + ID_BYTES - bytes);
    const Key tail = id_key(from.id(i)) >> shift, wanted_tail = id >> shift;
    return tail == wanted_tail ? 0 : tail < wanted_tail ? -1 : 1;
  }

  // The byte of a key after those that are decided.
  __device__ unsigned next_byte(const Candidates& from, long long i) const {
    if (bytes < SCORE_BYTES) return score_key(from.score(i)) >> BIN_BITS * (SCORE_BYTES - 1 - bytes) & (BINS - 1);
    return id_key(from.id(i)) >> BIN_BITS * (SCORE_BYTES + ID_BYTES - 1 - bytes) & (BINS - 1);
  }

  __device__ void append(unsigned byte) {
    if (bytes < SCORE_BYTES) {
      score |= byte << BIN_BITS * (SCORE_BYTES - 1 - bytes);
    } else {
      id |= (Key)byte << BIN_BITS * (SCORE_BYTES + ID_BYTES - 1 - bytes);
    }
    ++bytes;
  }
};

// One warp: find the bin of the wanted-th of all counted keys, the number before it to *before.
__device__ int find_bin(const unsigned* bins, long long wanted, long long* before) {
  constexpr int OWN = BINS / 32;
  const int lane = threadIdx.x % 32;
  long long own = 0;
  for (int i = 0; i < OWN; ++i) own += bins[lane * OWN + i];
  long long up_to = own;
  for (int step = 1; step < 32; step *= 2) {
    const long long below = __shfl_up_sync(WHOLE_WARP, up_to, step);
    if (lane >= step) up_to += below;
  }
  const int holder = __ffs(__ballot_sync(WHOLE_WARP, up_to >= wanted)) - 1;
  long long passed = up_to - own;
  int bin = lane * OWN;
  while (lane == holder && passed + bins[bin] < wanted) passed += bins[bin++];
  *before = __shfl_sync(WHOLE_WARP, passed, holder);
  return __shfl_sync(WHOLE_WARP, bin, holder);
}

// Find which k of more than k candidates are the best. All threads return the same.
__device__ Cut find_cut(const Candidates& from, int k) {
  __shared__ unsigned bins[BINS];
  __shared__ int found_bin;
  __shared__ long long found_before;
  Cut cut = {0, 0, 0, k};
  while (cut.bytes < SCORE_BYTES + ID_BYTES) {
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (long long i = threadIdx.x; i < from.size(); i += THREADS)
      if (cut.compare(from, i) == 0) atomicAdd(&bins[cut.next_byte(from, i)], 1u);
    __syncthreads();
    if (threadIdx.x < 32) {
      long long before;
      const int bin = find_bin(bins, cut.equal, &before);
      if (threadIdx.x == 0) found_bin = bin, found_before = before;
    }
    __syncthreads();
    cut.append(found_bin);
    cut.equal -= found_before;
    const bool is_decided = bins[found_bin] == cut.equal;
    __syncthreads();  // bins have been read
    if (is_decided) break;
  }
  return cut;
}

// Put runs of `size`, a power of two, in order, best first (bitonic sort).
__device__ void sort_run(float* scores, long long* ids, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int apart = width / 2; apart > 0; apart /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
        const int i = pair / apart * 2 * apart + pair % apart, j = i + apart;
        const bool is_in_order = is_better(scores[i], ids[i], scores[j], ids[j]);
        if (is_in_order == ((i & width) != 0)) {
          const float score = scores[i];
          const long long id = ids[i];
          scores[i] = scores[j], ids[i] = ids[j];
          scores[j] = score, ids[j] = id;
        }
      }
      __syncthreads();
    }
}

__device__ __forceinline__ int run_size(long long count) {
  int size = 1;
  while (size < count && size < RUN) size *= 2;
  return size;
}

constexpr int HAS_NUMBERS = 1, HAS_ENTRY_IDS = 2, HAS_IDS = 4, HAS_COUNTS = 8;

// Select the best k of each query's candidates, in order where k <= RUN, in any order where it is more.
//
// Blocks: (queries, slices); a slice is the scores from slice * slice_length on.
// scores: (nq, m), of which counts[query] or all are there; numbers: (nq, m), or one row of m with numbers_stride 0
// entry_ids: (nq, m); ids: of the rows; form: which of these there are
// best_scores, best_ids: (nq, best) more candidates, of the first slice
// out_scores, out_ids: (nq, slices, k); -inf and NO_ID where there are fewer candidates
extern "C" __global__ void __launch_bounds__(THREADS, MOST_BLOCKS)
    select_best(const float* __restrict__ scores, const unsigned* __restrict__ numbers, long long numbers_stride,
                const long long* __restrict__ entry_ids, const long long* __restrict__ ids,
                const unsigned* __restrict__ counts, int form, long long first_id, long long m, long long slice_length,
                const float* __restrict__ best_scores, const long long* __restrict__ best_ids, long long best, int k,
                float* __restrict__ out_scores, long long* __restrict__ out_ids) {
  __shared__ float kept_scores[RUN];
  __shared__ long long kept_ids[RUN];
  __shared__ unsigned better, equal;
  const long long query = blockIdx.x, slice = blockIdx.y, first = slice * slice_length;
  const long long there = form & HAS_COUNTS ? min((long long)counts[query], m) : m;
  const long long count = max(min(there - first, slice_length), 0ll);
  const Candidates from = {scores + query * m,
                           form & HAS_NUMBERS ? numbers + query * numbers_stride : nullptr,
                           form & HAS_ENTRY_IDS ? entry_ids + query * m : nullptr,
                           form & HAS_IDS ? ids : nullptr,
                           first_id, first, count,
                           best_scores + query * best, best_ids + query * best, slice == 0 ? best : 0};
  const long long out = (query * gridDim.y + slice) * k;
  const bool is_sorted = k <= RUN;
  const int size = run_size(k);
  float* to_scores = is_sorted ? kept_scores : out_scores + out;
  long long* to_ids = is_sorted ? kept_ids : out_ids + out;
  for (long long i = threadIdx.x; i < (is_sorted ? size : k); i += THREADS)
    to_scores[i] = no_score(), to_ids[i] = NO_ID;
  if (threadIdx.x == 0) better = equal = 0;
  __syncthreads();
  const Cut cut = from.size() > k ? find_cut(from, k) : Cut{0, 0, 0, from.size()};
  const long long most_better = min(from.size(), (long long)k) - cut.equal;
  for (long long i = threadIdx.x; i < from.size(); i += THREADS) {
    const int order = cut.compare(from, i);
    if (order > 0) continue;
    const long long place = order < 0 ? atomicAdd(&better, 1u) : most_better + atomicAdd(&equal, 1u);
    if (place < k) to_scores[place] = from.score(i), to_ids[place] = from.id(i);
  }
  if (!is_sorted) return;
  __syncthreads();
  sort_run(kept_scores, kept_ids, size);
  for (int i = threadIdx.x; i < k; i += THREADS) out_scores[out + i] = kept_scores[i], out_ids[out + i] = kept_ids[i];
}

// Put every run of RUN of each query's k in order, in place. Blocks: (queries, runs).
extern "C" __global__ void __launch_bounds__(THREADS)
    sort_runs(float* __restrict__ scores, long long* __restrict__ ids, long long k) {
  __shared__ float run_scores[RUN];
  __shared__ long long run_ids[RUN];
  const long long first = (long long)blockIdx.y * RUN, at = blockIdx.x * k + first;
  for (int i = threadIdx.x; i < RUN; i += THREADS) {
    const bool is_there = first + i < k;
    run_scores[i] = is_there ? scores[at + i] : no_score();
    run_ids[i] = is_there ? ids[at + i] : NO_ID;
  }
  __syncthreads();
  sort_run(run_scores, run_ids, RUN);
  for (int i = threadIdx.x; i < RUN && first + i < k; i += THREADS)
    scores[at + i] = run_scores[i], ids[at + i] = run_ids[i];
}

// Merge pairs of neighbouring runs of `run` places of each query's k. Blocks: (places, queries), a thread for each.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_runs(const float* __restrict__ scores, const long long* __restrict__ ids, long long k, long long run,
               float* __restrict__ out_scores, long long* __restrict__ out_ids) {
  const long long place = (long long)blockIdx.x * THREADS + threadIdx.x, row = (long long)blockIdx.y * k;
  if (place >= k) return;
  // Of the pair's runs a and b the place before which `rank` are better: so many, `low`, are of a.
  const long long first = place / (2 * run) * 2 * run, rank = place - first;
  const long long a = row + first, b = a + run, ends = min(2 * run, k - first);
  const long long in_a = min(run, ends), in_b = ends - in_a;
  long long low = max(rank - in_b, 0ll), high = min(rank, in_a);
  while (low < high) {
    const long long middle = (low + high) / 2, other = b + rank - 1 - middle;
    if (is_better(scores[other], ids[other], scores[a + middle], ids[a + middle])) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const long long next_a = a + low, next_b = b + rank - low;
  const bool takes_a =
      rank - low >= in_b ||
      (low < in_a && !is_better(scores[next_b], ids[next_b], scores[next_a], ids[next_a]));
  const long long from = takes_a ? next_a : next_b;
  out_scores[row + place] = scores[from], out_ids[row + place] = ids[from];
}
