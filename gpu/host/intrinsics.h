// CUDA's arithmetic, vector types and atomics, as the CUDA Math API and the Programming Guide define them.
#pragma once

#define SHIM_VECTOR2(name, type, bytes) \
  struct alignas(bytes) name {          \
    type x, y;                          \
  };                                    \
  inline name make_##name(type x, type y) { return {x, y}; }
#define SHIM_VECTOR4(name, type, bytes) \
  struct alignas(bytes) name {          \
    type x, y, z, w;                    \
  };                                    \
  inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTOR2(int2, int, 8)
SHIM_VECTOR2(uint2, unsigned, 8)
SHIM_VECTOR2(float2, float, 8)
SHIM_VECTOR2(double2, double, 16)
SHIM_VECTOR2(ulonglong2, unsigned long long, 16)
SHIM_VECTOR4(char4, signed char, 4)
SHIM_VECTOR4(uchar4, unsigned char, 4)
SHIM_VECTOR4(int4, int, 16)
SHIM_VECTOR4(uint4, unsigned, 16)
SHIM_VECTOR4(float4, float, 16)
#undef SHIM_VECTOR2
#undef SHIM_VECTOR4

// -- integers

// What a GPU does in one instruction or two: where instructions are counted, a call counts as one.
#if defined(SHIM_COUNT)
#define SHIM_ONE inline __attribute__((noinline, no_sanitize_coverage))
#else
#define SHIM_ONE inline
#endif

extern "C" {
int shim_dp4a_s32(int a, int b, int c);
unsigned shim_dp4a_u32(unsigned a, unsigned b, unsigned c);
}
inline int __dp4a(int a, int b, int c) { return shim_dp4a_s32(a, b, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return shim_dp4a_u32(a, b, c); }
SHIM_ONE int __popc(unsigned v) { return __builtin_popcount(v); }
SHIM_ONE int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
SHIM_ONE int __clz(int v) { return v ? __builtin_clz(v) : 32; }
SHIM_ONE int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
SHIM_ONE int __ffs(int v) { return __builtin_ffs(v); }
SHIM_ONE int __ffsll(long long v) { return __builtin_ffsll(v); }
SHIM_ONE unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (v >> bit & 1) << (31 - bit);
  return reversed;
}
// Four bytes of y:x, each chosen by 3 bits of a nibble of s; the nibble's top bit is ignored, as the guide has it.
SHIM_ONE unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const uint64_t bytes = (uint64_t)y << 32 | x;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) chosen |= (unsigned)(bytes >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
  return chosen;
}
SHIM_ONE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
SHIM_ONE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
SHIM_ONE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

// The tensor cores' product of int8 numbers, (16, 32) by (32, 8), as tensor.cuh has it for a GPU.
inline void multiply_add(int (&sums)[4], const unsigned (&rows)[4], const unsigned (&columns)[2]) {
  const shim::Fragments own = {rows, columns, sums};
  shim_warp(shim::MULTIPLY, 0xffffffffu, reinterpret_cast<uint64_t>(&own), 0, __FILE__, __LINE__);
}

#define SHIM_LEAST(type)                                    \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
SHIM_LEAST(int)
SHIM_LEAST(unsigned)
SHIM_LEAST(long long)
SHIM_LEAST(unsigned long long)
#undef SHIM_LEAST

// -- floating point: only what IEEE 754 rounds to nearest

inline int __float_as_int(float v) {
  int bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
inline float __int_as_float(int bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline long long __double_as_longlong(double v) {
  long long bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
// To nearest, ties to even; a value outside the range gives the nearest end, NaN gives 0.
SHIM_ONE int __float2int_rn(float v) {
  if (v != v) return 0;
  const float rounded = std::nearbyint(v);
  return rounded >= 2147483648.f ? 2147483647 : rounded < -2147483648.f ? -2147483647 - 1 : (int)rounded;
}
inline float __double2float_rn(double v) { return (float)v; }

// -- memory

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}

namespace shim {
template <class T>
struct Same {
  using type = T;
};
template <class T>
using NotDeduced = typename Same<T>::type;  // the pointer alone says what is exchanged

template <class T, class Change>
T change(T* at, Change changed) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "atomics are of 4 or 8 bytes");
  T before, after;
  __atomic_load(at, &before, __ATOMIC_RELAXED);
  do after = changed(before);
  while (!__atomic_compare_exchange(at, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
}  // namespace shim
template <class T>
T atomicAdd(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return (T)(old + v); });
}
template <class T>
T atomicSub(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return (T)(old - v); });
}
template <class T>
T atomicMin(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return v < old ? v : old; });
}
template <class T>
T atomicMax(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return old < v ? v : old; });
}
template <class T>
T atomicAnd(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return (T)(old & v); });
}
template <class T>
T atomicOr(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return (T)(old | v); });
}
template <class T>
T atomicXor(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return (T)(old ^ v); });
}
template <class T>
T atomicExch(T* at, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* at, shim::NotDeduced<T> expected, shim::NotDeduced<T> v) {
  return shim::change(at, [=](T old) { return old == expected ? v : old; });
}
