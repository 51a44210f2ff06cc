// Lets g++ compile the kernels' CUDA C++; shim.cpp runs them. What is not declared here, the kernels may not use:
// approximate functions (they differ between chips), __activemask (its result is not defined), dynamic shared memory,
// and inline PTX but for what intrinsics.h has under a name of its own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// Functions of <cmath> that a GPU only approximates.
#pragma GCC poison exp expf exp2 exp2f log logf log2 log2f log10 log10f pow powf sin sinf cos cosf tan tanf tanh tanhf
#pragma GCC poison cbrtf erf erff hypot hypotf

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#if defined(SHIM_POISON)  // a section that the shim fills before every block
#define __shared__ static __attribute__((section("cuda_shared")))
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
#elif defined(SHIM_TSAN)  // blocks run on several OS threads
#define __shared__ static thread_local
#else
#define __shared__ static
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// -- the shim: never instrumented by a sanitizer

namespace shim {
struct Place {
  dim3 thread, block, block_size, grid_size;
};
enum Vote { SYNC, COUNT, AND, OR };
enum WarpOperation { MEET, EXCHANGE, BALLOT, MULTIPLY };
// What a lane brings to a product of matrices, and takes from it.
struct Fragments {
  const unsigned *rows, *columns;
  int* sums;
};
struct Launch {
  void (*body)(void*);
  void* context;
  const unsigned *grid, *block;
  int schedule;
  unsigned seed;
  char *shared, *shared_end;
};
}  // namespace shim

extern "C" {
const shim::Place* shim_place() __attribute__((const));  // of the CUDA thread that calls
bool shim_runs();                                        // whether a CUDA thread calls, not the host
unsigned shim_lane();
int shim_barrier(shim::Vote vote, int predicate, const char* file, int line);
uint64_t shim_warp(shim::WarpOperation operation, unsigned mask, uint64_t value, int source, const char* file,
                   int line);
[[noreturn]] void shim_fail(const char* message, const char* file, int line);
const char* shim_run(const shim::Launch* launch);
}

#define threadIdx (shim_place()->thread)
#define blockIdx (shim_place()->block)
#define blockDim (shim_place()->block_size)
#define gridDim (shim_place()->grid_size)
constexpr int warpSize = 32;

// -- barriers and warp operations; CUDA C++ Programming Guide, "Synchronization Functions", "Warp Shuffle Functions",
// "Warp Vote Functions"

#define __syncthreads() ((void)shim_barrier(shim::SYNC, 0, __FILE__, __LINE__))
#define __syncthreads_count(predicate) shim_barrier(shim::COUNT, !!(predicate), __FILE__, __LINE__)
#define __syncthreads_and(predicate) shim_barrier(shim::AND, !!(predicate), __FILE__, __LINE__)
#define __syncthreads_or(predicate) shim_barrier(shim::OR, !!(predicate), __FILE__, __LINE__)
#define __syncwarp(...) shim::meet(__FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __ballot_sync(mask, predicate) ((unsigned)shim_warp(shim::BALLOT, mask, !!(predicate), 0, __FILE__, __LINE__))
#define __any_sync(mask, predicate) ((int)(__ballot_sync(mask, predicate) != 0))
#define __all_sync(mask, predicate) ((int)(__ballot_sync(mask, !(predicate)) == 0))
#define __shfl_sync(...) shim::shuffle<shim::ANY>(__FILE__, __LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) shim::shuffle<shim::UP>(__FILE__, __LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) shim::shuffle<shim::DOWN>(__FILE__, __LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) shim::shuffle<shim::XOR>(__FILE__, __LINE__, __VA_ARGS__)

namespace shim {
enum Shuffle { ANY, UP, DOWN, XOR };

inline void meet(const char* file, int line, unsigned mask = 0xffffffffu) { shim_warp(MEET, mask, 0, 0, file, line); }

// The lane that a lane reads; its own where the guide says that its value stays unchanged.
inline int source_lane(Shuffle kind, int lane, int operand, int width) {
  const int first = lane & ~(width - 1), end = first + width;
  if (kind == ANY) return first | (operand & (width - 1));
  const int source = kind == UP ? lane - operand : kind == DOWN ? lane + operand : lane ^ operand;
  if (kind == UP && source < first) return lane;
  if (kind != UP && source >= end) return lane;  // XOR may read earlier groups, not later ones
  return source;
}

template <Shuffle kind, class T>
T shuffle(const char* file, int line, unsigned mask, T value, int operand, int width = warpSize) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "4 or 8 bytes are exchanged");
  if (width < 1 || width > 32 || (width & (width - 1))) shim_fail("width must be a power of two up to 32", file, line);
  if (kind != ANY && (unsigned)operand > 31) shim_fail("a shuffle's distance must be 0 to 31", file, line);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shim_warp(EXCHANGE, mask, bits, source_lane(kind, shim_lane(), operand, width), file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace shim

#include "intrinsics.h"

// -- what the host calls

namespace shim {
// A type as NumPy writes it: "f4", "*u1"; "w*u1" for a pointer through which the kernel may write.
template <class T>
struct TypeCode {
  static void write(char*& out) {
    using Value = std::remove_cv_t<std::remove_pointer_t<T>>;
    static_assert(std::is_arithmetic_v<Value>, "kernels take numbers and pointers to numbers");
    if (std::is_pointer_v<T> && !std::is_const_v<std::remove_pointer_t<T>>) *out++ = 'w';
    if (std::is_pointer_v<T>) *out++ = '*';
    *out++ = std::is_same_v<Value, bool>       ? 'b'
             : std::is_floating_point_v<Value> ? 'f'
             : std::is_signed_v<Value>         ? 'i'
                                               : 'u';
    *out++ = '0' + sizeof(Value);
    *out++ = ' ';
  }
};

template <class... Types>
const char* signature(void (*)(Types...)) {
  static char text[5 * sizeof...(Types) + 1];
  char* out = text;
  (TypeCode<std::remove_const_t<Types>>::write(out), ...);
  return text;
}

template <class... Types>
struct Call {
  void (*kernel)(Types...);
  void** arguments;
  template <size_t... Index>
  void invoke(std::index_sequence<Index...>) {
    kernel(*static_cast<std::remove_const_t<Types>*>(arguments[Index])...);
  }
  static void body(void* call) { static_cast<Call*>(call)->invoke(std::index_sequence_for<Types...>{}); }
};

template <class... Types>
const char* launch(void (*kernel)(Types...), const unsigned* grid, const unsigned* block, void** arguments,
                   int schedule, unsigned seed) {
  Call<Types...> call{kernel, arguments};
  Launch what{Call<Types...>::body, &call, grid, block, schedule, seed, nullptr, nullptr};
#if defined(SHIM_POISON)
  what.shared = __start_cuda_shared, what.shared_end = __stop_cuda_shared;
#endif
  return shim_run(&what);
}
}  // namespace shim

#define SHIM_EXPORT(kernel)                                                                         \
  extern "C" __attribute__((visibility("default"))) const char* shim_launch_##kernel(               \
      const unsigned* grid, const unsigned* block, void** arguments, int schedule, unsigned seed) { \
    return shim::launch(kernel, grid, block, arguments, schedule, seed);                            \
  }                                                                                                 \
  extern "C" __attribute__((visibility("default"))) const char* shim_signature_##kernel() {         \
    return shim::signature(kernel);                                                                 \
  }
