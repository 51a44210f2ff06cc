// Runs a kernel's blocks on the CPU. A CUDA thread is a fibre that gives up the CPU only where it waits for others: at
// barriers and warp operations. The schedule is the caller's choice, so a result that depends on it has a race.
// Under TSan a switch of fibres orders nothing; barriers and __syncwarp do, shuffles and votes do not (Programming
// Guide: they "do not imply a memory barrier"). Blocks then run on several OS threads.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "count.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include "fibre.h"

namespace {
using shim::Fibre;
constexpr int POISON = 0xCB, WARP = 32;
constexpr unsigned MOST_THREADS = 1024, MOST_DEPTH = 64, MOST_ROWS = 65535;
constexpr unsigned long long MOST_WORKERS = 2;  // under TSan, where a fibre costs milliseconds
enum Schedule { FORWARD, REVERSE, SHUFFLED };
enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Thread {
  Fibre fibre;
  State state;
  shim::Place place;
  const char* file;
  int line;
  shim::Vote vote;
  shim::WarpOperation operation;
  unsigned mask;
  uint64_t value;
  int source;
  int result;
  unsigned barriers, meetings;  // passed so far: alternate between two tags
};

class Block;

int dot(int a, int b) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return sum;
}

thread_local Block* running_block;
thread_local Thread* running;

class Block {
 public:
  Block(const shim::Launch& launch, unsigned threads)
      : launch_(launch),
        threads_(threads),
        warps_((threads + WARP - 1) / WARP),
        random_(launch.seed),
        tags_(2 + 2 * warps_) {}

  std::string error;

  void run(dim3 block, dim3 block_size, dim3 grid_size) {
    if (launch_.shared) std::memset(launch_.shared, POISON, launch_.shared_end - launch_.shared);
    running_block = this;
    counting::start_block();
    main_.adopt();
    for (unsigned i = 0; i < threads_.size(); ++i) {
      Thread& thread = threads_[i];
      thread.state = READY, thread.barriers = thread.meetings = 0;
      thread.place = {{i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)},
                      block,
                      block_size,
                      grid_size};
      thread.fibre.start(enter);
    }
    shim::release(&start_tag_);
    while (error.empty() && advance()) continue;
    shim::acquire(&end_tag_);
  }

  void wait(State state, const char* file, int line) {
    Thread& thread = *running;
    thread.state = state, thread.file = file, thread.line = line;
    shim::switch_fibre(thread.fibre, main_);
  }

  int wait_at_barrier(const char* file, int line) {
    Thread& thread = *running;
    char* tag = &tags_[thread.barriers++ & 1];
    shim::release(tag);
    wait(AT_BARRIER, file, line);
    shim::acquire(tag);
    return thread.result;
  }

  uint64_t wait_in_warp(const char* file, int line) {
    Thread& thread = *running;
    const bool orders = thread.operation == shim::MEET;
    char* tag = &tags_[2 + number(thread) / WARP * 2 + (thread.meetings & 1)];
    if (orders) ++thread.meetings, shim::release(tag);
    wait(AT_WARP, file, line);
    if (orders) shim::acquire(tag);
    return thread.value;
  }

  unsigned number(const Thread& thread) const { return &thread - threads_.data(); }

 private:
  const shim::Launch& launch_;
  std::vector<Thread> threads_;
  unsigned warps_;
  std::mt19937 random_;
  std::vector<char> tags_;
  char start_tag_, end_tag_;
  Fibre main_;

  static void enter() {
    Block& block = *running_block;
    shim::acquire(&block.start_tag_);
    block.launch_.body(block.launch_.context);
    shim::release(&block.end_tag_);
    block.wait(DONE, nullptr, 0);
  }

  std::vector<unsigned> order(unsigned count) {
    std::vector<unsigned> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (launch_.schedule == REVERSE) std::reverse(numbers.begin(), numbers.end());
    if (launch_.schedule == SHUFFLED) std::shuffle(numbers.begin(), numbers.end(), random_);
    return numbers;
  }

  // Let every warp run as far as it comes, or one step in the shuffled schedule; false where the block has ended.
  bool advance() {
    bool moved = false;
    for (unsigned warp : order(warps_)) {
      while (error.empty() && step(warp)) {
        moved = true;
        if (launch_.schedule == SHUFFLED) break;
      }
      counting::end_phase();
    }
    if (moved || !error.empty()) return true;
    return pass_barrier();
  }

  bool step(unsigned warp) {
    const unsigned first = warp * WARP, count = std::min<unsigned>(WARP, threads_.size() - first);
    bool moved = false;
    for (unsigned lane : order(count)) {
      Thread& thread = threads_[first + lane];
      if (thread.state != READY) continue;
      running = &thread, moved = true;
      shim::switch_fibre(main_, thread.fibre);
      running = nullptr;
      if (!error.empty()) return true;
    }
    for (unsigned lane = 0; lane < count; ++lane) moved = pass_warp(first, lane) || moved;
    return moved;
  }

  // Carry out a lane's warp operation, if all lanes of its mask wait at the same one.
  bool pass_warp(unsigned first, unsigned lane) {
    const Thread& asks = threads_[first + lane];
    if (asks.state != AT_WARP) return false;
    const unsigned mask = asks.mask;
    unsigned ballot = 0;
    uint64_t values[WARP] = {};
    for (unsigned other = 0; other < WARP; ++other) {
      if (!(mask >> other & 1)) continue;
      if (first + other >= threads_.size()) return false;
      const Thread& thread = threads_[first + other];
      const bool same = thread.state == AT_WARP && thread.mask == mask && thread.operation == asks.operation &&
                        thread.line == asks.line && thread.file == asks.file;
      if (!same) return false;
      values[other] = thread.value, ballot |= (unsigned)(thread.value & 1) << other;
    }
    if (asks.operation == shim::MULTIPLY) multiply(values);
    for (unsigned other = 0; other < WARP; ++other) {
      if (!(mask >> other & 1)) continue;
      Thread& thread = threads_[first + other];
      thread.state = READY;
      if (thread.operation == shim::BALLOT) thread.value = ballot;
      if (thread.operation == shim::EXCHANGE) {
        if (!(mask >> thread.source & 1))
          fail(thread, "a lane reads lane " + std::to_string(thread.source) + ", which is not in the mask");
        thread.value = values[thread.source];
      }
    }
    return true;
  }

  // PTX ISA, "Matrix Fragments for mma.m16n8k32" of int8: lane 4 g + t holds of rows g and g + 8 the numbers 4 t.. and
  // 16 + 4 t.., of column g the same, and of the product rows g and g + 8 in columns 2 t and 2 t + 1.
  static void multiply(const uint64_t* values) {
    const auto at = [&](unsigned lane) { return reinterpret_cast<const shim::Fragments*>(values[lane]); };
    for (unsigned lane = 0; lane < WARP; ++lane)
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 * 4, column = (lane % 4 * 2 + i % 2) * 4;
        for (unsigned t = 0; t < 4; ++t)
          for (unsigned upper = 0; upper < 2; ++upper)
            at(lane)->sums[i] += dot(at(row + t)->rows[i / 2 + 2 * upper], at(column + t)->columns[upper]);
      }
  }

  // All threads stand still: pass the barrier if all of them wait at the same one.
  bool pass_barrier() {
    unsigned waiting = 0, ended = 0;
    bool same = true;
    int holding = 0;
    const Thread* first = nullptr;
    for (const Thread& thread : threads_) {
      ended += thread.state == DONE;
      if (thread.state == AT_WARP)
        return fail(thread,
                    "deadlock: the lanes of the warp mask never meet (thread " + std::to_string(number(thread)) + ")");
      if (thread.state != AT_BARRIER) continue;
      if (!first) first = &thread;
      same = same && thread.line == first->line && thread.file == first->file && thread.vote == first->vote;
      ++waiting, holding += thread.result;
    }
    if (!waiting) return false;
    if (ended)
      return fail(*first, "barrier not reached by all " + std::to_string(threads_.size()) +
                              " threads: " + std::to_string(ended) + " have ended");
    if (!same)
      return fail(*first, "barrier not reached by all " + std::to_string(threads_.size()) +
                              " threads: others wait at another line");
    const int count = threads_.size(), result = first->vote == shim::AND  ? holding == count
                                                : first->vote == shim::OR ? holding > 0
                                                                          : holding;
    for (Thread& thread : threads_) thread.state = READY, thread.result = result;
    return true;
  }

 public:
  bool fail(const Thread& thread, const std::string& message) {
    if (error.empty()) error = std::string(thread.file) + ":" + std::to_string(thread.line) + ": " + message;
    return false;
  }
};

std::string refuse(const dim3& grid, const dim3& block, unsigned long long blocks) {
  const unsigned long long threads = 1ull * block.x * block.y * block.z;
  if (!threads || threads > MOST_THREADS || block.z > MOST_DEPTH) return "a block must have 1 to 1024 threads";
  if (!blocks || grid.x > 2147483647u || grid.y > MOST_ROWS || grid.z > MOST_ROWS)
    return "the grid is empty or too large";
  return "";
}
}  // namespace

extern "C" {
const shim::Place* shim_place() { return &running->place; }

bool shim_runs() { return running; }

unsigned shim_lane() { return running_block->number(*running) % WARP; }

int shim_barrier(shim::Vote vote, int predicate, const char* file, int line) {
  counting::execute(counting::BARRIER, __builtin_return_address(0), shim_lane());
  running->vote = vote, running->result = predicate;
  return running_block->wait_at_barrier(file, line);
}

uint64_t shim_warp(shim::WarpOperation operation, unsigned mask, uint64_t value, int source, const char* file,
                   int line) {
  Thread& thread = *running;
  const counting::Kind kinds[] = {counting::BARRIER, counting::SHUFFLE, counting::VOTE,
                                  counting::MMA};  // as WarpOperation is
  counting::execute(kinds[operation], __builtin_return_address(0), shim_lane());
  if (!(mask >> shim_lane() & 1)) shim_fail("the calling lane is not in its own mask", file, line);
  thread.operation = operation, thread.mask = mask, thread.value = value, thread.source = source;
  return running_block->wait_in_warp(file, line);
}

void shim_fail(const char* message, const char* file, int line) {
  running->file = file, running->line = line;
  running_block->fail(*running, message);
  running_block->wait(DONE, file, line);
  __builtin_unreachable();  // a block with an error is not resumed
}

int shim_dp4a_s32(int a, int b, int c) {
  counting::execute(counting::DP4A, __builtin_return_address(0), shim_lane());
  return c + dot(a, b);
}

unsigned shim_dp4a_u32(unsigned a, unsigned b, unsigned c) {
  counting::execute(counting::DP4A, __builtin_return_address(0), shim_lane());
  for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return c;
}

// Returns an error that stays readable until the next launch of this library, or null.
const char* shim_run(const shim::Launch* launch) {
  static std::string error;
  const dim3 grid{launch->grid[0], launch->grid[1], launch->grid[2]},
      block{launch->block[0], launch->block[1], launch->block[2]};
  const unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
  error = refuse(grid, block, blocks);
  counting::start_launch(*launch);
  if (!error.empty()) return error.c_str();
  std::vector<unsigned long long> numbers(blocks);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (launch->schedule == REVERSE) std::reverse(numbers.begin(), numbers.end());
  if (launch->schedule == SHUFFLED) std::shuffle(numbers.begin(), numbers.end(), std::mt19937(launch->seed));
  const auto index = [&](unsigned long long i) {
    return dim3{(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
  };
#ifdef SHIM_TSAN
  // All blocks' fibres stay until the end: TSan reports no race with a fibre that is gone.
  std::vector<std::unique_ptr<Block>> workers;
  std::vector<std::thread> threads;
  for (unsigned long long i = 0; i < std::min(blocks, MOST_WORKERS); ++i)
    workers.push_back(std::make_unique<Block>(*launch, block.x * block.y * block.z));
  for (unsigned long long first = 0; first < workers.size(); ++first)
    threads.emplace_back([&, first] {
      for (unsigned long long i = first; i < blocks && workers[first]->error.empty(); i += workers.size())
        workers[first]->run(index(numbers[i]), block, grid);
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& worker : workers)
    if (error.empty()) error = worker->error;
#else
  Block one(*launch, block.x * block.y * block.z);
  for (unsigned long long number : numbers) {
    one.run(index(number), block, grid);
    if (!one.error.empty()) break;
  }
  error = one.error;
#endif
  return error.empty() ? nullptr : error.c_str();
}
}
