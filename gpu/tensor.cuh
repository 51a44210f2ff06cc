// Products of int8 matrices on the tensor cores. The host run brings a function of its own for it (host/intrinsics.h).

#if defined(__CUDA_ARCH__)
// Adds to sums the product of rows, (16, 32), and columns, (32, 8), of which each lane holds a part: PTX ISA, "Matrix
// Fragments for mma.m16n8k32" of .s8. A whole warp must call.
//
// Lane 4 g + t brings the numbers 4 t.. of row g, of row g + 8, the numbers 16 + 4 t.. of row g, of row g + 8; of column
// g the numbers 4 t.. and 16 + 4 t..; and has of row g the sums in columns 2 t and 2 t + 1, and the same of row g + 8.
__device__ __forceinline__ void multiply_add(int (&sums)[4], const unsigned (&rows)[4], const unsigned (&columns)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[0]), "r"(columns[1]));
#else
  // Turing's are of 8 rows and 16 numbers, whose fragments are parts of these.
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(sums[i % 2 * 2]), "+r"(sums[i % 2 * 2 + 1])
        : "r"(rows[i]), "r"(columns[i / 2]));
#endif
}
#endif
