// Counts memory traffic and instructions of a launch, by the calls that GCC puts into a kernel: with -fsanitize=thread
// one before each load and store (they come here, no sanitizer is linked), with -fsanitize-coverage=trace-pc one in
// each basic block. Warps do not run in step here, so that a warp's instruction is put together afterwards: the n-th
// time that each of its lanes comes to the same place.
#include <algorithm>
#include <unordered_map>
#include <vector>

#include "count.h"

namespace {
constexpr uint64_t SECTOR = 32, BANKS = 32, BANK_BYTES = 4, WAVEFRONT = BANKS * BANK_BYTES;
constexpr unsigned WARP = 32;
enum Space { GLOBAL, SHARED };
// Blocks that run beside each other: fewer than a chip has multiprocessors. What one touches is in the second-level cache
// for the others.
constexpr unsigned NEIGHBOURS = 64;

struct Array {  // an argument of the kernel
  const char* begin;
  uint64_t bytes;
  // The last block that touched a sector, by LOAD and STORE; 0 for none.
  std::vector<unsigned> touched[2];
  // Of loads, then of stores: bytes asked for, sectors of warps' requests, sectors once for blocks that run beside
  // each other, sectors once in all.
  uint64_t counts[2][4];
};

struct Request {  // of a warp
  size_t array;
  uint64_t addresses[WARP];
  unsigned lanes;
};

struct Site {
  counting::Kind kind;
  Space space;
  unsigned bytes;
  unsigned executed[WARP] = {};
  std::vector<Request> requests;
};

struct Totals {
  uint64_t warp_instructions[counting::KINDS], shared_wavefronts, shared_bytes, global_wavefronts;
};

std::vector<Array> arrays;
std::unordered_map<const void*, Site> phase;
std::unordered_map<const void*, uint64_t> blocks;  // basic blocks by how often warps run them
Totals totals;
const shim::Launch* launch;
unsigned block_number;

// Of an argument the number, or how many there are.
size_t find_array(const char* at) {
  size_t i = 0;
  while (i < arrays.size() && !(at >= arrays[i].begin && at < arrays[i].begin + arrays[i].bytes)) ++i;
  return i;
}

void touch(Array& array, counting::Kind kind, uint64_t at, unsigned bytes) {
  uint64_t* counts = array.counts[kind];
  counts[0] += bytes;
  const uint64_t first = at / SECTOR, last = (at + bytes - 1) / SECTOR;
  for (uint64_t sector = first; sector <= last; ++sector) {
    unsigned& toucher = array.touched[kind][sector];
    counts[2] += toucher == 0 || block_number - toucher >= NEIGHBOURS;
    counts[3] += toucher == 0;
    toucher = block_number;
  }
}

void access(counting::Kind kind, const void* at, unsigned bytes, const void* site) {
  if (!shim_runs()) return;
  const char* address = static_cast<const char*>(at);
  const bool shared = address >= launch->shared && address < launch->shared_end;
  const size_t number = shared ? 0 : find_array(address);
  if (number == arrays.size()) return;  // a local variable or a constant
  const uint64_t offset = address - (shared ? launch->shared : arrays[number].begin);
  if (!shared) touch(arrays[number], kind, offset, bytes);
  Site& known = phase.try_emplace(site, Site{kind, shared ? SHARED : GLOBAL, bytes}).first->second;
  const unsigned lane = shim_lane(), turn = known.executed[lane]++;
  if (known.requests.size() <= turn) known.requests.resize(turn + 1);
  Request& request = known.requests[turn];
  request.array = number;
  request.addresses[lane] = offset;
  request.lanes |= 1u << lane;
}

// Distinct `unit`s that a request touches.
std::vector<uint64_t> units(const Request& request, unsigned bytes, uint64_t unit, unsigned first, unsigned end) {
  std::vector<uint64_t> found;
  for (unsigned lane = first; lane < end; ++lane) {
    if (!(request.lanes >> lane & 1)) continue;
    for (uint64_t at = request.addresses[lane] / unit; at <= (request.addresses[lane] + bytes - 1) / unit; ++at)
      found.push_back(at);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// A bank gives one word at a time; wide accesses go in parts of 128 bytes.
uint64_t wavefronts(const Request& request, unsigned bytes) {
  const unsigned lanes = std::min<uint64_t>(WARP, WAVEFRONT / bytes);
  uint64_t all = 0;
  for (unsigned first = 0; first < WARP; first += lanes) {
    uint64_t words[BANKS] = {}, most = 0;
    for (uint64_t word : units(request, bytes, BANK_BYTES, first, first + lanes))
      most = std::max(most, ++words[word % BANKS]);
    all += most;
  }
  return all;
}
}  // namespace

namespace counting {
void start_launch(const shim::Launch& started) { launch = &started, block_number = 0; }

void start_block() { ++block_number; }

void execute(Kind kind, const void* site, unsigned lane) {
  ++phase.try_emplace(site, Site{kind, GLOBAL, 0}).first->second.executed[lane];
}

void end_phase() {
  for (auto& [at, site] : phase) {
    const uint64_t turns = *std::max_element(site.executed, site.executed + WARP);
    totals.warp_instructions[site.kind] += turns;
    if (site.kind == BLOCK) blocks[at] += turns;
    for (const Request& request : site.requests) {
      if (site.space == SHARED) {
        totals.shared_wavefronts += wavefronts(request, site.bytes);
        totals.shared_bytes += __builtin_popcount(request.lanes) * site.bytes;
        continue;
      }
      arrays[request.array].counts[site.kind][1] += units(request, site.bytes, SECTOR, 0, WARP).size();
      totals.global_wavefronts += units(request, site.bytes, WAVEFRONT, 0, WARP).size();
    }
  }
  phase.clear();
}
}  // namespace counting

extern "C" {
__attribute__((visibility("default"))) void shim_count_start(unsigned count, const void** begins,
                                                             const uint64_t* sizes) {
  arrays.clear(), phase.clear(), blocks.clear(), totals = {};
  for (unsigned i = 0; i < count; ++i) {
    Array array{static_cast<const char*>(begins[i]), sizes[i], {}, {}};
    for (auto& touched : array.touched) touched.resize(sizes[i] / SECTOR + 1);
    arrays.push_back(std::move(array));
  }
}

// out: of each array 8 counts, then the totals.
__attribute__((visibility("default"))) void shim_count_read(uint64_t* out) {
  for (const Array& array : arrays)
    for (const auto& counts : array.counts) out = std::copy(std::begin(counts), std::end(counts), out);
  std::memcpy(out, &totals, sizeof totals);
}

__attribute__((visibility("default"))) unsigned shim_count_blocks() { return blocks.size(); }

// Where each basic block starts, counted from this function, and how often warps ran it.
__attribute__((visibility("default"))) void shim_count_read_blocks(int64_t* places, uint64_t* counts) {
  for (const auto& [at, count] : blocks) {
    *places++ = static_cast<const char*>(at) - reinterpret_cast<const char*>(&shim_count_blocks);
    *counts++ = count;
  }
}

// -- what GCC calls

void __sanitizer_cov_trace_pc() {
  if (!shim_runs()) return;
  counting::execute(counting::BLOCK, __builtin_return_address(0), shim_lane());
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define SHIM_HOOK(bytes)                                                                                          \
  void __tsan_read##bytes(void* at) { access(counting::LOAD, at, bytes, __builtin_return_address(0)); }           \
  void __tsan_write##bytes(void* at) { access(counting::STORE, at, bytes, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##bytes(void* at) { access(counting::LOAD, at, bytes, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* at) { access(counting::STORE, at, bytes, __builtin_return_address(0)); }
SHIM_HOOK(1)
SHIM_HOOK(2)
SHIM_HOOK(4)
SHIM_HOOK(8)
SHIM_HOOK(16)
void __tsan_read_range(void* at, unsigned long bytes) {
  access(counting::LOAD, at, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* at, unsigned long bytes) {
  access(counting::STORE, at, bytes, __builtin_return_address(0));
}
// An atomic change is a load and a compare-and-exchange here, one store on a GPU.
#define SHIM_ATOMIC(bits, type)                                                                                   \
  type __tsan_atomic##bits##_load(const volatile type* at, int) { return __atomic_load_n(at, __ATOMIC_RELAXED); } \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* at, type* expected, type value, int, int) {    \
    access(counting::STORE, const_cast<type*>(at), sizeof(type), __builtin_return_address(0));                    \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);           \
  }
SHIM_ATOMIC(32, unsigned)
SHIM_ATOMIC(64, unsigned long long)
}
